"""The comparison page: every measured file of a model beside its baseline, as one HTML file."""
