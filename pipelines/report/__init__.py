"""`python -m pipelines.report`: one page about runs, and the upload of their history to Weights & Biases."""
