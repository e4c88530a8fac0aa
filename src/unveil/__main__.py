"""The process of the command line: `unveil`, and `python -m unveil` for torchrun."""

import signal
import sys

from unveil.stop_signals import NUMBERS, Stopped, raise_on_signals


def main() -> None:
    """Runs the command line. No signal ends in a traceback, also while the command line is being imported, or when it has ended."""
    try:
        with raise_on_signals():
            from unveil.cli import main as command_line

            command_line()
    except Stopped as stop:
        sys.exit(128 + stop.number)
    finally:
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main()
