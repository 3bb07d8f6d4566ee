"""The model, the stages that train it, checkpoints and weights."""
