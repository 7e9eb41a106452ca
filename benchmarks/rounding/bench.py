"""Run the search: measure rows, combine the changes that help, and write each row as it ends."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rounding.calibration import TODAY, Recipe, round_layers
from rounding.decoder import GROUPS, Decoder, Layout, Part, generate, run_layers
from rounding.evaluation import Batch, Prompt, compare, make_batches
from rounding.exported_int8 import ExportedRecipe, exported_decoder, round_exported
from rounding.gptq import damped, gptq, inverse_factor
from rounding.int8 import Int8Recipe, extra_bytes, round_decoder
from rounding.integers import Spec, nearest, q4_k, round_blocks, symmetric_nearest
from rounding.rows import GPTQ, PRECISIONS, Row, first_rows, int8_rows, option_rows, peer_rows
from rounding.sensitivity import rules_by_sensitivity, sensitivities
from rounding.weights import random_decoder, read_checkpoint, unpack
from torch import Tensor

LIMIT_BYTES = 23_000_000
# Rows whose divergence is this share of another's count as better.
BETTER = 0.99


@dataclass
class Bench:
    """The decoder, its answers, calibration sets and the results so far."""

    exact: Decoder
    batches: Sequence[Batch]
    sets: dict[str, list[Tensor]]
    output: Path
    deadline: float
    most_texts: int = 64
    only: Sequence[str] = ()
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    exported: dict[ExportedRecipe, Decoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = nearest(self.exact.head, Spec(8, 128))
        if self.output.exists():
            for line in self.output.read_text().splitlines():
                result = json.loads(line)
                if "error" not in result:
                    self.results[result["name"]] = result

    def texts(self, name: str, count: int) -> list[Tensor]:
        if name == "both":
            half = count // 2
            return self.texts("chat", half) + self.texts("answers", half)
        if "+" in name:
            return [text for own in name.split("+") for text in self.texts(own, count)]
        if name == "answers" and name not in self.sets:
            chat = self.sets["chat"]
            questions = [x[: len(x) // 2 + 12] for x in chat]
            found = []
            for start in range(0, len(chat), 16):
                some = questions[start : start + 16]
                embeds = [self.exact.embed[x.to(self.exact.device)] for x in some]
                made = generate(self.exact, embeds, 96).cpu()
                found += [torch.cat(pair) for pair in zip(some, made, strict=True)]
            self.sets[name] = found
        return self.sets[name][: min(count, self.most_texts)]

    def int4_decoder(self, recipe: Recipe) -> Decoder:
        texts = self.texts(recipe.chosen, recipe.texts)
        rounded = round_layers(self.exact, recipe, texts, self.head)

        def round_input(layer: int, group: str, x: Tensor, runs: Tensor) -> Tensor:
            del runs
            name = GROUPS[group][0] if group in GROUPS else ""
            return round_blocks(x, recipe.spec(layer, name).block if name else 128)

        return rounded.changed(embed=self.head, head=self.head, round_input=round_input)

    def int8_decoder(self, recipe: Int8Recipe) -> Decoder:
        rounded = round_decoder(self.exact, recipe, self.texts("chat", recipe.texts))
        if not recipe.rounds_head:
            return rounded
        head = self.rounded_head(recipe)
        places = recipe.head_places.split()
        return rounded.changed(**dict.fromkeys(places, head))

    def exported_decoder(self, recipe: ExportedRecipe) -> Decoder:
        # Rows that differ in the places that stay float32 have the same integers elsewhere.
        rounded_everywhere = replace(
            recipe, exact_weights=(), exact_inputs=(), refined=0, rounds_head=True
        )
        if rounded_everywhere not in self.exported:
            texts = self.texts(recipe.chosen, recipe.texts)
            made = round_exported(self.exact, rounded_everywhere, texts, self.head)
            self.exported = {rounded_everywhere: made}
        rounded = self.exported[rounded_everywhere]
        return exported_decoder(self.exact, rounded, self.head, recipe)

    def rounded_head(self, recipe: Int8Recipe) -> Tensor:
        if recipe.head_method == "nearest":
            if recipe.head_spec == Spec(8, 128):
                return self.head
            return nearest(self.exact.head, recipe.head_spec)
        ids = [x.to(self.exact.device) for x in self.texts("chat", 64)]
        layout = Layout.of_lengths([len(x) for x in ids], self.exact.device)
        tokens = torch.cat(ids)
        x = run_layers([Part(self.exact, self.exact.embed[tokens], tokens)], layout)[0]
        hessian = damped(x.T @ x, recipe.damping, True)
        factor = inverse_factor(hessian)
        pieces = [
            gptq(rows, hessian, recipe.head_spec, factor=factor)[0]
            for rows in self.exact.head.split(37_984)
        ]
        return torch.cat(pieces)

    def peer_decoder(self, name: str) -> Decoder:
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "symmetric 32": lambda w: symmetric_nearest(w, 32),
            "symmetric 128": lambda w: symmetric_nearest(w, 128),
            "q4_k": q4_k,
        }
        names = [name for group in GROUPS.values() for name in group]
        layers = [
            layer | {own: ways[name](layer[own]) for own in names} for layer in self.exact.layers
        ]
        return self.exact.changed(layers=layers, embed=self.head, head=self.head)

    def measure(self, row: Row) -> dict[str, Any] | None:
        """Measure a row unless it is known, and write it; return None if it cannot be measured."""
        if row.name in self.results:
            return self.results[row.name]
        if self.only and not any(part in row.name for part in self.only):
            return None
        if time.monotonic() > self.deadline:
            return None
        start, result = time.monotonic(), {"name": row.name}
        try:
            result |= self._measure(row)
        except Exception as error:
            # One row must not end a run on a machine that is lent for minutes.
            result["error"] = f"{type(error).__name__}: {error}"[:500]
        if self.exact.device.type == "cuda":
            torch.cuda.synchronize()
        result["seconds"] = round(time.monotonic() - start, 1)
        self.write(result)
        return None if "error" in result else result

    @torch.no_grad()
    def _measure(self, row: Row) -> dict[str, Any]:
        layers, size = self.exact.layers, 0
        if row.int4 is not None and row.int8 is not None:
            decode, prefill = self.int4_decoder(row.int4), self.int8_decoder(row.int8)
        elif row.int4 is not None and row.exported is not None:
            decode, prefill = self.int4_decoder(row.int4), self.exported_decoder(row.exported)
        elif row.int4 is not None:
            decode = prefill = self.int4_decoder(row.int4)
        elif row.int8 is not None:
            decode = prefill = self.int8_decoder(row.int8)
        elif row.exported is not None:
            decode = prefill = self.exported_decoder(row.exported)
        else:
            decode = prefill = self.peer_decoder(row.peer)
        if row.int4 is not None:
            size += row.int4.size_bytes(layers) - TODAY.size_bytes(layers)
        if row.exported is not None:
            size += row.exported.extra_bytes(layers)
        if row.int8 is not None:
            size += extra_bytes(row.int8, layers)
            size += row.int8.head_spec.size_bytes(*self.exact.head.shape)
            size -= Spec(8, 128).size_bytes(*self.exact.head.shape)
        figures = compare(self.batches, self.exact, prefill, decode)
        recipes = {
            kind: asdict(recipe)
            for kind, recipe in (
                ("int4", row.int4),
                ("int8", row.int8),
                ("exported", row.exported),
            )
            if recipe is not None
        }
        return asdict(figures) | {"extra_bytes": size} | recipes

    def write(self, result: dict[str, Any]) -> None:
        self.results[result["name"]] = result
        with self.output.open("a") as file:
            file.write(json.dumps(result) + "\n")
        shown = [
            f"{100 * result['same']:6.2f} % {result['kl_mean']:.2e} p99 {result['kl_p99']:.2e}"
            f" max {result['kl_largest']:.2e} {result['extra_bytes'] / 1e6:+7.2f} MB"
            f" english {100 * result['same_english']:6.2f} % {result['kl_mean_english']:.2e}"
            if "same" in result
            else str(result.get("error", "done")),
            f"{result.get('seconds', 0):6.1f} s",
            result["name"],
        ]
        print("  ".join(shown), flush=True)

    def best(self, prefix: str, most_bytes: float = float("inf")) -> dict[str, Any] | None:
        found = [
            x
            for name, x in self.results.items()
            if name.startswith(prefix)
            and "kl_mean" in x
            and "exported" not in x
            and "alone" not in name
            and x["extra_bytes"] <= most_bytes
        ]
        return min(found, key=lambda x: x["kl_mean"], default=None)


# --- the order of the rows ------------------------------------------------------------------------


def search(bench: Bench) -> None:
    for row in first_rows():
        bench.measure(row)
    recipe, name = _combine(bench)
    first = ["64", "64, k v o int8", "64, k v int8", "128, k v o int8", "128, attention int8"]
    first += ["64, attention int8", "down 64, k v o int8"]
    for key in first:
        bench.measure(Row(f"int4: {name}, {key}", int4=replace(recipe, rules=PRECISIONS[key])))
    for limit in (LIMIT_BYTES, LIMIT_BYTES // 2):
        _measure_chosen(bench, recipe, name, limit)
    for row in int8_rows():
        bench.measure(row)
    int4, int8 = bench.best("int4:", LIMIT_BYTES), bench.best("int8:")
    if int4 and int8:
        for a, b in ((int4, {"int8": asdict(Int8Recipe())}), (int4, int8)):
            own = b.get("name", "int8: as today")
            bench.measure(
                Row(
                    f"fast: [{own}] with [{a['name']}]",
                    int4=recipe_from(a["int4"]),
                    int8=int8_recipe_from(b["int8"]),
                )
            )
    for row in peer_rows():
        bench.measure(row)
    for key, own in PRECISIONS.items():
        bench.measure(Row(f"int4: {name}, {key}", int4=replace(recipe, rules=own)))
    for key in ("64", "64, k v o int8", "64, attention int8"):
        bench.measure(Row(f"int4: searched, {key}", int4=Recipe(PRECISIONS[key])))


def _measure_chosen(bench: Bench, recipe: Recipe, name: str, limit: int) -> None:
    if bench.only and not any("sensitivity" in part for part in bench.only):
        return
    if time.monotonic() > bench.deadline:
        return
    try:
        if "sensitivities" not in bench.results:
            start = time.monotonic()
            values = sensitivities(bench.exact, bench.texts("chat", 16))
            seconds = round(time.monotonic() - start, 1)
            bench.write({"name": "sensitivities", "values": values, "seconds": seconds})
        found = bench.results["sensitivities"]["values"]
        own = rules_by_sensitivity(bench.exact.layers, found, limit)
    except Exception as error:
        print("sensitivities:", error, flush=True)
        return
    label = f"int4: {name}, by sensitivity in {limit / 1e6:.0f} MB"
    bench.measure(Row(label, int4=replace(recipe, rules=own)))


def _combine(bench: Bench) -> tuple[Recipe, str]:
    """Try each change of GPTQ alone, then add the changes that help, the largest gain first."""
    start = bench.measure(Row("int4: GPTQ, 128", int4=GPTQ))
    base, name = GPTQ, "GPTQ"
    best = start["kl_mean"] if start else float("inf")
    single = []
    for change, row in option_rows(base):
        result = bench.measure(row)
        if result and result["kl_mean"] < BETTER * best:
            single.append((result["kl_mean"], change, row))
    for _, change, row in sorted(single, key=lambda x: x[0]):
        before = asdict(GPTQ)
        own = {k: v for k, v in row.int4.__dict__.items() if v != before[k] and k != "rules"}
        merged = replace(base, **own)
        if merged == base:
            continue
        label = f"{name}, {change}"
        result = bench.measure(Row(f"int4: {label}, 128", int4=merged))
        if result and result["kl_mean"] < best:
            base, best, name = merged, result["kl_mean"], label
    return base, name


def recipe_from(given: dict[str, Any]) -> Recipe:
    own = tuple((a, b, c, Spec(**d) if isinstance(d, dict) else d) for a, b, c, d in given["rules"])
    return Recipe(**{**given, "rules": own, "awq": tuple(given.get("awq", ()))})


def int8_recipe_from(given: dict[str, Any]) -> Int8Recipe:
    pairs = ("weights", "activations", "smooth")
    fixed = {k: tuple(tuple(x) for x in v) if k in pairs else v for k, v in given.items()}
    if isinstance(fixed.get("head_spec"), dict):
        fixed["head_spec"] = Spec(**fixed["head_spec"])
    return Int8Recipe(**fixed)


def exported_recipe_from(given: dict[str, Any]) -> ExportedRecipe:
    """Make a recipe from JSON, whose lists are tuples here."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(x) for x in value) if isinstance(value, list | tuple) else value

    return ExportedRecipe(**{name: frozen(value) for name, value in given.items()})


def rows_from(path: Path) -> Iterator[Row]:
    for given in json.loads(path.read_text()):
        int4, int8, exported = (given.get(kind) for kind in ("int4", "int8", "exported"))
        yield Row(
            given["name"],
            recipe_from(int4) if int4 else None,
            int8_recipe_from(int8) if int8 else None,
            exported=None if exported is None else exported_recipe_from(exported),
        )


@torch.no_grad()
def run_search(args: argparse.Namespace) -> None:
    start = time.monotonic()
    if args.device == "cpu":
        torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    read = read_checkpoint if args.weights.is_dir() else unpack
    decoder = read(args.weights, args.device)
    print(f"weights read {time.monotonic() - start:.1f} s", flush=True)
    tokens = json.loads(args.tokens.read_text())
    prompts = [
        Prompt(torch.tensor(x["ids"]), tuple(x["image"]), x["language"]) for x in tokens["prompts"]
    ]
    if args.prompts:
        step = len(prompts) / args.prompts
        prompts = [prompts[int(i * step)] for i in range(args.prompts)]
    batches = make_batches(decoder, prompts, args.steps, args.batch, tokens["end"])
    counted = sum(int(batch.counts.sum()) for batch in batches)
    print(f"{counted} answers' tokens {time.monotonic() - start:.1f} s", flush=True)
    sets = {
        name: [torch.tensor(x) for x in found]
        for name, found in tokens.items()
        if name not in ("prompts", "end")
    }
    deadline = start + 60 * args.minutes
    only = args.only or ()
    bench = Bench(decoder, batches, sets, args.output, deadline, args.texts, only)
    if args.rows:
        for row in rows_from(args.rows):
            bench.measure(row)
    search(bench)
    print(f"end {time.monotonic() - start:.1f} s", flush=True)


@torch.no_grad()
def self_test() -> None:
    """Measure every row on a small random decoder; a failed row ends the program."""
    import tempfile

    torch.set_num_threads(1)
    decoder = random_decoder()
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[Tensor]:
        sizes = torch.randint(20, 60, (count,), generator=generator)
        return [torch.randint(0, 300, (int(n),), generator=generator) for n in sizes]

    prompts = [Prompt(ids, (2, 5)) for ids in draw(5)]
    batches = make_batches(decoder, prompts, 8, 300, (7,))
    with tempfile.TemporaryDirectory() as folder:
        sets = {"chat": draw(12), "plain": draw(12)}
        output = Path(folder) / "results.jsonl"
        bench = Bench(decoder, batches, sets, output, time.monotonic() + 3600)
        search(bench)
        failed = [x for x in bench.results.values() if "error" in x]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {failed[0]}")
    print(len(bench.results), "rows")
