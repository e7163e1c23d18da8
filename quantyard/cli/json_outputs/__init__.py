"""What JSON=1 prints: a model for each answer, from which its published JSON schema is generated."""
