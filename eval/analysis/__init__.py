"""The analysis of an evaluation: paired comparisons, verdicts, questions needed, KL divergence, the self-check."""
