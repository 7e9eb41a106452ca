"""The answer printed as it comes, and stopped after its first sentence.

Run it as: python examples/stream.py PACKAGE PICTURE QUESTION
"""

import sys

import fastvlm_onnx


def main() -> None:
    package, picture, question = sys.argv[1:]
    with fastvlm_onnx.load(package) as model:
        for piece in model.stream(picture, question, stop=["."]):
            print(piece.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
