"""Config and weights as ONNX graphs; knows no files."""
