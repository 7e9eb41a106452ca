"""`python -m fastvlm_onnx` is `fastvlm-onnx`."""

from fastvlm_onnx.cli import main

main()
