"""The stages that run inside the builder image: one module with a `main()` for each stage."""
