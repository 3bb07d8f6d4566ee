"""`python -m pipelines.prepare`: corpora into shards, and a look at them."""
