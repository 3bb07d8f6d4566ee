"""`python -m pipelines.prepare`: turn corpora into shards, and inspect them."""
