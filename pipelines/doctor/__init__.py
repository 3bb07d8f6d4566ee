"""`python -m pipelines.doctor`: check whether this installation is ready for a run."""
