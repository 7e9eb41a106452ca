# The runtime alone, without the export side's packages and without PyTorch. Not built yet: there was no
# container engine where this file was written.
#
#   docker build -t fastvlm-onnx .
#   docker run --rm --network none -v "$PWD/fastvlm-0.5b-onnx:/package:ro" -v "$PWD:/images:ro" \
#       fastvlm-onnx generate /images/photo.jpg "Describe the image."

FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY fastvlm_onnx fastvlm_onnx
COPY export export
COPY runtime runtime
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:3.11-slim
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /wheels/*.whl)[cpu]"
RUN useradd --create-home fastvlm
USER fastvlm
WORKDIR /home/fastvlm
ENV FASTVLM_ONNX_MODEL=/package \
    ORT_DISABLE_TELEMETRY=1
ENTRYPOINT ["fastvlm-onnx"]
CMD ["--help"]
