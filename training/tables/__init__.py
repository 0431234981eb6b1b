"""The paper's tables, each by one command."""
