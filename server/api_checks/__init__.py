"""The API test: checks of what a served model promises, and the server that they run against."""
