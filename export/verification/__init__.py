"""What was written, held against PyTorch and against CoreML's operators."""
