"""Kernels in TVM's kernel language: the syntax of Python, with rules of its own."""
