"""The process of the command line: `unveil`, and `python -m unveil` for torchrun."""

import os
import signal
import sys

from unveil.stop_signals import NUMBERS, Stopped, raise_on_signals


def main() -> None:
    """Runs the command line. No signal ends in a traceback, also while the command line is being imported, or when it has ended."""
    try:
        open_standard_streams()
        with raise_on_signals():
            from unveil.cli import main as command_line

            command_line()
    except Stopped as stop:
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:  # before the handlers were set
        sys.exit(128 + signal.SIGINT)
    finally:
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


def open_standard_streams() -> None:
    """Opens what was closed at the start (`unveil ... >&-`). Else the next file, such as a checkpoint, becomes standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115


if __name__ == "__main__":
    main()
