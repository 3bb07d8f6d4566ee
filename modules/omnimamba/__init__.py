"""The model, in plain torch; only `kernels` uses the GPU packages."""
