"""Publishing a release, and verifying one."""
