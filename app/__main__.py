"""The entry point of the command `easel`, also as `python -m app`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while modules are imported."""
    # Python's own handler is replaced. If Ctrl-C is ignored, as in a script's background job, it
    # stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli import main

    main(prog_name="easel")


if __name__ == "__main__":
    main()
