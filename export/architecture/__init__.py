"""The shape of a FastVLM: its sizes and the names of its tensors."""
