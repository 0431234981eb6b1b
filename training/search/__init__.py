"""The bi-level search for necks (paper, sections 4.1 and 4.2)."""
