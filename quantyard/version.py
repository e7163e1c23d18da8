"""The version of the program, which manifests record."""

__version__ = "0.1.0"
