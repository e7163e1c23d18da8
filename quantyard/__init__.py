"""The orchestrator: it plans, runs stages on an engine, and keeps what they made. It runs on the host."""

__version__ = "0.1.0"
