"""Publishing the same files to an OCI registry."""
