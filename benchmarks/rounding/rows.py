"""The rows of the search: ways to round int4, int8 and fast, the most important first."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rounding.calibration import AWQ_SHARES, TODAY, Recipe, rules
from rounding.exported_int8 import ExportedRecipe
from rounding.int8 import Int8Recipe
from rounding.integers import Spec

ALL = 10**6
INT8 = Spec(8, 128)
FLOAT = Spec(32)


@dataclass(frozen=True)
class Row:
    """A named way to round.

    Attributes:
        name: unique.
        int4: the recipe of the layers that decode, or of all layers.
        int8: the recipe of the prompt (with int4), or of all layers.
        peer: the name of another project's rounding.
        exported: a change of the exported int8 decoder, instead of `int8`.
    """

    name: str
    int4: Recipe | None = None
    int8: Int8Recipe | None = None
    peer: str = ""
    exported: ExportedRecipe | None = None


@dataclass
class Options:
    """Changes of a recipe by name."""

    changes: dict[str, dict[str, object]] = field(
        default_factory=lambda: {
            "down damping 0.2": {"down_damping": 0.2},
            "down damping 0.5": {"down_damping": 0.5},
            "tokens weighted": {"weighs_tokens": True},
            "damping 0.02": {"damping": 0.02},
            "damping 0.1": {"damping": 0.1},
            "damping 0.2": {"damping": 0.2},
            "texts and own answers": {"chosen": "both", "texts": 128},
            "descent": {"descents": 2},
            "half target fp32": {"target": "fp32", "strength": 0.5},
            "target fp32": {"target": "fp32"},
            "half target residual": {"target": "residual", "strength": 0.5},
            "target residual": {"target": "residual"},
            "no order": {"by_activation": False},
            "scales refitted": {"refits": True},
            "scales by weight error": {"uses_importance": False},
            "damping by the mean": {"damps_columns": False},
            "damping by the mean 0.01": {"damps_columns": False, "damping": 0.01},
            "bias corrected": {"corrects_bias": True},
            "channels sorted": {"sorts": True},
            "AWQ scales": {"awq": AWQ_SHARES},
            "AWQ scales of up and down": {"awq": AWQ_SHARES, "awq_places": "down"},
            "AWQ scales of norms": {"awq": AWQ_SHARES, "awq_places": "qkv gate_up"},
            "own answers": {"chosen": "answers"},
            "plain texts": {"chosen": "plain"},
            "32 texts": {"texts": 32},
            "16 texts": {"texts": 16},
        }
    )


def int8_in(names: str, first: int = 0, stop: int = ALL) -> tuple[str, int, int, Spec]:
    return (names, first, stop, INT8)


# Bytes for int4, smallest first; the limit is 5 % of the package, 23 MB.
PRECISIONS = {
    "128": rules(128),
    "128, k v int8": rules(128, int8_in("k v")),
    "128, k v o int8": rules(128, int8_in("k v o")),
    "128, attention int8": rules(128, int8_in("q k v o")),
    "64": rules(64),
    "64, no early int8": rules(64, early=False),
    "64, k v int8": rules(64, int8_in("k v")),
    "64, k v o int8": rules(64, int8_in("k v o")),
    "64, q k v int8": rules(64, int8_in("q k v")),
    "64, attention int8": rules(64, int8_in("q k v o")),
    "64, k v int8, first two and last layer's down int8": rules(
        64, int8_in("k v"), int8_in("down", 0, 2), int8_in("down", 23, 24)
    ),
    "down 64, k v o int8": rules(128, int8_in("k v o"), ("down", 0, ALL, Spec(4, 64))),
    "gate up 64, attention int8": rules(128, int8_in("q k v o"), ("gate up", 0, ALL, Spec(4, 64))),
    "down 32, k v int8": rules(128, int8_in("k v"), ("down", 0, ALL, Spec(4, 32))),
    "32": rules(32),
}
GPTQ = Recipe(rules(128), method="gptq", by_activation=True)


def activations(**ways: str) -> tuple[tuple[str, str], ...]:
    return tuple((name if name != "rest" else "", way) for name, way in ways.items())


def int8_rows() -> Iterator[Row]:
    def row(name: str, **fields: object) -> Row:
        return Row(f"int8: {name}", int8=Int8Recipe(**fields))  # type: ignore[arg-type]

    exact = {"rounds_weights": False, "rounds_head": False}
    blocks = activations(rest="block 128")
    yield row("as today")
    yield row("weights alone", activations=activations(rest="float"))
    yield row(
        "lm_head and embeddings alone", rounds_weights=False, activations=activations(rest="float")
    )
    alone = {"rounds_weights": False, "activations": activations(rest="float")}
    yield row("lm_head and embeddings alone, input float32", **alone, head="float")
    yield row("lm_head alone", **alone, head_places="head")
    yield row("embeddings alone", **alone, head_places="embed")
    yield row("lm_head and embeddings alone, GPTQ", **alone, head_method="gptq")
    for size, has_zeros in ((128, True), (64, False), (64, True), (32, False)):
        spec = Spec(8, size, asymmetric=has_zeros)
        zeros = " with zero points" if has_zeros else ""
        yield row(f"lm_head and embeddings alone, blocks of {size}{zeros}", **alone, head_spec=spec)
    for group in ("qkv", "o", "gate_up", "down"):
        yield row(
            f"activations alone, {group} alone",
            **exact,
            activations=activations(rest="float", **{group: "token"}),
        )
    yield row("activations alone", **exact)
    yield row("a scale for 128 columns everywhere", activations=blocks)
    yield row("the same, GPTQ", activations=blocks, method="gptq")
    yield row(
        "the same, weights in blocks of 128 (MatMulNBits)", activations=blocks, weights=(("", 128),)
    )
    for way in (
        "top 32",
        "top 128",
        "tiers 4",
        "split 2",
        "split 4",
        "split 8",
        "groups 4",
        "groups 8",
        "keep 16",
        "keep 64",
        "block 128",
    ):
        yield row(
            f"activations alone, down {way}",
            **exact,
            activations=activations(rest="token", down=way),
        )
    for statistic in ("rms", "relative"):
        for way in ("tiers 4", "split 4", "groups 8"):
            yield row(
                f"activations alone, down {way} by {statistic}",
                **exact,
                statistic=statistic,
                activations=activations(rest="token", down=way),
            )
    for way in ("top 32", "split 2", "split 4", "keep 16", "block 128"):
        yield row(
            f"activations alone, down block 128, qkv {way}",
            **exact,
            activations=activations(rest="token", down="block 128", qkv=way),
        )
    for size in (16, 32, 64, 128):
        yield row(f"activations alone, Hadamard {size} before down", **exact, hadamard=size)
    yield row("activations alone, rotated", **exact, rotates=True)
    yield row("activations alone, rotated, Hadamard 64", **exact, rotates=True, hadamard=64)
    for share in (0.3, 0.5, 0.7, 1.0):
        yield row(f"activations alone, smoothed up {share}", **exact, smooth=(("up", share),))
    for count in (32, 256):
        yield row(
            f"activations alone, {count} largest of up smoothed",
            **exact,
            smooth=(("up", 1.0),),
            smooth_columns=count,
        )
    for share in (0.3, 0.5, 0.7):
        yield row(
            f"activations alone, smoothed norm1 {share}",
            **exact,
            activations=activations(rest="token", down="block 128"),
            smooth=(("norm1", share),),
        )
    for count in (8, 32):
        yield row(
            f"activations alone, {count} largest of norm1 smoothed",
            **exact,
            activations=activations(rest="token", down="block 128"),
            smooth=(("norm1", 1.0),),
            smooth_columns=count,
        )
    yield row("weights alone, GPTQ", activations=activations(rest="float"), method="gptq")
    yield row(
        "weights alone, blocks of 128", activations=activations(rest="float"), weights=(("", 128),)
    )
    up = (("up", 0.5),)
    for way in ("split 2", "split 4", "tiers 4", "keep 16"):
        yield row(
            f"activations alone, smoothed up 0.5, down {way}",
            **exact,
            smooth=up,
            activations=activations(rest="token", down=way),
        )
    both = (("up", 0.5), ("norm1", 0.5))
    yield row("activations alone, smoothed up and norm1 0.5", **exact, smooth=both)
    yield row(
        "activations alone, smoothed up, norm1 and norm2 0.5",
        **exact,
        smooth=(*both, ("norm2", 0.5)),
    )
    spec = Spec(8, 128, asymmetric=True)
    yield row(
        "a scale for 128 columns everywhere, GPTQ, lm_head too",
        activations=blocks,
        method="gptq",
        head_method="gptq",
        head_spec=spec,
    )
    yield row(
        "smoothed up and norm1 0.5, down split 4, qkv split 2, GPTQ, lm_head too",
        smooth=both,
        method="gptq",
        head_method="gptq",
        head_spec=spec,
        activations=activations(rest="token", down="split 4", qkv="split 2"),
    )
    yield row(
        "rotated, Hadamard 32, GPTQ, lm_head too",
        method="gptq",
        hadamard=32,
        rotates=True,
        head_method="gptq",
        head_spec=spec,
    )
    yield row("smoothed up and norm1 0.5, GPTQ", smooth=both, method="gptq")
    yield row(
        "smoothed up and norm1 0.5, down split 4, GPTQ",
        smooth=both,
        method="gptq",
        activations=activations(rest="token", down="split 4"),
    )
    yield row(
        "smoothed up and norm1 0.5, down split 4, qkv split 2, GPTQ",
        smooth=both,
        method="gptq",
        activations=activations(rest="token", down="split 4", qkv="split 2"),
    )
    down = activations(rest="token", down="split 4")
    yield row("down split 4", activations=down)
    yield row("down split 4, GPTQ", activations=down, method="gptq")
    yield row(
        "down and qkv split 4, GPTQ",
        method="gptq",
        activations=activations(rest="token", down="split 4", qkv="split 4"),
    )
    yield row(
        "down split 8, qkv split 2, GPTQ",
        method="gptq",
        activations=activations(rest="token", down="split 8", qkv="split 2"),
    )
    yield row(
        "down keepgroups 32 4, qkv keep 8, GPTQ",
        method="gptq",
        activations=activations(rest="token", down="keepgroups 32 4", qkv="keep 8"),
    )
    yield row(
        "Hadamard 64, qkv split 2, GPTQ",
        method="gptq",
        hadamard=64,
        activations=activations(rest="token", qkv="split 2"),
    )
    yield row("rotated, Hadamard 64, GPTQ", method="gptq", hadamard=64, rotates=True)
    yield row(
        "down block 128, qkv split 2, GPTQ",
        method="gptq",
        activations=activations(rest="token", down="block 128", qkv="split 2"),
    )
    yield row(
        "down block 256, qkv block 128, GPTQ",
        method="gptq",
        activations=activations(rest="token", down="block 256", qkv="block 128"),
    )


def peer_rows() -> Iterator[Row]:
    yield Row("peer: symmetric, blocks of 32, nearest (genai's default)", peer="symmetric 32")
    yield Row("peer: symmetric, blocks of 128, nearest", peer="symmetric 128")
    yield Row("peer: llama.cpp's Q4_K", peer="q4_k")
    awq = Recipe(
        rules(128, early=False),
        awq=tuple(i / 20 for i in range(20)),
        awq_places="qkv gate_up down",
        uses_importance=False,
    )
    yield Row("peer: AWQ in groups of 128", int4=awq)


def first_rows() -> Iterator[Row]:
    """The rows that need no result of another."""
    int8 = list(int8_rows())
    yield Row("int4: as today", int4=TODAY)
    yield from int8[:2]
    yield Row("fast: as today", int4=TODAY, int8=Int8Recipe())
    yield Row("int4: GPTQ, 128", int4=GPTQ)
    yield Row("int4: GPTQ, 64", int4=replace(GPTQ, rules=rules(64)))
    yield Row("int4: searched, 64", int4=Recipe(rules(64)))
    yield from int8[2:30]


def option_rows(base: Recipe) -> Iterator[tuple[str, Row]]:
    """One change of the base at a time."""
    for name, change in Options().changes.items():
        changed = replace(base, **change)  # type: ignore[arg-type]
        if changed != base:
            yield name, Row(f"int4: GPTQ, 128, {name}", int4=changed)
