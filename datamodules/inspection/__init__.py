"""Inspect prepared data: verify it, survey it, look at a single sample."""
