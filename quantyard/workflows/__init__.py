"""What each command does, without printing and without reading the command line."""
