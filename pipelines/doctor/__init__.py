"""`python -m pipelines.doctor`: whether this installation is fit for a run."""
