"""ONNX Runtime's sessions and providers, and the machine they run on."""
