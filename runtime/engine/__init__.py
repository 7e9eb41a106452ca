"""The language model: token ids and embeddings in, logits and token ids out."""
