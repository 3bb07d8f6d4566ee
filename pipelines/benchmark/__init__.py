"""`python -m pipelines.benchmark`: how fast the parts are on this machine."""
