"""Batches of packed training examples, each a function of the step alone."""

import random

import numpy as np
import torch
from demo_data.answers import Question
from demo_data.colors import COLOR_NAMES
from demo_data.drawing import IMAGE_SIZE, MAX_SHAPES, NINTHS, Sample, draw_sample, to_square
from demo_data.outlines import SHAPES
from demo_data.questions import ask
from demo_data.words import CHARACTERS, MAX_LENGTH
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from demo_training.sizes import VISION
from demo_training.tokenizer import encode

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
LENGTH = 224  # packed tokens of one picture: prefix and all its questions
SLOTS = 4  # shapes, and characters from left to right, that one image token can name
GRID = 16  # cells across the map of the third stage
IGNORED = -100
HARD = 3  # one picture of so many is hard


class Batches(Dataset[tuple[Tensor, ...]]):
    """Batch number `step`; shapes per picture grow over the first twentieth of training."""

    def __init__(self, tokenizer: str, batch_size: int, steps: int, first_picture: int = 0) -> None:
        self.tokenizer_json, self.batch_size, self.steps = tokenizer, batch_size, steps
        self.first_picture = first_picture
        self.tokenizer: Tokenizer | None = None

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.from_str(self.tokenizer_json)
        progress = step / self.steps
        max_shapes = 1 if progress < 0.02 else 2 if progress < 0.05 else MAX_SHAPES
        if self.first_picture:
            max_shapes = MAX_SHAPES
        first = self.first_picture + step * self.batch_size
        rows = [
            pack(
                self.tokenizer,
                draw_sample(seed, max_shapes, is_hard=seed % HARD == 0),
                random.Random(seed + 7),
            )
            for seed in range(first, first + self.batch_size)
        ]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))


def conversations(questions: list[Question], rng: random.Random) -> list[list[Question]]:
    """Put one to three questions into each conversation."""
    result = []
    rest = list(questions)
    while rest:
        turns = rng.choices((1, 2, 3), (80, 14, 6))[0]
        result.append(rest[:turns])
        rest = rest[turns:]
    return result


def pack(tokenizer: Tokenizer, sample: Sample, rng: random.Random) -> tuple[np.ndarray, ...]:
    """One picture and its conversations.

    Returns:
        pixels uint8 [3, 256, 256]; ids (-1 for an image token), labels, positions, segments
        int64 [LENGTH]; the training head's targets of `token_targets`.
    """
    newline = encode(tokenizer, "\n")
    prefix = encode(tokenizer, SYSTEM) + [-1] * VISION.num_image_tokens + newline
    ids = np.zeros(LENGTH, np.int64)
    labels = np.full(LENGTH, IGNORED, np.int64)
    positions = np.zeros(LENGTH, np.int64)
    segments = np.full(LENGTH, -1, np.int64)
    ids[: len(prefix)] = prefix
    positions[: len(prefix)] = range(len(prefix))
    segments[: len(prefix)] = 0
    end = len(prefix)
    for segment, conversation in enumerate(conversations(ask(sample, rng), rng), 1):
        tokens: list[int] = []
        wanted: list[int] = []
        for turn, question in enumerate(conversation):
            before = "\n<|im_start|>user\n" if turn else "\n"
            asked = encode(
                tokenizer, f"{before}{question.prompt}<|im_end|>\n<|im_start|>assistant\n"
            )
            asked = asked if turn else asked[len(newline) :]
            answer = encode(tokenizer, f"{question.answer}<|im_end|>")
            tokens += asked + answer
            wanted += [IGNORED] * len(asked) + answer
        if end + len(tokens) > LENGTH:
            continue
        ids[end : end + len(tokens)] = tokens
        labels[end : end + len(tokens)] = wanted
        positions[end : end + len(tokens)] = range(len(prefix), len(prefix) + len(tokens))
        segments[end : end + len(tokens)] = segment
        end += len(tokens)
    return (to_square(sample.picture), ids, labels, positions, segments, *token_targets(sample))


def token_targets(sample: Sample) -> tuple[np.ndarray, ...]:
    """The classes that the training-only heads read from maps and from image tokens.

    Returns:
        grid: int64 [16, 16, 3], for every 16 pixels: character, shape (0 none), color.
        shapes: int64 [tokens, SLOTS, 4], for each quarter: shape (0 none), color, order in the
            answer, ninth of the picture; IGNORED where nothing is asked.
        characters: int64 [tokens, SLOTS, 3], from left to right: character (0 none), color, order
            in the text.
    """
    tokens = VISION.num_image_tokens
    shapes = np.full((tokens, SLOTS, 4), IGNORED, np.int64)
    characters = np.full((tokens, SLOTS, 3), IGNORED, np.int64)
    shapes[..., 0] = characters[..., 0] = 0
    grid = np.zeros((GRID, GRID, 3), np.int64)
    grid[..., 2] = IGNORED
    for mark in (*sample.shapes, *sample.characters):
        here = grid[int(mark.y * GRID / IMAGE_SIZE), int(mark.x * GRID / IMAGE_SIZE)]
        here[2] = COLOR_NAMES.index(mark.color)
        if mark.name in SHAPES:
            here[1] = 1 + SHAPES.index(mark.name)
        else:
            here[0] = 1 + CHARACTERS.index(mark.name)
    for order, mark in enumerate(sample.shapes):
        shapes[mark.cell, mark.slot] = (
            1 + SHAPES.index(mark.name),
            COLOR_NAMES.index(mark.color),
            order,
            mark.ninth if sample.has_edges else IGNORED,
        )
    for order, mark in enumerate(sample.characters):
        slot = int(mark.x % 64 // 16)
        while slot < SLOTS and characters[mark.cell, slot, 0]:
            slot += 1  # narrow letters: the next column takes it
        if slot < SLOTS:
            characters[mark.cell, slot] = (
                1 + CHARACTERS.index(mark.name),
                COLOR_NAMES.index(mark.color),
                order,
            )
    return grid, shapes, characters


GRID_SIZES = (1 + len(CHARACTERS), 1 + len(SHAPES), len(COLOR_NAMES))
TARGET_SIZES = (
    *(1 + len(SHAPES), len(COLOR_NAMES), MAX_SHAPES, NINTHS),
    *(1 + len(CHARACTERS), len(COLOR_NAMES), MAX_LENGTH),
)
