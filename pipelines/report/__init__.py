"""`python -m pipelines.report`: one page about runs, and their history to Weights & Biases."""
