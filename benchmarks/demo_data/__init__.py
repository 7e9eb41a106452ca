"""Pictures and questions that the built-in model learns from, made from seeds, never stored.

Without PyTorch, so that accuracy can be measured where there is none.
"""
