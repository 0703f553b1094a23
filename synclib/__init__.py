"""The sync engine: publish a directory once, read it anywhere. A library: no command line, no environment."""

__version__ = "0.1.0"
