"""Simulate the rounding of the int8 vision encoder in float64, and compare it with the graph.

    python benchmarks/simulated_rounding.py CHECKPOINT PACKAGE    # 80 seconds at the true size

PACKAGE was exported from CHECKPOINT and has the variant int8. The relative error of
image_hidden_states against float64 is printed for a flat drawing and for 1/f noise. It is measured
twice: for the package's graph on this processor, and for PyTorch in float64 with weights and input
of every product rounded to the same 8 bits. The two agree if the processor's integer products are
exact.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastvlm_onnx.export.architecture.config import VisionConfig
from fastvlm_onnx.export.graphs.layers_int8 import fewest_parts
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification import reference_model
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.names import IMAGE_HIDDEN_STATES, PIXEL_VALUES
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession

FloatArray = NDArray[np.float32]


def pictures(size: int, seed: int = 7) -> dict[str, FloatArray]:
    """Make two fixed pictures as pixel_values, float32 [1, 3, size, size]."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size] / size
    flat = np.full((3, size, size), 0.95, np.float32)
    disc = (row - 0.3) ** 2 + (column - 0.35) ** 2 < 0.18**2
    square = (abs(row - 0.7) < 0.15) & (abs(column - 0.65) < 0.15)
    flat[:, disc] = np.array([[0.85], [0.1], [0.1]])
    flat[:, square] = np.array([[0.1], [0.2], [0.8]])
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency)
    radius[0, 0] = 1
    spectra = np.fft.fft2(rng.standard_normal((3, size, size))) / radius
    noise = np.fft.ifft2(spectra).real
    noise = (noise - noise.min()) / np.ptp(noise)
    return {"flat drawing": flat[None], "1/f noise": noise[None].astype(np.float32)}


def rounded(x: Tensor) -> Tensor:
    """Round a tensor as DynamicQuantizeLinear does: to uint8 with one scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero_point = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale).add(zero_point).clamp(0, 255) - zero_point) * scale


def rounded_in_parts(x: Tensor, parts: int) -> Tensor:
    """Round each tile of tokens of a map [1, C, H, W] separately, as the graph's Scan does."""
    tokens = x.flatten(2)[0].T.reshape(parts, -1, x.shape[1])
    tiles = torch.stack([rounded(tile) for tile in tokens])
    return tiles.reshape(-1, x.shape[1]).T.reshape(x.shape)


def round_weight(layer: nn.Module) -> None:
    """Round a weight to int8 with a scale for each output channel, in place."""
    weight: Tensor = layer.weight.data
    flat = weight.flatten(1)
    scale = flat.abs().amax(1, keepdim=True) / 127
    weight.copy_((torch.round(flat / scale) * scale).reshape(weight.shape))


def with_rounding(model: reference_model.FastViTHD, config: VisionConfig, image_size: int) -> None:
    """Round the weights and the inputs of every product that the int8 graph has, in place."""

    def at(layer: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        round_weight(layer)
        layer.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))

    rows = image_size // 4
    strips = fewest_parts(rows, config.widths[0] * 4 * image_size)
    at(model.patch_embed[2].reparam_conv, lambda x: rounded_in_parts(x, strips))
    for module in model.modules():
        if isinstance(module, reference_model.ConvFFN):
            ffn_width = module.fc1.out_channels

            def by_tile(x: Tensor, ffn_width: int = ffn_width) -> Tensor:
                return rounded_in_parts(x, fewest_parts(x.shape[2] * x.shape[3], 4 * ffn_width))

            at(module.fc1, rounded)
            at(module.fc2, by_tile)
        elif isinstance(module, reference_model.PatchEmbed):
            at(module.proj[1].reparam_conv, rounded)
        elif isinstance(module, reference_model.MHSA):
            at(module.qkv, rounded)
            at(module.proj, rounded)


def simulate(checkpoint: Path | str, pixels: list[FloatArray]) -> list[tuple[NDArray, NDArray]]:
    """Return image_hidden_states of each picture in float64, without and with the rounding."""
    opened = open_checkpoint(checkpoint)
    tensors = {
        name.removeprefix(reference_model.VISION_PREFIX): torch.from_numpy(array.read()).double()
        for name, array in opened.tensors.items()
        if name.startswith(reference_model.VISION_PREFIX) and not name.endswith("head.proj")
    }
    models = []
    for is_rounded in (False, True):
        model = reference_model.FastViTHD(opened.config.vision).double().eval()
        model.load_state_dict(tensors, strict=False)
        if is_rounded:
            with_rounding(model, opened.config.vision, pixels[0].shape[-1])
        models.append(model)
    with torch.inference_mode():
        found = [
            tuple(model(torch.from_numpy(values).double()).numpy() for model in models)
            for values in pixels
        ]
    return [(exact, simulated) for exact, simulated in found]


def run_graph(package: Path, image_size: int, pixels: list[FloatArray]) -> list[FloatArray]:
    """Run the package's int8 vision encoder on this processor."""
    encoder = read_manifest(package).variants["int8"].vision_encoder[str(image_size)]
    session = GraphSession(package / encoder, ProviderChoice(CPU), has_int8_products=True)
    return [session.run([IMAGE_HIDDEN_STATES], {PIXEL_VALUES: values})[0] for values in pixels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("package", type=Path)
    arguments = parser.parse_args()
    image_size = read_manifest(arguments.package).image.default_size
    drawn = pictures(image_size)
    pixels = list(drawn.values())
    torch.set_num_threads(os.cpu_count() or 1)
    found = run_graph(arguments.package, image_size, pixels)
    print(f"{processor()}, {image_size} pixels")
    print("| picture | graph | simulated | ratio |\n|---|---|---|---|")
    for name, graph, (exact, simulated) in zip(
        drawn, found, simulate(arguments.checkpoint, pixels), strict=True
    ):
        ours, ideal = relative_error(graph, exact), relative_error(simulated, exact)
        print(f"| {name} | {ours:.5f} | {ideal:.5f} | {ours / ideal:.3f} |")


if __name__ == "__main__":
    main()
