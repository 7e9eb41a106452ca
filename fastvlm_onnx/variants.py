"""The table of variants: one row says everything that any part of the project knows of a variant.

A variant is a set of graphs under one name, such as `fast`; `--precision` chooses it. A graph
precision ("fp32", "int8", ...) is the number format of one graph. Both sides, the commands and
`verify` read this table, so that a new variant is one new row. Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastvlm_onnx.agreement import Tolerance
from fastvlm_onnx.golden import GoldenTolerance
from fastvlm_onnx.second_pass import SecondPass

# Operators of the graphs: with ONNX Runtime's fused operators, or those of ONNX's opset 17 alone.
OPERATOR_SETS: Final = ("microsoft", "standard")


@dataclass(frozen=True)
class VariantSpec:
    """One variant.

    Attributes:
        name: the name in the manifest and for `--precision`.
        description: one line for people.
        vision_precision: graph precision of the vision encoder and the projector.
        decoder_precision: graph precision of the decoder.
        providers: the rank of this variant among the variants that a provider may run, by the
            provider's short name; the lowest rank is chosen first.
        tolerance: the largest difference from PyTorch that is accepted.
        golden_tolerance: the largest difference of a right port from this runtime.
        prefill_precision: graph precision of a second decoder graph, which runs the prompt; None
            where the decoder does.
        second_pass: when the prefill graph runs the last positions of an answer again; None where
            the decoder decides alone.
        calibrated_second_pass: the same for calibrated weights, which need it less often.
        has_int8_embeddings: the token embeddings are int8 instead of float.
        can_split: the decoder can also be exported in parts, with a screen before lm_head; on the
            CPU it then finds the likeliest token sooner.
        splits: the decoder is always exported in parts too.
        targets: kinds of machine that the variant is made for ("cpu", "cuda", "coreml", "web").
        operator_sets: the sets of operators in which the decoder can be built.
        least_onnxruntime: the oldest ONNX Runtime that runs the graphs, measured on the CPU.
        least_compute_capability: the oldest NVIDIA card that computes in the number format; None
            where every card does.
    """

    name: str
    description: str
    vision_precision: str
    decoder_precision: str
    providers: Mapping[str, int]
    tolerance: Tolerance
    golden_tolerance: GoldenTolerance
    prefill_precision: str | None = None
    second_pass: SecondPass | None = None
    calibrated_second_pass: SecondPass | None = None
    has_int8_embeddings: bool = False
    can_split: bool = False
    splits: bool = False
    targets: tuple[str, ...] = ("cpu",)
    operator_sets: tuple[str, ...] = ("microsoft",)
    least_onnxruntime: str = "1.20"
    least_compute_capability: float | None = None

    @property
    def runs_on_cpu(self) -> bool:
        return "cpu" in self.providers


# Where a comment names no other reason, a tolerance is about twice the difference of a random 0.5B
# with outlier tokens (docs/benchmarks/quantisation-error.md). Random logits are the hardest to keep
# in order. Only `argmax_agreement` is stated for trained weights, whose largest logit stands out.
_ROWS: Final = (
    VariantSpec(
        "fp32",
        "float32 everywhere; the same tokens as PyTorch",
        vision_precision="fp32",
        decoder_precision="fp32",
        providers={
            "openvino": 1,
            "tensorrt": 2,
            "directml": 2,
            "migraphx": 2,
            "qnn": 2,
            "webgpu": 2,
            "cpu": 5,
        },
        # Folded and fused layers only reorder sums: 1e-6 on true sizes, and room for depth.
        tolerance=Tolerance(1e-4, cosine=0.99999, kl_divergence=1e-6, argmax_agreement=1.0),
        golden_tolerance=GoldenTolerance(0.001, logits=0.001),
        operator_sets=("microsoft", "standard"),
    ),
    VariantSpec(
        "fp16",
        "float16 weights; for GPUs and NPUs",
        vision_precision="fp16",
        decoder_precision="fp16",
        providers={
            "tensorrt": 1,
            "directml": 1,
            "migraphx": 1,
            "mlx": 1,
            "qnn": 1,
            "webgpu": 1,
            "cuda": 2,
            "openvino": 2,
            "cpu": 6,
        },
        # Weights have 11 bits of mantissa; sums are float32.
        tolerance=Tolerance(0.01, cosine=0.9999, kl_divergence=1e-4, argmax_agreement=0.99),
        golden_tolerance=GoldenTolerance(0.01, logits=0.02),
        targets=("cpu", "cuda"),
        operator_sets=("microsoft", "standard"),
    ),
    VariantSpec(
        "int8",
        "int8 throughout; the closest to fp32 of the small variants",
        vision_precision="int8",
        decoder_precision="int8",
        providers={"cpu": 2},
        # Weights and activations have 255 levels, and the errors of all layers add up.
        tolerance=Tolerance(0.2, cosine=0.98, kl_divergence=0.02, argmax_agreement=0.9),
        golden_tolerance=GoldenTolerance(0.1, logits=0.2),
        has_int8_embeddings=True,
        least_onnxruntime="1.23",  # attention with a sink
    ),
    # WebAssembly has no fast kernel for lm_head as `int8` has it.
    VariantSpec(
        "web",
        "int8 throughout, in the products that WebAssembly is fast at; for browsers",
        vision_precision="int8",
        decoder_precision="web",
        providers={"cpu": 3},
        # As int8: the logits of the likeliest tokens are the same.
        tolerance=Tolerance(0.2, cosine=0.98, kl_divergence=0.02, argmax_agreement=0.9),
        golden_tolerance=GoldenTolerance(0.1, logits=0.2),
        has_int8_embeddings=True,
        targets=("cpu", "web"),
        least_onnxruntime="1.23",  # attention with a sink
    ),
    VariantSpec(
        "int4",
        "int8 vision, int4 decoder; the smallest",
        vision_precision="int8",
        decoder_precision="int4",
        providers={"cpu": 4, "mlx": 3},
        # As int8 up to image_features; the decoder's weights have 16 levels.
        tolerance=Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
        golden_tolerance=GoldenTolerance(0.1, logits=0.4),
        has_int8_embeddings=True,
        can_split=True,
        least_onnxruntime="1.22",  # MatMulNBits with 8 bits
    ),
    # Many tokens at once are bound by arithmetic, where int8 is fastest. One token at a time is
    # bound by reading the weights, where int4 is fastest.
    VariantSpec(
        "fast",
        "int8 vision and prompt, int4 answer; the soonest answer on the CPU",
        vision_precision="int8",
        decoder_precision="int4",
        providers={"cpu": 1},
        # The prompt as int8, the answer as int4.
        tolerance=Tolerance(0.4, cosine=0.92, kl_divergence=0.1, argmax_agreement=0.8),
        golden_tolerance=GoldenTolerance(0.1, logits=0.4),
        prefill_precision="int8",
        second_pass=SecondPass(margin=0.3, positions=4),
        calibrated_second_pass=SecondPass(margin=0.15, positions=4),
        has_int8_embeddings=True,
        can_split=True,
        splits=True,
        least_onnxruntime="1.23",
    ),
    # CoreML takes no decoder: the decoder stays on the CPU.
    VariantSpec(
        "coreml",
        "float16 vision for CoreML, int4 decoder for the CPU",
        vision_precision="coreml",
        decoder_precision="int4",
        providers={"coreml": 1, "cpu": 8},
        # image_features as fp16, the decoder as int4.
        tolerance=Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
        golden_tolerance=GoldenTolerance(0.1, logits=0.4),
        has_int8_embeddings=True,
        targets=("coreml",),
        least_onnxruntime="1.22",
    ),
    # CUDA has float16 convolutions of every kind, but no bfloat16 convolutions.
    VariantSpec(
        "bf16",
        "float16 vision, bfloat16 decoder; for NVIDIA cards since 2020",
        vision_precision="fp16",
        decoder_precision="bf16",
        providers={"cuda": 1},
        # Weights and products have 8 bits of mantissa.
        tolerance=Tolerance(0.05, cosine=0.998, kl_divergence=0.005, argmax_agreement=0.95),
        golden_tolerance=GoldenTolerance(0.01, logits=0.1),
        targets=("cuda",),
        least_onnxruntime="1.20",  # not measured: the CPU cannot run it
        least_compute_capability=8.0,
    ),
    VariantSpec(
        "int4_cuda",
        "float16 vision, int4 decoder; for NVIDIA cards with little memory",
        vision_precision="fp16",
        decoder_precision="int4_cuda",
        providers={"mlx": 2, "cuda": 3, "cpu": 7},
        # image_features as fp16, the decoder as int4.
        tolerance=Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
        golden_tolerance=GoldenTolerance(0.01, logits=0.4),
        has_int8_embeddings=True,
        targets=("cuda",),
        least_onnxruntime="1.22",
    ),
)
VARIANTS: Final[dict[str, VariantSpec]] = {spec.name: spec for spec in _ROWS}
CPU_VARIANTS: Final = tuple(spec.name for spec in _ROWS if "cpu" in spec.targets)
# Browsers run the CPU provider in WebAssembly, so their target names no provider.
WEB_TARGET: Final = "web"
TARGETS: Final = ("coreml", "cuda", WEB_TARGET)
# The provider whose int8 kernels read a vision encoder in QDQ form. The graph is an addition to the
# variants with int8 vision, which stay as they are on other providers.
QDQ_TARGET: Final = "openvino"
# Runtimes whose files a package can also have, or be written for.
GENAI_LAYOUT: Final = "genai"
WEB_PAGE_LAYOUT: Final = "web-page"
TRANSFORMERS_JS_LAYOUT: Final = "transformers-js"
PACKAGE_LAYOUTS: Final = (GENAI_LAYOUT, WEB_PAGE_LAYOUT)
LAYOUTS: Final = (*PACKAGE_LAYOUTS, TRANSFORMERS_JS_LAYOUT)


def variants_for_provider(provider: str) -> tuple[str, ...]:
    """Names of the variants that a provider may run, the best first.

    Args:
        provider: the provider's short name. A provider that no row names gives an empty tuple.
    """
    fitting = [spec for spec in VARIANTS.values() if provider in spec.providers]
    return tuple(spec.name for spec in sorted(fitting, key=lambda spec: spec.providers[provider]))


def variants_for_target(target: str) -> tuple[str, ...]:
    """Names of the variants that are made for one kind of machine, the best first."""
    provider = "cpu" if target == WEB_TARGET else target
    named = variants_for_provider(provider)
    return tuple(name for name in named if target in VARIANTS[name].targets)


def variants_with_vision(precision: str) -> tuple[str, ...]:
    """Names of the variants whose vision encoder has a graph precision."""
    return tuple(name for name, spec in VARIANTS.items() if spec.vision_precision == precision)


def takes_qdq(variant: str) -> bool:
    """Return whether a variant can have a vision encoder in QDQ form."""
    return VARIANTS[variant].vision_precision == "int8"


def variants_without_cpu() -> tuple[str, ...]:
    """Names of the variants that the CPU cannot run."""
    return tuple(name for name, spec in VARIANTS.items() if not spec.runs_on_cpu)
