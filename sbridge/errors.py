"""The errors and warnings of sbridge.

Every message says what was given, what is needed and how to correct it. All errors derive from :class:`SbridgeError`,
so one ``except`` clause catches all errors that the package raises on purpose.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

_LONGEST = 120  # characters of one thing in a message


class SbridgeError(Exception):
    """Base class of all errors that sbridge raises deliberately."""


class InvalidInputError(SbridgeError, ValueError):
    """Raised for an argument, array or option that cannot be used."""


class UnknownNameError(InvalidInputError):
    """Raised for an unknown name of a data set, solver or registered class."""


class FileFormatError(InvalidInputError):
    """Raised for a file that is unreadable, truncated, of an unknown format, or not safe to load."""


class UnsupportedError(SbridgeError, TypeError):
    """Raised when a method is given a process, distribution or measure that it does not support."""


class NotConvergedError(SbridgeError, RuntimeError):
    """Raised when an iteration reaches its limit before its tolerance."""


class DistributedError(SbridgeError, RuntimeError):
    """Raised when another process of a fit has ended or cannot be reached."""


class NonFiniteError(SbridgeError, ArithmeticError):
    """Raised when a computation produces NaN or an infinity."""


class SbridgeWarning(UserWarning):
    """Base class of all warnings: the result is what was asked for, but needs checking."""


class HeavyTailsWarning(SbridgeWarning):
    """Issued when a few samples of an end carry much of its variance."""


class DisconnectedWarning(SbridgeWarning):
    """Issued when an end consists of distant parts, measured by their own width and the noise of the reference."""


class ScalesWarning(SbridgeWarning):
    """Issued when the two ends, or columns, have very different widths."""


class MarginalWarning(SbridgeWarning):
    """Issued when a fitted bridge does not transport the samples of one end to the distribution of the other."""


class ReadingWarning(SbridgeWarning):
    """Issued when a file can be read in more than one way, or a column is probably not a coordinate."""


class PrecisionWarning(SbridgeWarning):
    """Issued when a column spans only few steps of its floating-point type."""


class TimesWarning(SbridgeWarning):
    """Issued when times were read from labels that are not plain numbers."""


class ConvergenceWarning(SbridgeWarning):
    """Issued when an iteration will stop, after its number of steps, far from its limit."""


class IdentifiabilityWarning(SbridgeWarning):
    """Issued when other parameters of a learned process explain the data as well."""


class UnverifiedFileWarning(SbridgeWarning):
    """Issued for a file of an earlier version without a checksum: damage to it cannot be detected."""


def listed(values: Iterable[object], most: int = 12, *, between: str = ", ") -> str:
    """Joins ``values`` for a message that stays short: the first ones, the last two, and the count.

    Numbers are written with as many digits as tell them apart from their neighbours, at most 10.
    """
    items = [number(value) if isinstance(value, float) else cut(str(value)) for value in values]
    if len(items) <= most:
        return between.join(items)
    return f"{between.join([*items[: most - 2], '…', *items[-2:]])} ({len(items)} in all)"


def number(value: float) -> str:
    """Formats a number for a message, with enough digits that distinct times look different."""
    return f"{float(value):.10g}"


def shown(value: object) -> str:
    """Returns the ``repr`` of what a user gave, in one line; long ones cut, long arrays by dtype and shape."""
    text = " ".join(repr(value).split())
    shape = getattr(value, "shape", None)
    if len(text) > _LONGEST and isinstance(shape, tuple):
        return f"{type(value).__name__} of {getattr(value, 'dtype', 'values')} and shape {tuple(shape)}"
    return cut(text)


def cut(text: str, length: int = _LONGEST) -> str:
    """Shortens a long text to its beginning and end: paths differ at their ends."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 + 1 :]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Makes the error for an unknown ``name`` of some ``kind``, with the nearest known name first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {shown(near[0])}?" if near else ""
    return UnknownNameError(f"Unknown {kind} {shown(name)}.{hint} Known: {listed(names, 20)}.")


def check_at_least(options: object, least: int, *names: str) -> None:
    """Raises InvalidInputError for the first of the named attributes of ``options`` that is below ``least``."""
    for name in names:
        if not getattr(options, name) >= least:
            needed = "positive" if least == 1 else f"at least {least}"
            raise InvalidInputError(f"{name} must be {needed}, got {shown(getattr(options, name))}.")


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Checks that all ``names`` of some ``kind`` are known.

    Raises:
        UnknownNameError: for the first that is not.
    """
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
