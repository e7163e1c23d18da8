"""The server of ENGINE=local."""
