"""Output of benchmarks, without imports that would add to the measured memory."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Prints a line on standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def row(name: str, **cells: object) -> None:
    """Prints one line of a table."""
    say(f"{name:<34} " + "  ".join(f"{key} {value}" for key, value in cells.items()))
