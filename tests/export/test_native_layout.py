"""transformers' own layout (`fast_vlm`): other names and fields give the same model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from native_checkpoint import write_native_checkpoint
from safetensors.numpy import load_file, save_file

import fastvlm_onnx
from fastvlm_onnx import CheckpointError, UnsupportedError
from fastvlm_onnx.export.checkpoint import chat_template
from fastvlm_onnx.export.checkpoint.layouts import PROMPT
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.package import PromptFormat

Edit = Callable[[Path, Callable[[dict], object]], None]


@pytest.fixture
def native(checkpoint: Path) -> Path:
    folder = checkpoint.with_name("native")
    write_native_checkpoint(checkpoint, folder)
    return folder


def test_both_layouts_give_the_same_model(native: Path, checkpoint: Path) -> None:
    found, expected = open_checkpoint(native), open_checkpoint(checkpoint)
    assert found.config.vision == expected.config.vision
    assert found.config.decoder.vocab_size == 739  # neither <image> nor the rows behind it
    assert found.config.decoder.eos_token_ids == expected.config.decoder.eos_token_ids
    assert found.config.decoder.rope_theta == expected.config.decoder.rope_theta
    unused = {name for name in expected.tensors if name.endswith("head.proj")}
    assert found.tensors.keys() == expected.tensors.keys() - unused
    for name, tensor in found.tensors.items():
        other = expected.tensors[name].read()
        values = tensor.read()
        if name == "model.embed_tokens.weight":
            values, other = values[:739], other[:739]
        np.testing.assert_array_equal(values, other, err_msg=name)


def test_both_layouts_give_the_same_weights_and_answers(
    tmp_path: Path, demo_checkpoint: Path, questions: dict, picture: Path
) -> None:
    write_native_checkpoint(demo_checkpoint, tmp_path / "native")
    found = export_package(tmp_path / "native", tmp_path / "native-onnx")
    expected = export_package(demo_checkpoint, tmp_path / "apple-onnx")
    weights = [n for n in expected.files if n.endswith((".data", ".npy")) and "decoder" not in n]
    assert {n: found.files[n] for n in weights} == {n: expected.files[n] for n in weights}
    assert found.prompt == expected.prompt == PROMPT
    model = fastvlm_onnx.load(tmp_path / "native-onnx")
    for prompt, answer in questions[picture.name].items():
        assert model.generate(picture, prompt).text == answer


def test_the_manifest_names_the_model_type_of_the_checkpoint(
    native: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for source, model_type in ((native, "fast_vlm"), (checkpoint, "llava_qwen2")):
        manifest = export_package(source, tmp_path / f"{model_type}-onnx")
        assert manifest.source.model_type == model_type


def test_the_chat_template_is_the_checkpoint_s_own(native: Path) -> None:
    path = native / "chat_template.jinja"
    path.write_text(path.read_text().replace("You are a helpful assistant.", "Answer in rhymes."))
    prompt = open_checkpoint(native).prompt
    assert prompt.before_image == (
        "<|im_start|>system\nAnswer in rhymes.<|im_end|>\n<|im_start|>user\n"
    )
    assert (prompt.before_prompt, prompt.after_prompt) == (
        PROMPT.before_prompt,
        PROMPT.after_prompt,
    )


def test_the_manifest_states_the_checkpoint_s_own_model_type(native: Path, tmp_path: Path) -> None:
    assert export_package(native, tmp_path / "native-onnx").source.model_type == "fast_vlm"
    assert export_package("demo", tmp_path / "apple-onnx").source.model_type == "llava_qwen2"


VICUNA = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in m.content %}{{ '<image>\n' if part.type == 'image' else part.text }}"
    "{% endfor %}{{ ' ' if m.role == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<turn>{{ 'user' if m.role == 'user' else 'model' }}\n"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}"
    "{% endfor %}</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
ALONE = "{% set m = messages[0] %}Q: <image>{{ m.content[1].text }}\nA:"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, PromptFormat("<bos>", "<turn>user\n", "", "</turn>\n", "<turn>model\n")),
        # An answer ends otherwise than a prompt, so that no one text ends every turn.
        (VICUNA, PromptFormat("", "USER: ", "\n", "", " ASSISTANT:")),
        (ALONE, PromptFormat("", "Q: ", "", "", "\nA:")),
    ],
    ids=["turns", "two ends of turns", "no turns"],
)
def test_the_turns_of_a_chat_template_are_found(
    native: Path, template: str, expected: PromptFormat
) -> None:
    (native / "chat_template.jinja").write_text(template)
    assert open_checkpoint(native).prompt == expected


def test_a_template_that_places_the_image_last_is_refused(native: Path) -> None:
    (native / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content[1].text }}<image>{% endfor %}"
    )
    with pytest.raises(UnsupportedError, match="one <image> before the user's words"):
        open_checkpoint(native)


@pytest.mark.parametrize(
    "template", ["{% for", "{{ messages[7].x.y }}", "{{ ''.__class__.mro() }}"]
)
def test_a_template_that_cannot_be_rendered_is_refused(native: Path, template: str) -> None:
    (native / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: the chat template"):
        open_checkpoint(native)


def test_apple_s_layout_ignores_a_chat_template(checkpoint: Path, edit_json: Edit) -> None:
    (checkpoint / "chat_template.jinja").write_text("something else")
    assert open_checkpoint(checkpoint).prompt == PROMPT


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (None, "projector_hidden_act", "relu"),
        (None, "vision_feature_layer", -2),
        (None, "vision_feature_select_strategy", "default"),
        ("vision_config", "architecture", "fastvit_mci2"),
        ("text_config", "use_sliding_window", True),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "layer_types", ["sliding_attention"] * 3),
        ("text_config", "layer_types", [1.5, "full_attention"]),
    ],
)
def test_a_configuration_that_is_not_built_is_named(
    native: Path, edit_json: Edit, section: str | None, field: str, value: object
) -> None:
    def change(content: dict) -> None:
        (content if section is None else content[section])[field] = value

    edit_json(native / "config.json", change)
    with pytest.raises(UnsupportedError, match=field) as caught:
        export_package(native, native.with_name("onnx"))
    assert str(value if not isinstance(value, list) else value[0]) in str(caught.value)
    assert not native.with_name("onnx").exists()


def test_another_rope_type_is_refused(native: Path, edit_json: Edit) -> None:
    edit_json(
        native / "config.json",
        lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn"),
    )
    with pytest.raises(UnsupportedError, match="rope_type is 'yarn'"):
        open_checkpoint(native)


def test_a_missing_section_is_named(native: Path, edit_json: Edit) -> None:
    edit_json(native / "config.json", lambda c: c.pop("text_config"))
    with pytest.raises(CheckpointError, match="text_config"):
        open_checkpoint(native)


def test_an_image_processor_that_is_no_object_is_named(native: Path, edit_json: Edit) -> None:
    edit_json(native / "processor_config.json", lambda c: c.update(image_processor=3))
    with pytest.raises(CheckpointError, match="image_processor is 3, expected an object"):
        open_checkpoint(native)


def test_a_tensor_that_no_fastvlm_has_is_named(native: Path) -> None:
    path = native / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.vision_tower.timm_model.stages.7.x": np.ones(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match=r"stages\.7\.x"):
        export_package(native, native.with_name("onnx"))


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "it takes more than 1 s or too much memory"),
        ("{{ 'a' * 10**10 }}", "it needs more than 1,073,741,824 bytes"),
        ("{% for a in range(99999) %}words{% endfor %}", "it gives more than 100,000 characters"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{{ range(10**9) }}", "Range too big"),
    ],
    ids=["time", "memory", "text", "arithmetic", "range"],
)
def test_a_template_is_stopped_at_its_limits(
    native: Path, monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    (native / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(native)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_kind_is_refused(native: Path, edit_json: Edit) -> None:
    edit_json(native / "tokenizer.json", lambda t: t["model"]["vocab"].update(x=2**31))
    with pytest.raises(CheckpointError, match=r"only Qwen2's tokenizer is built"):
        open_checkpoint(native)


def test_a_truncation_that_was_saved_is_dropped(native: Path, edit_json: Edit) -> None:
    cut = {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    edit_json(native / "tokenizer.json", lambda t: t.update(truncation=cut))
    assert json.loads(open_checkpoint(native).tokenizer)["truncation"] is None
