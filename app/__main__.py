"""The entry point of the command `easel`, also as `python -m app`."""

import os
import signal


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while modules are imported."""
    _open_standard_files()
    # Python's own handler is replaced. If Ctrl-C is ignored, as in a script's background job, it
    # stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from app.cli import main

    main(prog_name="easel")


def _open_standard_files() -> None:
    """Open /dev/null in place of each of stdin, stdout and stderr that is closed.

    Otherwise the next file or socket would get its number, and what is meant for stderr would go
    there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


if __name__ == "__main__":
    main()
