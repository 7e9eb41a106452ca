"""ONNX graphs, declared from a config and weights; files are not known here."""
