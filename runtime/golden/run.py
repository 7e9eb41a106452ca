"""Run the inputs of golden.json through one variant of a package."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastvlm_onnx.golden import GoldenTurn
from fastvlm_onnx.runtime.answering.answer import StageTimes
from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.decoding import generate
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.golden.describe import num_positions
from fastvlm_onnx.runtime.golden.inputs import GoldenInputs
from fastvlm_onnx.runtime.loading import load
from fastvlm_onnx.runtime.model import FastVLM


@dataclass(frozen=True)
class AnswerRun:
    """A greedy answer.

    Attributes:
        generation: the answer.
        steps: the logits that each of its tokens, and its end token, was taken from, float32
            [vocab_size].
    """

    generation: Generation
    steps: list[FloatArray]


@dataclass(frozen=True)
class VariantRun:
    """The arrays of one variant.

    Attributes:
        features: image_features by the picture's name, float32 [1, num_image_tokens, hidden_size].
        answers: by the conversation's name, an answer for each turn.
    """

    features: dict[str, FloatArray]
    answers: dict[str, list[AnswerRun]]


def run_variant(
    folder: Path,
    variant: str,
    image_size: int,
    conversations: Mapping[str, Sequence[GoldenTurn]],
    inputs: GoldenInputs,
) -> VariantRun:
    """Run pictures and conversations on the CPU.

    Args:
        folder: the package's folder.
        variant: the variant's name.
        image_size: side of the square input in pixels.
        conversations: the conversations as token ids.
        inputs: the pictures, and the largest number of tokens of an answer.

    Raises:
        PackageError: a file is missing, cut or altered.
        InputError: the package lacks the variant or the image size.
        ProviderError: ONNX Runtime is missing, too old for the variant, or failed.
    """
    with load(folder, precision=variant, providers="cpu", image_size=image_size) as model:
        features = {
            name: model.encode_image(content).array for name, content in inputs.pictures.items()
        }
        answers = {
            name: _answer_turns(model, turns, features, inputs.max_new_tokens)
            for name, turns in conversations.items()
        }
        return VariantRun(features, answers)


def _answer_turns(
    model: FastVLM,
    turns: Sequence[GoldenTurn],
    features: Mapping[str, FloatArray],
    max_new_tokens: int,
) -> list[AnswerRun]:
    """Answer the turns of a conversation, all in one cache."""
    language_model = model.language_model
    cache = language_model.new_cache(num_positions(turns, model.num_image_tokens, max_new_tokens))
    answers: list[AnswerRun] = []
    pending: list[int] = []  # tokens of the last answer that the cache lacks
    for turn in turns:
        image = [] if turn.picture is None else [features[turn.picture][0]]
        parts = [pending + turn.before_image, *image, turn.after_image]
        inputs_embeds = language_model.embed(parts)
        prompt_end = cache.length + inputs_embeds.shape[1]
        answers.append(_answer(model, inputs_embeds, cache, max_new_tokens))
        pending = answers[-1].generation.token_ids[cache.length - prompt_end :]
    return answers


def _answer(
    model: FastVLM, inputs_embeds: FloatArray, cache: KVCache, max_new_tokens: int
) -> AnswerRun:
    components, now = model.components(), time.perf_counter()
    prompt_tokens = cache.length + inputs_embeds.shape[1]
    answer = components.begin_answer(
        GenerationConfig(max_new_tokens=max_new_tokens), max_new_tokens, StageTimes(now, 0, 0, now)
    )
    steps: list[FloatArray] = []

    def accept(logits: FloatArray) -> int | None:
        steps.append(logits.copy())
        return answer.accept(logits)

    # Not `is_greedy`, with which a screened lm_head computes some of the logits only.
    for _ in generate(model.language_model, inputs_embeds, cache, accept):
        pass
    return AnswerRun(answer.result(components.describe(), prompt_tokens), steps)
