"""The table of variants: a new row is a new variant everywhere, and every place knows each row."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import fastvlm_onnx
from fastvlm_onnx.cli import cli
from fastvlm_onnx.export.graphs.decoder_precisions import DECODER_PRECISIONS
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.variants import DECODER_OPERATORS, VISION_PRECISIONS
from fastvlm_onnx.export.verification.verify import verify_package
from fastvlm_onnx.package import parse_version, read_manifest
from fastvlm_onnx.runtime.loading import choose_variant
from fastvlm_onnx.runtime.ort import provider_selection, providers
from fastvlm_onnx.runtime.ort.provider_selection import (
    AUTO_RULES,
    GRAPHS,
    assign_providers,
    parse_providers,
)
from fastvlm_onnx.runtime.ort.providers import CPU, PROVIDERS
from fastvlm_onnx.variants import (
    CPU_VARIANTS,
    OPERATOR_SETS,
    QDQ_TARGET,
    TARGETS,
    VARIANTS,
    WEB_TARGET,
    VariantSpec,
    variants_for_provider,
    variants_for_target,
)

ROOT = Path(__file__).resolve().parents[2]
every_variant = pytest.mark.parametrize("spec", VARIANTS.values(), ids=list(VARIANTS))


@every_variant
def test_the_exporter_builds_every_graph_precision(spec: VariantSpec) -> None:
    assert spec.vision_precision in VISION_PRECISIONS
    assert {spec.decoder_precision, spec.prefill_precision or spec.decoder_precision} <= set(
        DECODER_PRECISIONS
    )
    assert set(spec.operator_sets) <= set(OPERATOR_SETS) == set(DECODER_OPERATORS)


def test_no_graph_precision_is_without_a_variant() -> None:
    rows = VARIANTS.values()
    decoders = {p for spec in rows for p in (spec.decoder_precision, spec.prefill_precision) if p}
    assert {spec.vision_precision for spec in rows} == set(VISION_PRECISIONS)
    assert decoders == set(DECODER_PRECISIONS)


@every_variant
def test_the_providers_and_targets_of_a_variant_exist(spec: VariantSpec) -> None:
    assert set(spec.providers) <= set(PROVIDERS)
    assert set(spec.targets) <= {"cpu", *TARGETS}
    providers_of = {target: "cpu" if target == WEB_TARGET else target for target in spec.targets}
    assert all(spec.name in variants_for_provider(name) for name in providers_of.values())


@every_variant
def test_auto_runs_a_variant_where_its_target_is_installed(
    spec: VariantSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in set(spec.targets) - {WEB_TARGET}:
        ep = PROVIDERS[target].ep
        monkeypatch.setattr(provider_selection, "usable_providers", lambda ep=ep: [ep, CPU])
        choices = assign_providers({}, spec.name)
        assert ep in {choices[graph].ep for graph in GRAPHS}


def test_auto_chooses_the_variants_of_every_target() -> None:
    rules = {(rule.provider, rule.variants) for rule in AUTO_RULES}
    for target in set(TARGETS) - {WEB_TARGET}:
        assert (target, variants_for_target(target)) in rules
    assert ("cpu", ()) in rules


def test_the_target_of_browsers_has_a_variant_of_its_own() -> None:
    assert variants_for_target(WEB_TARGET) == ("web",)
    assert WEB_TARGET not in PROVIDERS


@every_variant
def test_verify_has_a_tolerance_for_a_variant(spec: VariantSpec) -> None:
    tolerance = spec.tolerance
    assert 0 < tolerance.relative_error < 1
    assert 0 < tolerance.kl_divergence < 1
    assert 0 < tolerance.cosine < 1
    assert 0 < tolerance.argmax_agreement <= 1


def test_the_help_of_export_describes_every_variant() -> None:
    text = CliRunner().invoke(cli, ["export", "--help"]).stdout
    for spec in VARIANTS.values():
        assert " ".join((spec.name, spec.description)) in " ".join(text.split())
    assert f"[{'|'.join((*TARGETS, QDQ_TARGET))}]" in text


def test_doctor_names_the_variants_of_every_rule() -> None:
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    for rule in AUTO_RULES:
        assert f"of {', '.join(rule.variants) or 'any variant'}: {rule.reason}" in text


def test_the_pages_name_every_variant() -> None:
    for page in ("format.md", "quantisation.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert not [name for name in VARIANTS if f"`{name}`" not in text], page


@pytest.fixture(scope="module")
def every_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of every variant, by set of operators."""
    folders = {}
    for operators in OPERATOR_SETS:
        folders[operators] = tmp_path_factory.mktemp("every-variant") / operators
        names = [s.name for s in VARIANTS.values() if operators in s.operator_sets]
        export_package("demo", folders[operators], precisions=names, operators=operators)
    return folders


@every_variant
def test_the_graphs_need_the_onnxruntime_of_their_row(
    spec: VariantSpec, every_package: dict[str, Path]
) -> None:
    for operators in spec.operator_sets:
        manifest = read_manifest(every_package[operators])
        variant = manifest.variants[spec.name]
        assert manifest.least_onnxruntime(variant) == spec.least_onnxruntime
        assert manifest.decoder.operators == operators


def test_one_new_row_is_a_variant_everywhere(
    tmp_path: Path, picture: Path, questions: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(
        VARIANTS["fp32"],
        name="trial",
        vision_precision="fp16",
        has_int8_embeddings=True,
        providers={"cpu": 0},
        tolerance=VARIANTS["int8"].tolerance,
    )
    monkeypatch.setitem(VARIANTS, "trial", row)
    folder = tmp_path / "trial-onnx"
    manifest = export_package("demo", folder, precisions=["fp32", "trial"], verify=verify_package)
    assert manifest.measured["trial"].outside == []
    assert manifest.measured["trial"].tolerance == row.tolerance
    with fastvlm_onnx.load(folder) as model:
        assert model.precision == "trial"
        for prompt, answer in questions[picture.name].items():
            assert model.generate(picture, prompt).text == answer


# --- the oldest ONNX Runtime ---------------------------------------------------------------------


@pytest.fixture
def fake_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give ONNX Runtime another version string; the library itself stays."""

    def fake(version: str) -> None:
        monkeypatch.setattr(providers.import_onnxruntime(), "__version__", version)

    return fake


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.20.0", "fp32"),
        ("1.21.1", "fp32"),
        ("1.22.0", "int4"),
        ("1.23.0", "fast"),
        ("1.100.0", "fast"),
    ],
)
def test_auto_passes_over_variants_that_a_faked_old_version_cannot_run(
    every_package: dict[str, Path], fake_version: Callable[[str], None], version: str, expected: str
) -> None:
    fake_version(version)
    folder = every_package["microsoft"]
    assert choose_variant(read_manifest(folder), None, folder, parse_providers("cpu")) == expected


@pytest.mark.parametrize(
    ("operators", "precision", "version", "words"),
    [
        ("microsoft", "fast", "1.22.1", "ONNX Runtime is 1.22.1, and fast needs at least 1.23"),
        ("microsoft", "int4", "1.21.0", "and int4 needs at least 1.22; run `pip install -U"),
        ("standard", "fp32", "1.19.2", "ONNX Runtime is 1.19.2, expected at least 1.20"),
        ("microsoft", "fp32", "1.19.2", "ONNX Runtime is 1.19.2, expected at least 1.20"),
    ],
)
def test_a_faked_old_version_is_refused_with_the_version_to_install(
    every_package: dict[str, Path],
    fake_version: Callable[[str], None],
    operators: str,
    precision: str | None,
    version: str,
    words: str,
) -> None:
    fake_version(version)
    with pytest.raises(fastvlm_onnx.ProviderError) as caught:
        fastvlm_onnx.load(every_package[operators], precision=precision)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verify_refuses_a_faked_old_version_before_the_reference_runs(
    every_package: dict[str, Path],
    fake_version: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_version("1.20.0")
    with pytest.raises(fastvlm_onnx.ProviderError, match=r"and int4 needs at least 1\.22"):
        verify_package(every_package["microsoft"], "demo", precisions=["int4"])


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("1.9.3") < parse_version("1.20.0") < parse_version("1.100")
    assert set(CPU_VARIANTS) == set(variants_for_target("cpu"))
