"""One answer, piece by piece."""

from collections.abc import Generator, Iterator

from fastvlm_onnx.runtime.answering.answer import Answer
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.decoding import generate
from fastvlm_onnx.runtime.engine.kv_cache import KVCache


def stream_answer(
    components: Components, inputs_embeds: FloatArray, cache: KVCache, answer: Answer
) -> Generator[Piece, None, None]:
    """Prefill and decode one answer.

    Args:
        inputs_embeds: the part of the prompt that the cache lacks, float32 [1, sequence_length,
            hidden_size].
        cache: has room for the prompt and the answer.
        answer: a new answer; it holds the tokens so far where the iterator is closed early.

    Yields:
        Pieces of text. The last piece carries the whole answer.
    """
    prompt_tokens = cache.length + inputs_embeds.shape[1]
    for _ in generate(
        components.language_model,
        inputs_embeds,
        cache,
        answer.accept,
        is_greedy=answer.is_greedy,
    ):
        if answer.has_text:
            yield answer.take_piece()
    yield answer.take_piece(answer.result(components.describe(), prompt_tokens))


def final_generation(pieces: Iterator[Piece]) -> Generation:
    """Run an answer to its end."""
    *_, last = pieces
    assert last.generation is not None
    return last.generation
