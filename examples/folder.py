"""Ask about every image of a folder, several at a time; print lines of JSON.

Run it as: python examples/folder.py PACKAGE FOLDER QUESTION > answers.jsonl
"""

import sys

import fastvlm_onnx
from fastvlm_onnx.runtime.captions import caption, find_pictures


def main() -> None:
    package, folder, question = sys.argv[1:]
    with fastvlm_onnx.load(package) as model:
        for answered in caption(model, find_pictures([folder]), question, batch_size=4):
            print(answered.to_json(), flush=True)


if __name__ == "__main__":
    main()
