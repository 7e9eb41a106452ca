"""Share of questions that the built-in model understands in phrasings that it never saw.

    python benchmarks/unseen_phrasings.py
    python benchmarks/unseen_phrasings.py --checkpoint DIR --precision int4 --number 320

unseen_phrasings.json has 16 phrasings of each kind of question. Their writer knew neither the
training's phrasings nor the second program's, and no phrasing was added to the training after they
were read. They are asked about held-out pictures of the first program. Scores are those of
accuracy.py.
"""

import argparse
import json
import random
import tempfile
from itertools import count
from pathlib import Path

from demo_data import answers
from demo_data.answers import Kind, Question
from demo_data.drawing import HELD_OUT_SEED, Sample, draw_sample
from demo_data.outlines import SHAPES
from demo_data.scoring import score

import fastvlm_onnx
from fastvlm_onnx.export.pipeline import export_package

FIRST_SEED = HELD_OUT_SEED + 100_000_000
KINDS: dict[str, Kind] = {
    "describe": "describe",
    "count": "count",
    "count_some": "count",
    "color": "color",
    "shape": "shape",
    "where": "where",
    "is_there": "is there",
    "read": "text",
}


def question(name: str, template: str, sample: Sample, rng: random.Random) -> Question | None:
    """Ask one question about a picture; None if the picture does not suit the kind."""
    kind = KINDS[name]
    if name == "read":
        return Question(kind, template, sample.text) if sample.characters else None
    if not sample.shapes:
        return None
    if name == "describe":
        return Question(kind, template, answers.describe(sample))
    if name == "count":
        return Question(kind, template, answers.amount(len(sample.shapes), "shape", "shapes"))
    mark = rng.choice(sample.shapes)
    names, colors = [m.name for m in sample.shapes], [m.color for m in sample.shapes]
    if name == "count_some":
        number = names.count(mark.name)
        prompt = template.format(x=answers.plural(mark.name))
        return Question(kind, prompt, answers.amount(number, mark.name, answers.plural(mark.name)))
    if name == "is_there":
        if rng.random() < 0.5:
            answer = f"Yes, there is {answers.with_article(mark.name)}."
            return Question(kind, template.format(x=answers.with_article(mark.name)), answer)
        absent = rng.choice([n for n in SHAPES if n not in names])
        prompt = template.format(x=answers.with_article(absent))
        return Question(kind, prompt, f"No, there is no {absent}.")
    if name == "shape":
        if colors.count(mark.color) > 1:
            return None
        answer = f"The {mark.color} shape is {answers.with_article(mark.name)}."
        return Question(kind, template.format(c=mark.color), answer)
    if names.count(mark.name) > 1:
        return None
    prompt = template.format(x=f"the {mark.name}")
    if name == "color":
        return Question(kind, prompt, f"The {mark.name} is {mark.color}.")
    if not answers.has_clear_place(sample, mark):
        return None
    return Question(kind, prompt, f"The {mark.name} is {answers.place(mark)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--checkpoint", default="demo", help="another checkpoint of this model")
    parser.add_argument("--number", type=int, default=160, help="questions of each kind")
    parser.add_argument("--wrong", action="store_true", help="print each wrong answer")
    args = parser.parse_args()
    templates = json.loads(Path(__file__).with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "demo-onnx"
        export_package(args.checkpoint, package, precisions=[args.precision])
        model = fastvlm_onnx.load(package, precision=args.precision)
        print("| kind | % right | % of the worst phrasing |\n|---|---|---|")
        for index, (name, phrasings) in enumerate(templates.items()):
            scores: dict[str, list[float]] = {template: [] for template in phrasings}
            done = 0
            for seed in count(FIRST_SEED + index * 1_000_000):
                if done == args.number:
                    break
                template = phrasings[done % len(phrasings)]
                sample = draw_sample(seed)
                wanted = question(name, template, sample, random.Random(seed))
                if wanted is None:
                    continue
                done += 1
                answer = model.generate(sample.picture, wanted.prompt).text
                scores[template].append(score(wanted, answer))
                if args.wrong and scores[template][-1] < 1:
                    print(f"{wanted.prompt}: {answer} ({wanted.answer})")
            every = [value for found in scores.values() for value in found]
            worst = min(sum(found) / max(1, len(found)) for found in scores.values())
            mean = 100 * sum(every) / len(every)
            print(f"| {name} | {mean:.1f} | {100 * worst:.0f} |", flush=True)


if __name__ == "__main__":
    main()
