"""Measure a rounded decoder against float32 on float32's own greedy answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rounding.decoder import Decoder, Layout, Part, generate, run_layers
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Token ids, the positions whose embeddings stand for image features, and the language."""

    ids: Tensor
    image: tuple[int, int] = (0, 0)
    language: str = "en"

    def embeds(self, embed: Tensor, exact: Tensor) -> Tensor:
        """Return [length, hidden_size]; image features are not rounded."""
        x = embed[self.ids.to(embed.device)]
        start, stop = self.image
        if stop > start:
            x = x.clone()
            x[start:stop] = exact[self.ids[start:stop].to(embed.device)]
        return x


@dataclass(frozen=True)
class Batch:
    """Some prompts with the answers that are forced on them.

    Attributes:
        prompts: their tokens.
        answers: int64 [prompts, steps].
        hidden: float32's last norm's output where a token is chosen, [prompts * steps, hidden].
        counts: whether a step counts (not after an end token), bool [prompts * steps].
    """

    prompts: Sequence[Prompt]
    answers: Tensor
    hidden: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Figures:
    same: float
    kl_mean: float
    kl_p99: float
    kl_largest: float
    same_english: float
    kl_mean_english: float


def make_batches(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    steps: int,
    tokens: int,
    end_tokens: Sequence[int] = (),
) -> list[Batch]:
    """Generate float32's answers, for so many padded tokens at a time."""
    ordered = sorted(prompts, key=lambda prompt: len(prompt.ids))
    batches, group = [], []
    for prompt in ordered:
        if group and (len(group) + 1) * (len(prompt.ids) + steps) > tokens:
            batches.append(_answer(decoder, group, steps, end_tokens))
            group = []
        group.append(prompt)
    batches.append(_answer(decoder, group, steps, end_tokens))
    return batches


def _answer(
    decoder: Decoder, prompts: Sequence[Prompt], steps: int, end_tokens: Sequence[int]
) -> Batch:
    embeds = [prompt.embeds(decoder.embed, decoder.embed) for prompt in prompts]
    answers = generate(decoder, embeds, steps)
    ends = torch.isin(answers, torch.tensor(list(end_tokens), device=answers.device))
    counts = (ends.cumsum(1) - ends.long()) == 0
    batch = Batch(prompts, answers, answers, counts.flatten())
    hidden = hidden_states(batch, decoder, decoder, decoder)
    return Batch(prompts, answers, hidden, counts.flatten())


def hidden_states(batch: Batch, exact: Decoder, prefill: Decoder, decode: Decoder) -> Tensor:
    """Return the last norm's output where tokens are chosen, [prompts * steps, hidden_size].

    If two decoders are given, the first computes each prompt up to its last token, as the variant
    `fast` does; a single one computes all of the prompt in one run.
    """
    device, steps = exact.device, batch.answers.shape[1]
    cut = 1 if prefill is not decode else 0
    first, rest = [], []
    for prompt, answer in zip(batch.prompts, batch.answers, strict=True):
        x = prompt.embeds(prefill.embed, exact.embed)
        last = prompt.embeds(decode.embed, exact.embed)[len(x) - cut :]
        first.append(x[: len(x) - cut])
        rest.append(torch.cat([last, decode.embed[answer[:-1]]]))
    counts = len(batch.prompts)
    index = torch.arange(counts, device=device)
    sizes = torch.tensor([len(x) for x in first], device=device)
    others = torch.tensor([len(x) for x in rest], device=device)
    prompt_of = torch.cat([index.repeat_interleave(sizes), index.repeat_interleave(others)])
    starts = torch.cat([torch.arange(int(n), device=device) for n in sizes])
    ends = torch.cat(
        [torch.arange(int(n), device=device) + int(s) for n, s in zip(others, sizes, strict=True)]
    )
    layout = Layout.of(prompt_of, torch.cat([starts, ends]), counts)
    parts = [
        Part(prefill, torch.cat(first), prompt_of[: int(sizes.sum())]),
        Part(decode, torch.cat(rest), torch.arange(int(others.sum()), device=device)),
    ]
    before, after = run_layers(parts, layout)
    if cut:
        return after
    # The first token is chosen at the prompt's last position.
    firsts = before[sizes.cumsum(0) - 1]
    rows = torch.cat([firsts[:, None], after.unflatten(0, (counts, steps - 1))], 1)
    return rows.flatten(0, 1)


def compare(
    batches: Sequence[Batch], exact: Decoder, prefill: Decoder, decode: Decoder, rows: int = 1024
) -> Figures:
    """Compare next-token distributions where float32 chose a token."""
    divergences, same, english = [], [], []
    for batch in batches:
        is_english = torch.tensor([prompt.language == "en" for prompt in batch.prompts])
        rows_english = is_english.repeat_interleave(batch.answers.shape[1])
        english.append(rows_english.to(batch.counts.device)[batch.counts])
        found = hidden_states(batch, exact, prefill, decode)
        for start in range(0, len(found), rows):
            piece = slice(start, start + rows)
            chosen = batch.counts[piece]
            mine = given = found[piece][chosen]
            if decode.round_input is not None:
                # lm_head belongs to no layer: -1.
                runs = torch.arange(len(mine), device=mine.device)
                mine = decode.round_input(-1, "head", mine, runs)
            logits = mine @ decode.head.T
            if decode.refined:
                tokens = logits.topk(decode.refined, sorted=False).indices
                refined = (decode.head[tokens] @ given[..., None])[..., 0]
                logits.scatter_(-1, tokens, refined)
            p = torch.log_softmax(batch.hidden[piece][chosen] @ exact.head.T, -1)
            q = torch.log_softmax(logits, -1)
            same.append(p.argmax(-1) == q.argmax(-1))
            divergences.append((p.exp() * (p - q)).sum(-1))
    kl, agreed = torch.cat(divergences).double(), torch.cat(same).double()
    is_english = torch.cat(english)
    return Figures(
        float(agreed.mean()),
        float(kl.mean()),
        float(kl.quantile(0.99)),
        float(kl.max()),
        float(agreed[is_english].mean()),
        float(kl[is_english].mean()),
    )
