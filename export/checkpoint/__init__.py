"""Read a checkpoint's folder: config, tokenizer, and tensors under Apple's names."""
