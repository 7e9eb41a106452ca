"""Answer questions about pictures from an exported folder, with numpy and ONNX Runtime alone."""
