"""Prompts and calibration texts as token ids, in the prompt template of FastVLM."""

import json
from pathlib import Path

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
END = "<|im_end|>\n"
LONGEST_TEXT = 400


def tokenise(checkpoint: Path, prompts: Path, texts: Path) -> dict[str, object]:
    """Return the ids of prompts, of texts in the template, and of texts alone.

    Args:
        checkpoint: holds vocab.json, merges.txt and added_tokens.json.
        prompts: JSON list; each has turns, and image where a text stands for image features.
        texts: JSON list of strings.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    merges = [
        tuple(line.split(" "))
        for line in (checkpoint / "merges.txt").read_text().splitlines()[1:]
        if line
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = json.loads((checkpoint / "added_tokens.json").read_text())
    ordered = sorted(added, key=added.get)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ordered])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    for token, number in added.items():
        assert encode(token) == [number], (token, number, encode(token))
    asked = []
    for prompt in json.loads(prompts.read_text()):
        ids, image = encode(SYSTEM), [0, 0]
        for i, turn in enumerate(prompt["turns"]):
            is_user = i % 2 == 0
            ids += encode(USER if is_user else ASSISTANT)
            if i == 0 and prompt.get("image"):
                features = encode(prompt["image"])
                image = [len(ids), len(ids) + len(features)]
                ids += features + encode("\n")
            ids += encode(turn + END)
        ids += encode(ASSISTANT)
        asked.append({"ids": ids, "image": image, "language": prompt["language"]})
    chat, plain = [], []
    for text in json.loads(texts.read_text()):
        ids = encode(text)[:LONGEST_TEXT]
        plain.append(ids)
        # The first part is asked and the second part answered, as in a conversation.
        half = len(ids) // 2
        question = encode(SYSTEM + USER) + ids[:half] + encode(END)
        chat.append(question + encode(ASSISTANT) + ids[half:])
    return {"prompts": asked, "chat": chat, "plain": plain, "end": [encode("<|im_end|>")[0]]}
