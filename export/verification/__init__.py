"""Comparison of a package with PyTorch, and of graphs with CoreML's operators."""
