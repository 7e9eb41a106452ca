"""How far a package is from PyTorch: the records, and the tables that people read.

The manifest, the package's card and `verify` hold and show the same records. Standard library
only; the measurement itself is not known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastvlm_onnx.names import IMAGE_FEATURES, IMAGE_HIDDEN_STATES, LOGITS, PIXEL_VALUES

LARGEST_FLOAT16 = 65_504


@dataclass(frozen=True)
class Tolerance:
    """The largest difference from PyTorch that is accepted.

    Attributes:
        relative_error: the largest accepted error of each stage after pixel_values, which must be
            exact.
        cosine: the smallest accepted cosine of these stages.
        kl_divergence: the largest accepted mean over a prompt's steps, in nats.
        argmax_agreement: the smallest accepted share of the steps of all prompts. Where the
            reference itself hardly decides between two tokens, either token agrees.
    """

    relative_error: float
    cosine: float
    kl_divergence: float
    argmax_agreement: float


@dataclass(frozen=True)
class StageAgreement:
    """The worst figures of one stage over all pictures (over all prompts for the logits).

    Attributes:
        stage: pixel_values, image_hidden_states, image_features or logits.
        relative_error: ‖package - reference‖ / ‖reference‖; None when it is not finite.
        cosine: the cosine of the angle between package and reference; None when it is not finite.
    """

    stage: str
    relative_error: float | None
    cosine: float | None


@dataclass(frozen=True)
class PromptAgreement:
    """The answer to one prompt; both sides were fed the tokens that the reference chose.

    Attributes:
        picture: the picture's file name.
        prompt: the user's prompt.
        steps: the number of compared tokens: the asked number, or the reference's whole answer.
        agreeing_steps: the number of steps at which both sides prefer the same token.
        tied_steps: the number of other steps at which the reference itself hardly decides.
        kl_divergence: KL divergence of the package's distribution from the reference's, in nats,
            the mean over the steps; None when it is not finite.
        max_kl_divergence: the largest KL divergence of a step; None when it is not finite.
        first_difference: the first step, counted from 1, at which the preferred tokens differ;
            None when all agree.
        reference_gap: the reference's largest logit at the first difference less its second
            largest; None when all agree.
    """

    picture: str
    prompt: str
    steps: int
    agreeing_steps: int
    tied_steps: int
    kl_divergence: float | None
    max_kl_divergence: float | None
    first_difference: int | None
    reference_gap: float | None


@dataclass(frozen=True)
class VariantAgreement:
    """One variant of a package against PyTorch.

    Attributes:
        reference: the libraries that ran the reference, with their versions.
        runtime: the library that ran the variant, with its version.
        image_size: side of the square input in pixels.
        largest_activations: the largest magnitude inside each graph, in the reference's float32.
        stages: the figures of each stage.
        prompts: the figures of each prompt.
        tolerance: the largest accepted difference when the variant was measured.
        processor: name of the processor that ran the variant; None where it was not recorded.
        processor_features: the processor's features that the variant's products depend on, as
            Linux names them; empty where they were not recorded.
        onnxruntime: version of ONNX Runtime; None where it was not recorded.
        kl_divergence_99: the 99th percentile of the KL divergences of all steps, in nats; None
            when a divergence is not finite, and where it was not recorded.
    """

    reference: str
    runtime: str
    image_size: int
    largest_activations: dict[str, float]
    stages: list[StageAgreement]
    prompts: list[PromptAgreement]
    tolerance: Tolerance
    processor: str | None = None
    processor_features: list[str] = field(default_factory=list)
    onnxruntime: str | None = None
    kl_divergence_99: float | None = None

    @property
    def steps(self) -> int:
        """The number of compared tokens of all prompts."""
        return sum(prompt.steps for prompt in self.prompts)

    @property
    def agreeing_steps(self) -> int:
        """The number of steps of all prompts at which both sides prefer the same token."""
        return sum(prompt.agreeing_steps for prompt in self.prompts)

    @property
    def tied_steps(self) -> int:
        """The number of other steps at which the reference itself hardly decides."""
        return sum(prompt.tied_steps for prompt in self.prompts)

    @property
    def kl_divergence(self) -> float | None:
        """The mean KL divergence over the steps of all prompts; None when it is not finite."""
        sums = [p.kl_divergence * p.steps for p in self.prompts if p.kl_divergence is not None]
        return sum(sums) / self.steps if len(sums) == len(self.prompts) else None

    @property
    def max_kl_divergence(self) -> float | None:
        """The largest KL divergence of a step; None when it is not finite."""
        known = [p.max_kl_divergence for p in self.prompts if p.max_kl_divergence is not None]
        return max(known) if len(known) == len(self.prompts) else None

    @property
    def outside(self) -> list[str]:
        """One message for each violated tolerance."""
        found: list[str] = []
        for row in self.stages:
            # Pictures become pixels by the same integer arithmetic in every variant.
            allowed = 0.0 if row.stage == PIXEL_VALUES else self.tolerance.relative_error
            if row.relative_error is None or row.relative_error > allowed:
                error = _number(row.relative_error)
                found.append(f"{row.stage}: relative error {error}, at most {allowed:g}")
            elif row.cosine is None or row.cosine < self.tolerance.cosine:
                found.append(
                    f"{row.stage}: cosine {_cosine(row.cosine)}, at least {self.tolerance.cosine:g}"
                )
        for prompt in self.prompts:
            divergence, most = prompt.kl_divergence, self.tolerance.kl_divergence
            if divergence is None or divergence > most:
                found.append(
                    f"{prompt.picture}, {prompt.prompt!r}: KL divergence {_number(divergence)}, "
                    f"at most {most:g}"
                )
        agreeing = self.agreeing_steps + self.tied_steps
        if agreeing < self.tolerance.argmax_agreement * self.steps:
            found.append(
                f"same first choice at {agreeing} of {self.steps} steps, "
                f"at least {self.tolerance.argmax_agreement:.0%}"
            )
        return found


@dataclass(frozen=True)
class Agreement:
    """The agreement of the measured variants, by variant."""

    variants: dict[str, VariantAgreement]

    @property
    def outside(self) -> list[str]:
        """One message for each violated tolerance, with the variant's name."""
        return [
            f"{precision}: {found}"
            for precision, variant in self.variants.items()
            for found in variant.outside
        ]


# The same words head the tables of the benchmarks.
DIVERGENCE_COLUMNS = ("KL divergence, mean", "99th percentile", "largest")
FIRST_CHOICE_COLUMN = "same first choice"


def first_choice_sentence(name: str, steps: int, agreeing_steps: int, tied_steps: int = 0) -> str:
    """Return how often a variant prefers another token than its reference, as a sentence.

    Args:
        name: the variant's name.
        steps: the number of compared tokens.
        agreeing_steps: the number of steps at which both sides prefer the same token.
        tied_steps: the number of other steps at which the reference itself hardly decides.
    """
    changed = steps - agreeing_steps
    if not changed:
        return f"{name} changed no first choice of {steps}."
    ties = f", {tied_steps} of them between tokens that the reference ties" if tied_steps else ""
    return (
        f"{name} changes 1 first choice in {round(steps / changed)} ({changed} of {steps}{ties})."
    )


def first_choice_lines(variants: Mapping[str, VariantAgreement]) -> str:
    """Return a list with a sentence for each variant: how often its first choice changed."""
    return "\n".join(
        "- " + first_choice_sentence(name, found.steps, found.agreeing_steps, found.tied_steps)
        for name, found in variants.items()
    )


def summary_table(variants: Mapping[str, VariantAgreement]) -> str:
    """Return a table with a row for each variant: errors of its stages, and of its answers."""
    stages = {
        "vision encoder": IMAGE_HIDDEN_STATES,
        "projector": IMAGE_FEATURES,
        "logits": LOGITS,
    }
    rows = []
    for precision, variant in variants.items():
        errors = {row.stage: _number(row.relative_error) for row in variant.stages}
        rows.append(
            (
                precision,
                *(errors.get(stage, "") for stage in stages.values()),
                _number(variant.kl_divergence),
                _percentile(variant),
                _number(variant.max_kl_divergence),
                f"{variant.agreeing_steps} of {variant.steps}",
            )
        )
    header = ("precision", *(f"{name}: relative error" for name in stages))
    return _table((*header, *DIVERGENCE_COLUMNS, FIRST_CHOICE_COLUMN), rows)


def agreement_table(variants: Mapping[str, VariantAgreement]) -> str:
    """Return all figures as Markdown that also reads well in a terminal."""
    stages = [
        (precision, row.stage, _number(row.relative_error), _cosine(row.cosine))
        for precision, variant in variants.items()
        for row in variant.stages
    ]
    prompts = [
        (
            precision,
            row.picture,
            row.prompt,
            f"{row.agreeing_steps} of {row.steps}",
            _number(row.kl_divergence),
            _number(row.max_kl_divergence),
            "none" if row.first_difference is None else str(row.first_difference),
            "" if row.first_difference is None else _number(row.reference_gap),
        )
        for precision, variant in variants.items()
        for row in variant.prompts
    ]
    return "\n\n".join(
        [
            summary_table(variants),
            first_choice_lines(variants),
            _table(("precision", "stage", "relative error", "cosine"), stages),
            _table(
                (
                    "precision",
                    "picture",
                    "prompt",
                    FIRST_CHOICE_COLUMN,
                    "KL divergence, mean",
                    "largest",
                    "first step that differs",
                    "reference's top-2 gap there",
                ),
                prompts,
            ),
            *dict.fromkeys(map(_activations, variants.values())),
            *([machines] if (machines := machine_lines(variants)) else []),
            "\n".join(
                f"- {_verdict(precision, variant)}" for precision, variant in variants.items()
            ),
        ]
    )


def machine_lines(variants: Mapping[str, VariantAgreement]) -> str:
    """Return a line for each machine that measured variants; empty where none was recorded."""
    measured: dict[str, list[str]] = {}
    for name, variant in variants.items():
        if variant.processor:
            features = f" ({', '.join(found)})" if (found := variant.processor_features) else ""
            machine = f"{variant.processor}{features}, {variant.runtime}"
            measured.setdefault(machine, []).append(name)
    return "\n".join(
        f"Measured on {machine}: {', '.join(names)}." for machine, names in measured.items()
    )


def _verdict(precision: str, variant: VariantAgreement) -> str:
    tolerance = variant.tolerance
    allowed = (
        f"allowed: relative error {tolerance.relative_error:g}, cosine {tolerance.cosine:g}, "
        f"KL divergence {tolerance.kl_divergence:g}, "
        f"same first choice {tolerance.argmax_agreement:.0%}"
    )
    outside = "; ".join(variant.outside)
    found = f"outside tolerance: {outside}" if outside else "within tolerance"
    return (
        f"{precision}: {found} ({allowed}; {variant.runtime} against {variant.reference}, "
        f"{variant.image_size} pixels)."
    )


def _activations(variant: VariantAgreement) -> str:
    found = ", ".join(
        f"{graph} {value:,.0f}" for graph, value in variant.largest_activations.items()
    )
    return f"Largest activations: {found or 'unknown'}; float16 ends at {LARGEST_FLOAT16:,}."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def _percentile(variant: VariantAgreement) -> str:
    # Packages that an earlier version verified hold no percentile.
    is_unknown = variant.kl_divergence_99 is None and variant.kl_divergence is not None
    return "not recorded" if is_unknown else _number(variant.kl_divergence_99)


def _cosine(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, *([_cell(text) for text in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (n + 2) for n in widths) + "|", *lines[1:]])


def _cell(text: str) -> str:
    """Return a text that cannot end its cell or its row."""
    return " ".join(text.split()).replace("|", "\\|")
