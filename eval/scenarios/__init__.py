"""Scenarios of how a model behaves: what is asked, how an answer is read, and whether it is right."""
