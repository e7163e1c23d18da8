"""The output of the commands: text for the terminal, and JSON."""
