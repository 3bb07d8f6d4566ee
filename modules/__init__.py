"""What computes: the model, the stages that train it, checkpoints and weights."""
