"""What is asked of the Hub, and what is sent there."""
