"""The store (the artifacts folder): finished stages, their files, the manifest."""
