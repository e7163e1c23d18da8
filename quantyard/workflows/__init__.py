"""The use cases behind the commands and the Python API; they neither print nor read the command line."""
