"""How benchmarks print: nothing is imported here, so that it adds nothing to the memory that they measure."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def row(name: str, **cells: object) -> None:
    """One line of a table."""
    say(f"{name:<34} " + "  ".join(f"{key} {value}" for key, value in cells.items()))
