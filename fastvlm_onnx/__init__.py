"""Run Apple's FastVLM outside PyTorch."""
__version__ = "0.1.0"
