"""A folder's files as one checkpoint: config, tokenizer, tensors under Apple's names."""
