"""A prediction run on disk: its plan, the parts of its labels, its receipt; written once, read back, verified."""
