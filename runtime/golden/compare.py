"""Compare a runtime with a golden.json, as every port does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastvlm_onnx.golden import Golden, GoldenAnswer, GoldenFeatures, GoldenLogits, GoldenVariant
from fastvlm_onnx.names import IMAGE_FEATURES, LOGITS
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.golden.describe import describe_inputs
from fastvlm_onnx.runtime.golden.inputs import inputs_of
from fastvlm_onnx.runtime.golden.record import describe_features
from fastvlm_onnx.runtime.golden.run import AnswerRun, VariantRun, run_variant


@dataclass
class Comparison:
    """Found values beside expected values.

    Attributes:
        differences: a message for each value that differs by more than its tolerance.
        largest: the largest difference of a number in shares of a standard deviation, by variant
            and then by "image_features" and "logits".
        tokens: the number of equal tokens, by variant.
    """

    differences: list[str] = field(default_factory=list)
    largest: dict[str, dict[str, float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def expect(self, where: str, found: object, expected: object) -> None:
        """Compare two values that must be equal."""
        if found != expected:
            self.differences.append(f"{where}: found {_short(found)}, expected {_short(expected)}")

    def expect_near(
        self,
        where: str,
        found: Sequence[float],
        expected: Sequence[float],
        unit: float,
        tolerance: float,
    ) -> float:
        """Compare numbers.

        Args:
            where: names the numbers in messages.
            found: the runtime's numbers.
            expected: the numbers of golden.json.
            unit: the standard deviation.
            tolerance: the largest difference that is accepted, in units.

        Returns:
            The largest difference in units.
        """
        if len(found) != len(expected) or not expected:
            self.differences.append(
                f"{where}: found {len(expected)} values in golden.json, expected {len(found) or 1}"
            )
            return 0.0
        shares = [abs(a - b) / (unit or 1.0) for a, b in zip(found, expected, strict=True)]
        worst = int(np.argmax(shares))
        # NaN is larger than no number.
        if not shares[worst] <= tolerance:
            self.differences.append(
                f"{where}: found {found[worst]:.6g}, expected {expected[worst]:.6g}, which differ "
                f"by {shares[worst]:.2g} standard deviations; at most {tolerance:g} is right"
            )
        return shares[worst]


def check_package(folder: Path, manifest: Manifest, golden: Golden) -> Comparison:
    """Run the inputs of a package's golden.json through this runtime, and compare the values.

    Args:
        folder: the package's folder.
        manifest: the package's manifest.
        golden: the content of its golden.json.

    Raises:
        PackageError: a file of the package is missing, cut or altered.
        InputError: a picture or a prompt of golden.json cannot be used, or the package lacks a
            variant or an image size that golden.json names.
        ProviderError: ONNX Runtime is missing, too old for a variant, or failed.
    """
    inputs, result = inputs_of(golden), Comparison()
    found = describe_inputs(folder, manifest, inputs)
    compare_inputs(result, found, golden)
    for name, expected in golden.variants.items():
        run = run_variant(folder, name, expected.image_size, found.conversations, inputs)
        compare_variant(result, name, run, expected)
    return result


def compare_inputs(result: Comparison, found: Golden, expected: Golden) -> None:
    """Compare hashes of pictures, and token ids.

    Args:
        result: takes the differences.
        found: the values of a runtime, of the same inputs.
        expected: the values of a golden.json.
    """
    for name, picture in expected.pictures.items():
        other = found.pictures[name]
        result.expect(f"{name}, SHA-256 of RGB", other.rgb_sha256, picture.rgb_sha256)
        for size, digest in picture.pixel_values_sha256.items():
            where = f"{name}, SHA-256 of pixel_values at {size} pixels"
            result.expect(where, other.pixel_values_sha256.get(size), digest)
    for text, same in zip(expected.texts, found.texts, strict=True):
        result.expect(f"token ids of {text.text!r}", same.ids, text.ids)
    for name, turns in expected.conversations.items():
        others = found.conversations.get(name, [])
        result.expect(f"{name}, number of turns", len(others), len(turns))
        for i, (turn, other_turn) in enumerate(zip(turns, others, strict=False)):
            for key in ("before_image", "after_image"):
                where = f"{name}, turn {i + 1}, token ids {key}"
                result.expect(where, getattr(other_turn, key), getattr(turn, key))


def compare_variant(
    result: Comparison, name: str, run: VariantRun, expected: GoldenVariant
) -> None:
    """Compare the values of one variant.

    Args:
        result: takes the differences.
        name: the variant's name.
        run: the arrays of a runtime.
        expected: the values of a golden.json, with the tolerance.
    """
    features, logits, tokens = [0.0], [0.0], 0
    for picture, wanted in expected.image_features.items():
        where = f"{name}, {picture}, image_features"
        features.append(
            _compare_features(
                result, where, run.features[picture], wanted, expected.tolerance.image_features
            )
        )
    for conversation, answers in expected.answers.items():
        others = run.answers.get(conversation, [])
        for i, (other, answer) in enumerate(zip(others, answers, strict=False)):
            where = f"{name}, {conversation}, turn {i + 1}"
            logits += _compare_answer(result, where, other, answer, expected.tolerance.logits)
            tokens += answer.compared_tokens
            # Later turns depend on this answer.
            if other.generation.token_ids != answer.token_ids:
                break
    result.largest[name] = {IMAGE_FEATURES: max(features), LOGITS: max(logits)}
    result.tokens[name] = tokens


def _compare_features(
    result: Comparison, where: str, array: FloatArray, expected: GoldenFeatures, tolerance: float
) -> float:
    if list(array.shape) != expected.shape:
        result.expect(f"{where}, shape", list(array.shape), expected.shape)
        return 0.0
    if not np.isfinite(array).all():
        result.differences.append(f"{where}: found NaN or infinity, expected finite numbers")
        return 0.0
    found = describe_features(array)
    return result.expect_near(
        where,
        [found.mean, found.std, *found.samples],
        [expected.mean, expected.std, *expected.samples],
        expected.std,
        tolerance,
    )


def _compare_answer(
    result: Comparison, where: str, run: AnswerRun, expected: GoldenAnswer, tolerance: float
) -> list[float]:
    found, compared = run.generation, expected.compared_tokens
    shares = [
        _compare_logits(
            result, f"{where}, logits of step {row.step}", run.steps[row.step], row, tolerance
        )
        for row in expected.logits
        # Logits of other tokens' context say nothing.
        if found.token_ids[: row.step] == expected.token_ids[: row.step]
        and row.step < len(run.steps)
    ]
    result.expect(f"{where}, tokens", found.token_ids[:compared], expected.token_ids[:compared])
    if expected.compares_text:
        result.expect(f"{where}, text", found.text, expected.text)
        result.expect(f"{where}, finish_reason", found.finish_reason, expected.finish_reason)
    return shares


def _compare_logits(
    result: Comparison, where: str, logits: FloatArray, expected: GoldenLogits, tolerance: float
) -> float:
    return result.expect_near(
        where,
        # A file that a stranger made may name any token.
        [float(logits[e.id]) if e.id < len(logits) else float("nan") for e in expected.top],
        [entry.logit for entry in expected.top],
        expected.std,
        tolerance,
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
