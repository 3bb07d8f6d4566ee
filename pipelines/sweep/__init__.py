"""`python -m pipelines.sweep`: run many trials of one configuration, without a server."""
