"""The choices of the screen before lm_head against those of lm_head in int8.

    python benchmarks/screened_head.py DIR                  # 10,000 steps
    python benchmarks/screened_head.py DIR --steps 500 --prompts 10

A package of a real language model with `fast` answers the prompts of quality/prompts.json,
past end tokens, by the choices of lm_head in int8. At each step the screen chooses from the same
hidden states. benchmarks/real_language_model.py makes such a package, under --work.
"""

import argparse
import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from quality.prompts import read_prompts, tokenize

import fastvlm_onnx
from fastvlm_onnx.names import LM_HEAD, LM_HEAD_SCREEN, NUM_CANDIDATES
from fastvlm_onnx.runtime.engine.lm_head import ScreenedHead
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.ort.session import GraphRunner


class CountedGraph:
    """A graph that counts its runs, by the number of candidates that it was asked for."""

    def __init__(self, session: GraphRunner) -> None:
        self._session = session
        self.runs: collections.Counter[int] = collections.Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        self.runs[int(feeds.get(NUM_CANDIDATES, [0])[0])] += 1
        return self._session.run(outputs, feeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, help="a subset of this size, evenly spread")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    prompts = read_prompts(args.prompts)
    model = fastvlm_onnx.load(
        args.package, precision="fast", providers="cpu", threads=args.threads, lazy_vision=True
    )
    language_model = model.language_model
    vocab_size = language_model.sizes.vocab_size
    graphs = [CountedGraph(model.sessions[name]) for name in (LM_HEAD, LM_HEAD_SCREEN)]
    screened = ScreenedHead(graphs[0], graphs[1], vocab_size)
    found = np.empty((1, 1, vocab_size), np.float32)
    done = differing = 0
    largest_error = 0.0
    for number, prompt in enumerate(prompts):
        steps = (args.steps - done) // (len(prompts) - number)
        inputs_embeds = language_model.embed([part for part in tokenize(model, prompt) if part])
        cache = language_model.new_cache(inputs_embeds.shape[1] + steps)
        logits = language_model.prefill(inputs_embeds, cache)
        for step in range(steps):
            screened.compute(cache.outputs.hidden_states, found, [True])
            token_id = int(logits.argmax())
            differing += int(found.argmax()) != token_id
            is_candidate = np.isfinite(found[0, 0])
            errors = np.abs(found[0, 0] - logits)[is_candidate]
            largest_error = max(largest_error, float(errors.max()))
            if step < steps - 1:
                logits = language_model.decode_one_step(token_id, cache)
        done += steps
    first, *more = sorted(graphs[1].runs)
    widened = sum(graphs[1].runs[count] for count in more)
    print(
        f"{processor()}, ONNX Runtime {onnxruntime.__version__}; {len(prompts)} prompts, "
        f"{done} steps\n"
        f"{differing} choices differ from those of lm_head in int8\n"
        f"{widened} steps needed more than {first} candidates, {graphs[0].runs.total()} all of "
        "lm_head\n"
        f"the candidates' logits are at most {largest_error:.1e} from lm_head's"
    )


if __name__ == "__main__":
    main()
