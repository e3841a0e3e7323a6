"""The errors that sbridge raises on purpose, and its warnings.

Every message says what was given, what is needed and how to get there. All derive from
:class:`SbridgeError`, so one ``except`` clause catches exactly what the package foresaw.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class SbridgeError(Exception):
    """Base class of every error raised on purpose."""


class InvalidInputError(SbridgeError, ValueError):
    """An argument, array or option that cannot be used as it is."""


class UnknownNameError(InvalidInputError):
    """A name (data set, solver, registered class) that does not exist."""


class FileFormatError(InvalidInputError):
    """A file that is unreadable, truncated, of a foreign format, or not safe to load."""


class UnsupportedError(SbridgeError, TypeError):
    """A method was handed a process, law or measure that it cannot treat."""


class NotConvergedError(SbridgeError, RuntimeError):
    """An iteration stopped at its limit before it met its tolerance."""


class NonFiniteError(SbridgeError, ArithmeticError):
    """A computation produced NaN or an infinity."""


class SbridgeWarning(UserWarning):
    """Base class of every warning: the answer will be what was asked for, but look at it twice."""


class HeavyTailsWarning(SbridgeWarning):
    """A few rows of an end carry much of its variance."""


class DisconnectedWarning(SbridgeWarning):
    """An end falls into parts that are far apart, for their own width and for the noise of the reference."""


class ScalesWarning(SbridgeWarning):
    """The two ends, or columns, are of very different widths."""


class MarginalWarning(SbridgeWarning):
    """A fitted bridge does not carry the samples of one end to the distribution of the other."""


class ReadingWarning(SbridgeWarning):
    """A file can be read in more than one way, or holds a column that is hardly meant as a coordinate."""


class PrecisionWarning(SbridgeWarning):
    """A column varies by few steps of its floating-point type."""


class TimesWarning(SbridgeWarning):
    """Times were read from labels that are no plain numbers."""


class ConvergenceWarning(SbridgeWarning):
    """An iteration that is stopped after a number of steps will be far from its limit then."""


class UnverifiedFileWarning(SbridgeWarning):
    """A file of an earlier version that carries no checksum, so damage to it would not be seen."""


def listed(values: Iterable[object], most: int = 12, *, between: str = ", ") -> str:
    """``values`` for a message, which stays short however many or long they are: the first ones, the last two, a count.

    Numbers are written with as many digits as tell them apart from their neighbours, at most 10.
    """
    items = [number(value) if isinstance(value, float) else _cut(str(value)) for value in values]
    if len(items) <= most:
        return between.join(items)
    return f"{between.join([*items[: most - 2], '…', *items[-2:]])} ({len(items)} in all)"


def number(value: float) -> str:
    """A number for a message: so many digits that times which are told apart look different."""
    return f"{float(value):.10g}"


def _cut(text: str, length: int = 120) -> str:
    """The beginning and the end of a long text: paths differ in their ends."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 + 1 :]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown ``name`` of some ``kind``, with the nearest known name first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"Unknown {kind} {_cut(repr(name))}.{hint} Known: {listed(names, 20)}.")


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Whether all ``names`` of some ``kind`` are known.

    Raises:
        UnknownNameError: for the first that is not.
    """
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
