"""FastVLM's sizes, and the names of its tensors."""
