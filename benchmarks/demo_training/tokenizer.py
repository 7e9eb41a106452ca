"""Train the tokenizer: byte-level BPE with Qwen2's splitting rule, in Apple's three files."""

import json
import random
from pathlib import Path

from demo_data.answers import describe
from demo_data.drawing import draw_sample
from demo_data.questions import ask
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from demo_training.sizes import NUM_MERGES

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS_PICTURES = 4000


def _tokenizer(bpe: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the three files of a checkpoint."""
    bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = _tokenizer(bpe)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def train_tokenizer(folder: Path) -> Tokenizer:
    """Write vocab.json, merges.txt and added_tokens.json into `folder`, and return the tokenizer.

    Words to read are left out of its corpus: they stay letters, which a picture shows one by one.
    """
    tokenizer = _tokenizer(models.BPE())
    corpus = ["system", "user", "assistant", "You are a helpful assistant."]
    for seed in range(CORPUS_PICTURES):
        sample = draw_sample(seed, kind="shapes")
        for question in ask(sample, random.Random(seed)):
            # Answers count twice: they are what is waited for.
            corpus += [question.prompt, question.answer, question.answer]
    text = describe(draw_sample(0, kind="text")).split('"')
    corpus += [f'{text[0]}"', 'The number "', '" in black.'] * 500
    trainer = trainers.BpeTrainer(
        vocab_size=256 + NUM_MERGES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    folder.mkdir(parents=True, exist_ok=True)
    added = {token: len(vocab) + i for i, token in enumerate(SPECIAL_TOKENS)}
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.token_to_id("<|im_end|>") == added["<|im_end|>"]
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
