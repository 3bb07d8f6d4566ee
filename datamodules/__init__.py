"""What feeds a run: the data plan, and the samples that it names as tensors."""
