"""onnxruntime-genai opens a package of `--layout genai` and answers as this project does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.text.prompt import PromptPart, PromptTemplate, question
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

pytestmark = pytest.mark.slow
og = pytest.importorskip(
    "onnxruntime_genai", reason="onnxruntime-genai is not installed (make test-clients)"
)
LONGEST = 1000
FOLDERS = {"fp32": "FASTVLM_ONNX_TEST_GENAI_FP32", "int4": "FASTVLM_ONNX_TEST_GENAI_INT4"}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, exported) -> Path:
    return exported(FOLDERS[request.param], layout="genai", precisions=[request.param])


@pytest.fixture(scope="module")
def ours(folder: Path) -> FastVLM:
    return fastvlm_onnx.load(folder)


class GenaiModel:
    """A conversation in onnxruntime-genai, with the ids and the pixels of this project."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.image, self.image_id = manifest.image, manifest.decoder.vocab_size
        self.tokenizer = TextTokenizer(folder / "tokenizer.json")
        self.template = PromptTemplate(self.tokenizer, manifest.prompt)
        self.model = og.Model(str(folder))
        self.start()

    def start(self) -> None:
        """Begin another conversation."""
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=LONGEST)
        self.generator = og.Generator(self.model, parameters)

    def begin(self, prompt: str, picture: Path) -> str:
        """Ask the first question."""
        count = (self.image.default_size // self.image.patch_size) ** 2
        # onnxruntime-genai keeps no reference to the arrays that it reads later.
        self.inputs = {
            "pixel_values": preprocess(read_picture(picture), self.image.default_size),
            "num_image_tokens": np.array([count], np.int64),
        }
        for name, array in self.inputs.items():
            self.generator.set_model_input(name, array)
        return self.answer(self.template.prompt(question(prompt, 1)), count)

    def go_on(self, prompt: str) -> str:
        """Ask another question about the same picture."""
        # The answer's last token ends the turn.
        _, *rest = self.template.end_of_turn()
        return self.answer([rest, *self.template.user_turn([prompt])], 0)

    def answer(self, parts: Sequence[PromptPart], count: int) -> str:
        ids = [
            id
            for part in parts
            for id in (part if isinstance(part, list) else [self.image_id] * count)
        ]
        self.generator.append_tokens(np.array([ids], np.int32))
        found: list[int] = []
        while not self.generator.is_done():
            self.generator.generate_next_token()
            found.append(int(self.generator.get_next_tokens()[0]))
        return self.tokenizer.decode(found)


@pytest.fixture(scope="module")
def genai(folder: Path, ours: FastVLM) -> GenaiModel:
    return GenaiModel(folder, ours.manifest)


def test_every_question_is_answered(genai: GenaiModel, questions: dict, picture: Path) -> None:
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            genai.start()
            assert genai.begin(prompt, picture.with_name(name)) == answer


def test_a_conversation_of_several_turns_is_answered_as_here(
    genai: GenaiModel, ours: FastVLM, questions: dict, picture: Path
) -> None:
    first, second, *_ = questions[picture.name]
    genai.start()
    found = [genai.begin(first, picture), genai.go_on(second), genai.go_on(first)]
    with ours.chat() as chat:
        expected = [chat.ask(first, picture).text, chat.ask(second).text, chat.ask(first).text]
    assert found == expected


def test_its_own_tokenizer_reads_the_package(genai: GenaiModel) -> None:
    tokenizer = og.Tokenizer(genai.model)
    text = "I'LL see 12 hearts,\n\n  one\u00e9 <|im_end|>"
    ids = [int(id) for id in tokenizer.encode(text)]
    assert ids == genai.tokenizer.encode_template(text)
