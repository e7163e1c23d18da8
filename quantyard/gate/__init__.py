"""The gate: may this be published?"""
