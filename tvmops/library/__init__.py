"""Make a library folder: compiled kernels, their manifest, the runtime they need."""
