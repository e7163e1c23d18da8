"""The protocol between orchestrator and stages: requests, results, measurements, the runner of a stage."""
