"""Turn a FastVLM checkpoint into a folder of ONNX graphs, without PyTorch."""
