"""Find a checkpoint: a folder, a zip, a Hugging Face id, or one of Apple's archives."""
