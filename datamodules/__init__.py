"""What feeds a run: the data plan, and the samples it selects, as tensors."""
