"""CoreML's vision encoder and projector: every node taken, and the same features as in fp32.

What Core ML itself does with them, only a Mac can tell.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from random_checkpoint import LanguageSize, write_random_checkpoint
from relative_error import relative_error

import fastvlm_onnx
from fastvlm_onnx import UnsupportedError
from fastvlm_onnx.cli import main
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.graphs.fixed_shapes import fix_axes
from fastvlm_onnx.export.graphs.projector import build_projector
from fastvlm_onnx.export.graphs.vision_encoder import build_vision_encoder
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.coreml_check import check_graph, check_package
from fastvlm_onnx.names import BATCH_SIZE, NUM_IMAGE_TOKENS
from fastvlm_onnx.package import read_manifest

# The built-in model has the same architecture in miniature.
FULL_SIZE = pytest.param("full-size FastViTHD", marks=pytest.mark.slow)

# ‖a - b‖ / ‖b‖ of float16 against float32, over all of FastViTHD; 1.0e-3 was measured at full size,
# and 2.8e-3 on the built-in model, in the variant fp16 too.
FULL_SIZE_TOLERANCE, DEMO_TOLERANCE = 2e-3, 6e-3


@pytest.fixture(scope="module", params=["demo", FULL_SIZE])
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    small_language: LanguageSize,
) -> Path:
    folder = tmp_path_factory.mktemp("coreml")
    source: str | Path = "demo"
    if request.param != "demo":
        source = folder / "full-size"
        write_random_checkpoint(source, small_language, image_size=256)
    export_package(source, folder / "coreml-onnx", precisions=["fp32", "coreml"])
    return folder / "coreml-onnx"


def test_every_node_is_taken(folder: Path) -> None:
    coverages = [c for c in check_package(folder) if ".coreml." in c.file]
    assert len(coverages) == 2
    for coverage in coverages:
        assert coverage.taken == coverage.nodes > 0, coverage.refused


def test_features_are_those_of_fp32(folder: Path, picture: Path) -> None:
    found, expected = (fastvlm_onnx.load(folder, precision=p) for p in ("coreml", "fp32"))
    pixel_values = np.random.default_rng(8).random((1, 3, 256, 256), np.float32)
    # Smooth, as pictures are: noise alone averages out in the stem.
    pixel_values = pixel_values[:, :, ::32, ::32].repeat(32, 2).repeat(32, 3)
    stages = [
        (encoder.run_vision_encoder(pixel_values), encoder.encode_pixel_values(pixel_values))
        for encoder in (found.image_encoder, expected.image_encoder)
    ]
    is_full_size = (folder.parent / "full-size").exists()
    tolerance = FULL_SIZE_TOLERANCE if is_full_size else DEMO_TOLERANCE
    for ours, theirs in zip(*stages, strict=True):
        assert relative_error(ours, theirs) < tolerance


def test_shapes_are_numbers_and_weights_are_inside(folder: Path) -> None:
    variant = read_manifest(folder).variants["coreml"]
    for name in (variant.vision_encoder["256"], variant.projector):
        model = onnx.load(folder / name, load_external_data=False)
        onnx.checker.check_model(model)
        for value in (*model.graph.input, *model.graph.output):
            axes = [d.dim_value for d in value.type.tensor_type.shape.dim]
            assert axes[0] == 1
            assert all(axes)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        # A matrix in float32 would keep its node off the Neural Engine.
        assert all(
            tensor.data_type == TensorProto.FLOAT16
            for tensor in model.graph.initializer
            if len(tensor.dims) > 1
        )


def test_every_node_is_taken_as_onnx_runtime_rewrites_it(tmp_path: Path) -> None:
    """Providers see the graph after basic optimisations.

    In float32, since on the CPU they would wrap each float16 node in casts.
    """
    checkpoint = open_checkpoint("demo")
    weights, config = Weights(checkpoint.tensors), checkpoint.config
    vision, projector = (weights / name.rstrip(".") for name in (VISION_PREFIX, PROJECTOR_PREFIX))
    written = tmp_path / "written.onnx"
    for model in (
        build_vision_encoder(vision, config.vision, 256),
        build_projector(projector, config),
    ):
        ir.save(fix_axes(model, {BATCH_SIZE: 1, NUM_IMAGE_TOKENS: 16}), written)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "seen.onnx")
        onnxruntime.InferenceSession(written, options)
        for path in (written, tmp_path / "seen.onnx"):
            coverage = check_graph(path)
            assert coverage.taken == coverage.nodes, coverage.refused


def test_the_target_names_the_variant(tmp_path: Path) -> None:
    main(["export", "demo", "-o", str(tmp_path / "onnx"), "--target", "coreml"])
    assert list(read_manifest(tmp_path / "onnx").variants) == ["coreml"]


def test_two_image_sizes_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="are 128, 192, and a projector for CoreML has one"):
        export_package(checkpoint, tmp_path / "onnx", precisions=["coreml"], image_sizes=[128, 192])
    assert not (tmp_path / "onnx").exists()


# --- what is refused, and why --------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., dict[str, int]]:
    """The check's reason for one node over float inputs x [1, 4, 6, 6] and y [1, 4, 6, 6]."""

    def check(op_type: str, *constants: np.ndarray, **attributes: object) -> dict[str, int]:
        names = [f"constant{i}" for i in range(len(constants))]
        fed = ["x"] if constants else ["x", "y"]
        domain = str(attributes.pop("domain", ""))
        shape = attributes.pop("shape", [1, 4, 6, 6])
        dtype = attributes.pop("dtype", TensorProto.FLOAT)
        node = helper.make_node(op_type, [*fed, *names], ["z"], domain=domain, **attributes)
        graph = helper.make_graph(
            [node],
            "graph",
            [helper.make_tensor_value_info(name, dtype, shape) for name in fed],
            [helper.make_value_info("z", helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
            [onnx.numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True)],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "node.onnx")
        return dict(check_graph(tmp_path / "node.onnx").refused)

    return check


def test_a_node_that_fits_is_taken(refused) -> None:
    assert refused("Add") == {}
    assert refused("Reshape", np.array([1, 4, 36])) == {}


def test_an_operator_that_is_not_listed_is_refused(refused) -> None:
    assert refused("Less") == {"Less: not an operator of CoreML's": 1}


def test_a_symbolic_axis_is_refused(refused) -> None:
    found = refused("Add", shape=["batch_size", 4, 6, 6])
    assert found == {"Add: batch_size of input 0 is not fixed": 1}


def test_an_unknown_shape_is_refused(refused) -> None:
    assert refused("Add", shape=None) == {"Add: the shape of input 0 is unknown": 1}


def test_another_domains_operator_of_the_same_name_is_refused(refused) -> None:
    found = refused("Gelu", np.ones(1, np.float32), domain="com.microsoft")
    assert found == {"Gelu: version 1, expected 6 to 27": 1}


def test_a_computed_input_that_must_be_constant_is_refused(refused) -> None:
    found = refused("Clip")
    assert found == {"Clip: input 1 is not constant": 1}


def test_a_type_that_is_not_taken_is_refused(refused) -> None:
    found = refused("Add", dtype=TensorProto.BFLOAT16)
    assert found == {"Add: input 0 is BFLOAT16, expected FLOAT or FLOAT16 or INT64": 1}


def test_too_many_axes_are_refused(refused) -> None:
    assert refused("Add", shape=[1] * 6) == {"Add: rank 6, at most 5": 1}


def test_a_long_axis_is_refused_for_convolutions_alone(refused) -> None:
    shape, kernel = [1, 1, 1, 20_000], np.ones((1, 1, 1, 1), np.float32)
    assert refused("Conv", kernel, shape=shape) == {"Conv: an axis is longer than 16384": 1}
    assert refused("Add", shape=shape) == {}


def test_an_attribute_that_is_not_taken_is_refused(refused) -> None:
    norm = np.ones(6, np.float32)
    assert refused("LayerNormalization", norm, norm) == {}
    found = refused("LayerNormalization", norm, norm, stash_type=10)
    assert found == {"LayerNormalization: expected stash_type=1": 1}
