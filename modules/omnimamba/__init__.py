"""The model, in plain torch; `kernels` alone reaches the GPU packages."""
