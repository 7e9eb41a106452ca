"""OpenVINO's graphs: static int8 vision, and a stateful language model with compressed weights."""

from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from openvino import opset15 as ops
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig
from peers.job import Job, unfinished
from peers.pictures import draw_picture
from safetensors import safe_open

CALIBRATION_PICTURES = 8
GROUP_SIZE = 128


def convert(job: Job) -> None:
    """Convert the vision graph and the language model, each at every precision."""
    if not job.openvino_vision.exists():
        with unfinished(job.openvino_vision) as folder:
            _convert_vision(job, folder)
    if not job.openvino_language.exists():
        with unfinished(job.openvino_language) as folder:
            _convert_language(job.language, folder)


def _convert_vision(job: Job, folder: Path) -> None:
    """Write the fp32 graphs of this project, and the same graphs quantised with nncf's defaults."""
    shape = [1, 3, job.image_size, job.image_size]
    encoder = ov.convert_model(job.package / f"vision_encoder.{job.image_size}.fp32.onnx")
    encoder.reshape(shape)
    projector = ov.convert_model(job.package / "projector.fp32.onnx")
    projector.reshape(encoder.output(0).partial_shape)
    # Join vision encoder and projector into one graph.
    entry = projector.get_parameters()[0]
    for consumer in entry.output(0).get_target_inputs():
        consumer.replace_source_output(encoder.output(0).get_node().input_value(0))
    model = ov.Model(projector.outputs, encoder.get_parameters(), "vision")
    ov.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    pictures = [draw_picture(job.image_size, seed) for seed in range(1, 1 + CALIBRATION_PICTURES)]
    quantized = nncf.quantize(
        ov.Core().read_model(folder / "fp32.xml"),
        nncf.Dataset(pictures),
        subset_size=len(pictures),
    )
    ov.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def _convert_language(source: Path, folder: Path) -> None:
    """Write the language model in fp32, nncf-compressed copies, and the token embeddings."""
    export_language(source, folder)
    for name, options in {
        "int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
        "int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": GROUP_SIZE},
    }.items():
        fp32 = ov.Core().read_model(folder / "fp32.xml")
        ov.save_model(
            nncf.compress_weights(fp32, **options), folder / f"{name}.xml", compress_to_fp16=False
        )
    write_embeddings(source, folder)


def export_language(source: Path, folder: Path) -> None:
    """Write fp32.xml: optimum-intel's stateful export with inputs_embeds and the last logits."""
    main_export(
        str(source),
        str(folder / "exported"),
        task="text-generation-with-past",
        stateful=True,
        ov_config=OVConfig(dtype="fp32"),
        convert_tokenizer=False,
    )
    model = ov.Core().read_model(folder / "exported/openvino_model.xml")
    _take_embeddings(model)
    _keep_last_logits(model)
    ov.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    del model
    for file in sorted((folder / "exported").iterdir()):
        file.unlink()
    (folder / "exported").rmdir()


def _take_embeddings(model: ov.Model) -> None:
    """Replace the embedding lookup of token ids with the input inputs_embeds."""
    input_ids = model.input("input_ids")
    (lookup,) = (
        node
        for node in model.get_ops()
        if node.get_type_name() == "Gather" and "embed_tokens" in node.get_friendly_name()
    )
    shape = ov.PartialShape([-1, -1, lookup.output(0).partial_shape[2]])
    inputs_embeds = ops.parameter(shape, ov.Type.f32, name="inputs_embeds")
    inputs_embeds.output(0).set_names({"inputs_embeds"})
    # The graph reads the batch size from the shape of input_ids; inputs_embeds has the same axis.
    for consumer in list(input_ids.get_target_inputs()):
        if consumer.get_node().get_type_name() == "ShapeOf":
            consumer.replace_source_output(inputs_embeds.output(0))
    for consumer in list(lookup.output(0).get_target_inputs()):
        consumer.replace_source_output(inputs_embeds.output(0))
    model.remove_parameter(input_ids.get_node())
    model.add_parameters([inputs_embeds])
    model.validate_nodes_and_infer_types()


def _keep_last_logits(model: ov.Model) -> None:
    """Run lm_head on the last position only, as openvino-genai does when it loads a graph."""
    head = model.output("logits").get_node().input_value(0).get_node()
    last = ops.gather(
        head.input_value(0), ops.constant(np.array([-1], np.int64)), ops.constant(np.int64(1))
    )
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def write_embeddings(source: Path, folder: Path) -> None:
    """Write token embeddings for memory mapping: float32, and int8 with a scale for each row."""
    with safe_open(source / "model.safetensors", framework="pt") as file:
        rows = file.get_tensor("model.embed_tokens.weight").float().numpy()
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    np.save(folder / "embed_tokens.fp32.npy", rows)
    np.save(folder / "embed_tokens.int8.npy", np.rint(rows / scales).astype(np.int8))
    np.save(folder / "embed_tokens.scale.npy", scales)
