"""Ask about an image and print the answer as it comes.

Run it as: python examples/ask.py PACKAGE IMAGE QUESTION
"""

import sys

import fastvlm_onnx


def main() -> None:
    package, image, question = sys.argv[1:]
    model = fastvlm_onnx.load(package)
    for piece in model.stream(image, question):
        print(piece.text, end="", flush=True)
        if piece.generation is not None:  # the last piece
            timings = piece.generation.timings
            print()
            print(f"first token after {timings.first_token:.3f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
