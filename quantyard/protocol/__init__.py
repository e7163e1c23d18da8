"""What orchestrator and stages share: requests, results, measurements, the runner of a stage."""
