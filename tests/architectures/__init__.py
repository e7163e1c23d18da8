"""The sweep of architectures: small random models of many configs through build, verify, twin, eval and serve."""
