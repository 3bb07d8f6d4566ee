"""`python -m pipelines.benchmark`: measure how fast parts of the pipeline are on this machine."""
