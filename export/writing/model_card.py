"""Write the licence and the model card that accompany exported weights."""

from pathlib import Path

from fastvlm_onnx.agreement import agreement_table
from fastvlm_onnx.package import Manifest

# Apple's licence requires this notice in every copy and derivative.
APPLE_NOTICE = """\
Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model
License Agreement.

The checkpoint that this package was exported from held no licence file. FastVLM's weights, and
whatever is derived from them (conversions, quantisations, fine-tunes), may be used for
non-commercial research only; the agreement is LICENSE_MODEL in https://github.com/apple/ml-fastvlm.

Changes made: the weights were converted to ONNX graphs by fastvlm-onnx.
"""


def write_card(path: Path, manifest: Manifest) -> None:
    """Write the package's README.md from its manifest."""
    source, decoder = manifest.source, manifest.decoder
    variants = ", ".join(manifest.variants)
    encoders = (variant.vision_encoder for variant in manifest.variants.values())
    sizes = ", ".join(dict.fromkeys(size for encoder in encoders for size in encoder))
    path.write_text(
        f"""# {source.name}, for ONNX Runtime

FastVLM ({source.parameters:,} parameters) exported by {source.exporter}; runs without PyTorch:

    pip install "fastvlm-onnx[cpu]"
    fastvlm-onnx generate picture.jpg "Describe the image." --model .

| | |
|---|---|
| precisions | {variants} |
| image sizes in pixels | {sizes} |
| context length in tokens | {decoder.context_length:,} |{_calibration(manifest)}

{_agreement(manifest)}

The weights are under the licence in LICENSE_MODEL; Apple's are for research only.
""",
        encoding="utf-8",
    )


def _calibration(manifest: Manifest) -> str:
    found = manifest.calibration
    if found is None:
        return ""
    return (
        f"\n| calibration | {found.method} on {found.texts} texts and {found.images} images "
        f"({found.tokens:,} tokens, set {found.set}) |"
    )


def _agreement(manifest: Manifest) -> str:
    parts = []
    if manifest.measured:
        parts.append(f"""\
## Agreement with PyTorch

{agreement_table(manifest.measured)}

Relative error is ‖package - reference‖ / ‖reference‖. It and the cosine are the worst of all
pictures (for the logits, of all prompts), and each side feeds its own stages. In the answers, both
sides are fed the tokens that the reference chose; KL divergence is in nats, of one step's
distribution over the next token from the reference's.""")
    if missing := [name for name in manifest.variants if name not in manifest.measured]:
        parts.append(f"Agreement with PyTorch was not measured ({', '.join(missing)}).")
    return "\n\n".join(parts)
