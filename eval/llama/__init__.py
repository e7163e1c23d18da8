"""The GGUF as a model of lm-evaluation-harness."""
