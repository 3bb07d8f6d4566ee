"""`python -m pipelines.sweep`: many trials of one configuration, without a server."""
