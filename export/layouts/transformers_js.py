"""A folder that transformers.js opens as AutoModelForImageTextToText; it is no package.

Each graph has a suffix for its number format, which transformers.js calls dtype, and a file of
weights beside it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE, FastVLMConfig
from fastvlm_onnx.export.checkpoint.config_reader import check_image_size
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.disk.atomic_folder import check_destination, unfinished_folder
from fastvlm_onnx.export.disk.disk_space import check_disk_space
from fastvlm_onnx.export.graphs.decoder import embedding_rows
from fastvlm_onnx.export.graphs.token_embeddings import build_token_embeddings
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.variants import build_graphs, image_encoder
from fastvlm_onnx.export.writing.graph_set import GraphSet, UnwrittenGraph
from fastvlm_onnx.export.writing.model_card import APPLE_NOTICE
from fastvlm_onnx.export.writing.package_writer import PackageWriter
from fastvlm_onnx.names import (
    CARD_FILE,
    EMBED_TOKENS,
    IMAGE_TOKEN,
    LICENSE_FILE,
    TOKENIZER_FILE,
    VISION_ENCODER,
)
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.progress import Progress, no_progress
from fastvlm_onnx.variants import VARIANTS
from fastvlm_onnx.version import __version__

# By variant: what transformers.js calls the number format, and its suffix of file names.
DTYPES: Final[Mapping[str, tuple[str, str]]] = {
    "fp32": ("fp32", ""),
    "fp16": ("fp16", "_fp16"),
    "int8": ("int8", "_int8"),
    "int4": ("q4", "_q4"),
}
GRAPHS_FOLDER: Final = "onnx"
PROCESSOR: Final = "LlavaProcessor"


def export_transformers_js(
    source: str | Path,
    destination: str | Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    image_size: int | None = None,
    base: str | Path | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Export a checkpoint for transformers.js.

    Args:
        source: a checkpoint in any form that `open_checkpoint` knows.
        destination: the folder to make, which must be empty or not exist. It appears when it is
            whole.
        precisions: names of the variants to write, keys of DTYPES; the first is the default.
        image_size: side of the square input in pixels; the checkpoint's own when None.
        base: the checkpoint that a LoRA adapter was trained on.
        allow_nonfinite: export NaN and infinity instead of refusing the checkpoint.
        progress: called with the stage, the bytes written so far and the bytes in all.

    Raises:
        CheckpointError: the checkpoint cannot be read; nothing was written.
        UnsupportedError: the checkpoint's configuration or the image size is not built.
        InputError: transformers.js cannot run a variant.
        PackageError: the destination exists or cannot be written.
    """
    destination = Path(destination).absolute()
    if precisions is None:  # `verify_package` has a default for None
        raise InputError("precisions is None; expected names of variants.")
    for name in precisions:
        if name not in DTYPES:
            raise InputError(
                f"precision is {name!r}, expected one of {', '.join(DTYPES)} with --layout "
                "transformers-js."
            )
    check_destination(destination, overwrite=False)
    checkpoint = open_checkpoint(
        source, base=base, allow_nonfinite=allow_nonfinite, progress=progress
    )
    size = image_size or checkpoint.config.vision.image_size
    check_image_size(size)
    graphs = transformers_js_graphs(checkpoint, tuple(dict.fromkeys(precisions)), size)
    writer = PackageWriter(GraphSet(graphs, [], shares_head=False, variants={}), progress)
    check_disk_space(destination.parent, writer.total_bytes, "folder")
    with unfinished_folder(destination) as folder:
        (folder / GRAPHS_FOLDER).mkdir()
        writer.write(folder / GRAPHS_FOLDER)
        with_file = [file for file, graph in graphs.items() if graph.weights_file]
        configs = transformers_js_configs(checkpoint, size, DTYPES[precisions[0]][0], with_file)
        for name, content in configs.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        license_text = checkpoint.license or APPLE_NOTICE
        (folder / LICENSE_FILE).write_text(license_text, encoding="utf-8")
        (folder / CARD_FILE).write_text(_card(checkpoint, size, precisions), encoding="utf-8")


def transformers_js_graphs(
    checkpoint: Checkpoint, variants: Sequence[str], size: int
) -> dict[str, UnwrittenGraph]:
    """Declare the three graphs of each variant, by file name.

    Raises:
        CheckpointError: a tensor is missing, surplus, or has another shape.
        UnsupportedError: the fused attention does not take heads of this width.
    """
    graph_set = build_graphs(checkpoint, variants, [size], "microsoft")
    rows = embedding_rows(Weights(checkpoint.tensors), checkpoint.config.decoder)
    embeddings = {each.file_name: each for each in graph_set.embeddings}
    graphs = {}
    for name in variants:
        spec, variant, suffix = VARIANTS[name], graph_set.variants[name], DTYPES[name][1]
        models = {
            VISION_ENCODER: image_encoder(checkpoint, spec.vision_precision, size, is_flat=False),
            EMBED_TOKENS: build_token_embeddings(
                rows, checkpoint.config.decoder, embeddings[variant.embed_tokens].dtype
            ),
            "decoder_model_merged": graph_set.graphs[variant.decoder].model,
        }
        for graph, model in models.items():
            file = f"{graph}{suffix}.onnx"
            # onnxruntime-web finds no file of weights for the body of a Scan, as in int8 vision.
            # A vision encoder is below the two gigabytes that one graph file can hold.
            has_file = graph != VISION_ENCODER
            graphs[file] = UnwrittenGraph(model, f"{file}_data" if has_file else None)
    return graphs


def transformers_js_configs(
    checkpoint: Checkpoint, size: int, dtype: str, files: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the configurations, by file name.

    Args:
        checkpoint: the checkpoint with sizes, tokenizer and prompt.
        size: side of the square input in pixels.
        dtype: the number format that is opened where the caller names none.
        files: the graph files with a file of weights beside them.
    """
    decoder = checkpoint.config.decoder
    tokenizer = json.loads(checkpoint.tokenizer)
    image_id, eos = decoder.vocab_size, list(decoder.eos_token_ids)
    texts = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    image = {"id": image_id, "content": IMAGE_TOKEN, **flags, "special": True}
    tokenizer["added_tokens"].append(image)
    return {
        TOKENIZER_FILE: tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": texts[eos[0]],
            "pad_token": texts[eos[0]],
            "model_max_length": decoder.max_position_embeddings,
            "chat_template": chat_template(checkpoint.prompt),
        },
        "config.json": {
            **_sizes(checkpoint.config),
            "image_token_index": image_id,
            "eos_token_id": eos[0],
            "transformers.js_config": {
                "dtype": dtype,
                "use_external_data_format": dict.fromkeys(files, 1),
            },
        },
        "generation_config.json": {
            "eos_token_id": eos,
            "pad_token_id": eos[0],
            "do_sample": False,
            "max_new_tokens": 256,
        },
        "preprocessor_config.json": {
            "processor_class": PROCESSOR,
            # The image processor that fits the whole image and centers it on a background.
            "image_processor_type": "VLMImageProcessor",
            "image_size": size,
            "size": {"shortest_edge": size, "longest_edge": size},
            "background_color": [0, 0, 0],
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": False,
        },
        "processor_config.json": {
            "processor_class": PROCESSOR,
            "image_token": IMAGE_TOKEN,
            "patch_size": VISION_PATCH_SIZE,
            "num_additional_image_tokens": 0,
        },
    }


def _sizes(config: FastVLMConfig) -> dict[str, Any]:
    decoder = config.decoder
    return {
        "model_type": "llava_qwen2",
        "architectures": ["LlavaQwen2ForCausalLM"],
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "head_dim": decoder.head_dim,
    }


def chat_template(prompt: PromptFormat) -> str:
    """Return the prompt's template for messages of text and images, in Jinja."""
    quote: Callable[[str], str] = json.dumps
    image = quote(IMAGE_TOKEN + prompt.after_image)
    return (
        f"{{{{ {quote(prompt.system)} }}}}"
        "{% for message in messages %}"
        f"{{% if message.role == 'assistant' %}}{{{{ {quote(prompt.assistant)} }}}}"
        f"{{% else %}}{{{{ {quote(prompt.user)} }}}}{{% endif %}}"
        "{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}"
        f"{{% if part.type == 'image' %}}{{{{ {image} }}}}"
        "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}"
        f"{{{{ {quote(prompt.end_of_turn)} }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {quote(prompt.assistant)} }}}}{{% endif %}}"
    )


def _card(checkpoint: Checkpoint, size: int, precisions: Sequence[str]) -> str:
    dtypes = [DTYPES[name][0] for name in dict.fromkeys(precisions)]
    return f"""\
---
library_name: transformers.js
pipeline_tag: image-text-to-text
---

# {checkpoint.name}, for transformers.js

FastVLM exported by fastvlm-onnx {__version__}, for {size} pixels, as {", ".join(dtypes)}.

```js
import {{ AutoModelForImageTextToText, AutoProcessor, load_image }}
  from "@huggingface/transformers";

const name = "OWNER/NAME"; // this folder on the hub
const dtype = "{dtypes[0]}";
const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name, {{ dtype }});
const content = [{{ type: "image" }}, {{ type: "text", text: "Describe the image." }}];
const prompt = processor.apply_chat_template([{{ role: "user", content }}], {{
  add_generation_prompt: true,
}});
const image = await load_image("photo.jpg");
const inputs = await processor(image, prompt, {{ add_special_tokens: false }});
const outputs = await model.generate({{ ...inputs, max_new_tokens: 100 }});
const answer = outputs.slice(null, [inputs.input_ids.dims.at(-1), null]);
console.log(processor.batch_decode(answer, {{ skip_special_tokens: true }})[0]);
```

transformers.js resizes images in another way than the checkpoint was trained with. In Node it does
not average the pixels of an image that becomes smaller, so a large photo has other pixel values
than in fastvlm-onnx. In browsers the canvas resizes, and differs less. An application that needs
the exact values gives `pixel_values`, float32 [1, 3, {size}, {size}] in 0..1, made by the
`fastvlm-onnx` client for JavaScript.

In the user's text, `{IMAGE_TOKEN}` and the names of special tokens are special tokens here.

The weights are under the licence in {LICENSE_FILE}; Apple's are for research only.
"""
