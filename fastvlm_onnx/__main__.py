"""`python -m fastvlm_onnx` is `fastvlm-onnx`."""

import signal


def run() -> None:
    """Run the command line of this process, and exit.

    While modules are imported, and after the command, Ctrl-C ends the process without a traceback.
    """
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastvlm_onnx.cli import main

    main()


if __name__ == "__main__":
    run()
