"""Parts of benchmarks/train_demo.py; they need PyTorch."""
