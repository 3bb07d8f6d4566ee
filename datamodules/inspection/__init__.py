"""Looking into prepared data: verify it, count it, look at a sample."""
