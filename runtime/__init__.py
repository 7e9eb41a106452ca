"""Answer questions about pictures from an exported folder, with numpy and ONNX Runtime alone."""

# The repository's folder can be imported as `runtime`, which would load every module a second time.
if __name__ != "fastvlm_onnx.runtime":
    raise ImportError("import fastvlm_onnx.runtime, not runtime")
