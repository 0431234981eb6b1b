"""The supernet of section 4.3: all single paths of the family in one set of weights."""
