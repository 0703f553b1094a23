"""A dataset before it is here: its head, its chain, its files, read from the store piece by piece."""
