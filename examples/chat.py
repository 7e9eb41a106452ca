"""A conversation about two images. Each image is encoded once; a question costs its own tokens.

Run it as: python examples/chat.py PACKAGE IMAGE IMAGE
"""

import sys

import fastvlm_onnx


def main() -> None:
    package, first, second = sys.argv[1:]
    with fastvlm_onnx.load(package) as model, model.chat() as chat:
        for prompt, image in (
            ("Describe the image.", first),
            ("How many shapes do you see?", None),
            ("Describe this picture.", second),
        ):
            answer = chat.ask(prompt, image)
            print(f"{prompt} {answer.text}")
            print(f"first token after {answer.timings.first_token:.3f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
