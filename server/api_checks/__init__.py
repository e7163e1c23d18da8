"""The API test: what a served model must do."""
