"""Whether a split model computes what it computes undivided, and if not, in which node."""
