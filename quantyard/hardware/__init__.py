"""What the machine has: cores, memory, accelerators."""
