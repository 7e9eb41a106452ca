"""Records of an agreement: the verdict, the tables, and reading them back strictly."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fastvlm_onnx import PackageError
from fastvlm_onnx.agreement import (
    Agreement,
    PromptAgreement,
    StageAgreement,
    Tolerance,
    VariantAgreement,
    agreement_table,
    first_choice_lines,
    first_choice_sentence,
    machine_lines,
    summary_table,
)
from fastvlm_onnx.package import read_manifest

EditJson = Callable[[Path, Callable[[dict], None]], None]


@pytest.fixture
def measured() -> VariantAgreement:
    """One figure of each kind, all of them within the tolerance."""
    return VariantAgreement(
        largest_activations={"decoder": 1.2e5},
        reference="PyTorch 2",
        runtime="ONNX Runtime 1",
        image_size=256,
        stages=[StageAgreement("pixel_values", 0.0, 1.0), StageAgreement("logits", 0.01, 0.999)],
        prompts=[PromptAgreement("a.png", "Why?", 10, 8, 1, 0.02, 0.1, 3, 0.5)],
        tolerance=Tolerance(0.01, 0.999, 0.02, 0.9),
    )


def test_figures_at_the_tolerance_are_within_it(measured: VariantAgreement) -> None:
    assert measured.outside == []
    assert "- fp32: within tolerance (allowed: " in agreement_table({"fp32": measured})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"stages": [StageAgreement("pixel_values", 1e-9, 1.0)]},
            "pixel_values: relative error 1.0e-09, at most 0",
        ),
        (
            {"stages": [StageAgreement("logits", 0.011, 1.0)]},
            "logits: relative error 1.1e-02, at most 0.01",
        ),
        (
            {"stages": [StageAgreement("logits", None, None)]},
            "logits: relative error not finite, at most 0.01",
        ),
        (
            {"stages": [StageAgreement("logits", 0.0, 0.9)]},
            "logits: cosine 0.900000, at least 0.999",
        ),
        (
            {"prompts": [PromptAgreement("a.png", "Why?", 10, 10, 0, 0.03, 0.03, None, None)]},
            "a.png, 'Why?': KL divergence 3.0e-02, at most 0.02",
        ),
        (
            {"prompts": [PromptAgreement("a.png", "Why?", 10, 7, 1, 0.0, 0.0, 1, 0.5)]},
            "same first choice at 8 of 10 steps, at least 90%",
        ),
    ],
)
def test_each_figure_outside_is_named(
    measured: VariantAgreement, change: dict[str, Any], expected: str
) -> None:
    changed = replace(measured, **change)
    assert changed.outside == [expected]
    assert Agreement({"int8": changed}).outside == [f"int8: {expected}"]
    assert f"- int8: outside tolerance: {expected} (" in agreement_table({"int8": changed})


def test_the_share_of_same_first_choices_is_of_all_prompts_together(
    measured: VariantAgreement,
) -> None:
    good, bad = (PromptAgreement("a.png", "Why?", 90, n, 0, 0.0, 0.0, None, None) for n in (90, 75))
    assert replace(measured, prompts=[bad, good]).outside == []


def test_the_table_has_a_row_for_each_figure(measured: VariantAgreement) -> None:
    lines = [re.sub(" +", " ", line) for line in agreement_table({"int8": measured}).splitlines()]
    assert "| int8 | pixel_values | 0 | 1.000000 |" in lines
    assert "| int8 | logits | 1.0e-02 | 0.999000 |" in lines
    assert "| int8 | a.png | Why? | 8 of 10 | 2.0e-02 | 1.0e-01 | 3 | 5.0e-01 |" in lines


def test_the_summary_is_over_the_steps_of_all_prompts(measured: VariantAgreement) -> None:
    (prompt,) = measured.prompts
    longer = replace(prompt, steps=30, agreeing_steps=30, kl_divergence=0.04, max_kl_divergence=0.3)
    changed = replace(measured, prompts=[prompt, longer], kl_divergence_99=0.2)
    variants = {"int8": changed}
    row = re.sub(" +", " ", summary_table(variants).splitlines()[2])
    assert row == "| int8 | | | 1.0e-02 | 3.5e-02 | 2.0e-01 | 3.0e-01 | 38 of 40 |"


def test_one_divergence_that_is_not_finite_makes_the_summary_so(measured: VariantAgreement) -> None:
    (prompt,) = measured.prompts
    lost = replace(prompt, kl_divergence=None, max_kl_divergence=None)
    summary = summary_table({"int8": replace(measured, prompts=[prompt, lost])})
    assert summary.count("not finite") == 3


def test_a_percentile_that_an_earlier_version_did_not_record_is_said(
    measured: VariantAgreement,
) -> None:
    assert "| 2.0e-02 " in summary_table({"int8": measured})
    assert "| not recorded " in summary_table({"int8": measured})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((288, 288), "int4 changed no first choice of 288."),
        ((288, 276), "int4 changes 1 first choice in 24 (12 of 288)."),
        (
            (288, 276, 2),
            "int4 changes 1 first choice in 24 (12 of 288, 2 of them between tokens that the "
            "reference ties).",
        ),
        ((1, 0), "int4 changes 1 first choice in 1 (1 of 1)."),
    ],
)
def test_a_sentence_says_how_often_the_first_choice_changed(
    found: tuple[int, ...], expected: str
) -> None:
    assert first_choice_sentence("int4", *found) == expected


def test_the_tables_say_how_often_the_first_choice_changed(measured: VariantAgreement) -> None:
    line = (
        "- int8 changes 1 first choice in 5 (2 of 10, 1 of them between tokens that the reference "
        "ties)."
    )
    assert first_choice_lines({"int8": measured}) == line
    assert line in agreement_table({"int8": measured}).splitlines()


def test_machines_are_named_once_with_their_variants(measured: VariantAgreement) -> None:
    known = replace(measured, processor="EPYC", processor_features=["avx2", "avx512_vnni"])
    variants = {"fp32": known, "int8": measured, "fast": known}
    line = "Measured on EPYC (avx2, avx512_vnni), ONNX Runtime 1: fp32, fast."
    assert machine_lines(variants) == line
    assert line in agreement_table(variants)
    assert machine_lines({"int8": measured}) == ""  # as earlier versions recorded it


def test_a_prompt_cannot_break_the_table(measured: VariantAgreement) -> None:
    prompt = replace(measured.prompts[0], prompt="a|b\n# c")
    table = agreement_table({"int8": replace(measured, prompts=[prompt])})
    assert "| a\\|b # c |" in table


def test_a_manifest_gives_back_what_was_measured(
    copied_package: Path, measured: VariantAgreement
) -> None:
    manifest = replace(read_manifest(copied_package), measured={"fp32": measured})
    manifest.write(copied_package)
    assert read_manifest(copied_package) == manifest


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", "256", 'measured.fp32.image_size is "256", expected a number >= 0'),
        ("tolerance", {}, "measured.fp32.tolerance.relative_error is missing"),
        ("stages", [{"stage": "logits", "relative_error": "0", "cosine": 1}], "a finite number"),
        ("stages", [{"stage": "logits", "relative_error": 0, "cosine": True}], "cosine is true"),
        (
            "stages",
            [{"stage": "logits", "relative_error": 0, "cosine": float("nan")}],
            "NaN is no JSON number",
        ),
    ],
)
def test_measured_figures_are_read_strictly(
    copied_package: Path,
    measured: VariantAgreement,
    edit_json: EditJson,
    key: str,
    value: object,
    message: str,
) -> None:
    edit_json(
        copied_package / "fastvlm.json",
        lambda manifest: manifest.update(measured={"fp32": {**asdict(measured), key: value}}),
    )
    with pytest.raises(PackageError, match=re.escape(message)):
        read_manifest(copied_package)


def test_figures_of_a_variant_that_is_not_there_are_refused(
    copied_package: Path, measured: VariantAgreement, edit_json: EditJson
) -> None:
    edit_json(
        copied_package / "fastvlm.json",
        lambda manifest: manifest.update(measured={"int8": asdict(measured)}),
    )
    with pytest.raises(PackageError, match=r"measured\.int8 is no variant of the package"):
        read_manifest(copied_package)
