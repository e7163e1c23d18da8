"""The artifact folder: finished stages, their files, the manifest."""
