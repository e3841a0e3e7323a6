"""Formatting of objects and numbers: short descriptions, values with errors, times."""

from __future__ import annotations

import dataclasses
import enum
import math

_ITEMS, _TEXT, _DEPTH = 6, 100, 3
_MOST_DECIMALS = 6
_LARGEST = 1e7


def short_repr(self: object) -> str:
    """Returns ``Class(field=…, …)`` for a dataclass, in one line if that is short, else one line for each field.

    Tensors are given by dtype and shape, networks by their number of weights, long values cut. Optional fields that are
    given by keyword alone are left out if they hold nothing.
    """
    fields = _fields(self, depth=1)
    name, line = type(self).__name__, ", ".join(fields)
    return f"{name}({line})" if len(line) <= _TEXT else f"{name}(\n  " + ",\n  ".join(fields) + ")"


def _fields(thing: object, depth: int) -> list[str]:
    values = [(item, getattr(thing, item.name)) for item in dataclasses.fields(thing) if item.repr]  # type: ignore[arg-type]
    held = [(item.name, value) for item, value in values if not (item.kw_only and value is item.default is None)]
    return [f"{name}={_described(value, depth)}" for name, value in held]


def _described(value: object, depth: int) -> str:
    from torch import Tensor, nn  # here, since reports format numbers without torch

    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{where}"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} of {sum(p.numel() for p in value.parameters())} weights"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(_fields(value, depth + 1)) if depth < _DEPTH else "…"
        return f"{type(value).__name__}({inner})"
    if isinstance(value, (tuple, list)):
        if len(value) > _ITEMS:
            return f"{len(value)} items from {_described(value[0], depth)}"
        inner = ", ".join(_described(item, depth) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = " ".join(repr(value).split())
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def decimals_of(error: float) -> int:
    """Returns the decimals that show a positive ``error`` to one digit, or to two if it begins with 1 or 2."""
    return max(0, -math.floor(math.log10(error / 3.0)))


def value_and_error(value: float, error: float, decimals: int | None = None) -> str:
    """Formats ``value ± error`` with the decimals that the error supports, and a power of ten if far from 1.

    Args:
        value: any finite number.
        error: its standard error; 0 or infinite where nothing is known of it.
        decimals: of both, where several numbers share a column; :func:`decimals_of` the error if ``None``.
    """
    if decimals is not None:
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    if not 0.0 < error < math.inf:
        return f"{value:.6g} ± {error:g}"
    size = max(abs(value), error)
    if decimals_of(error) <= _MOST_DECIMALS and size < _LARGEST:
        return value_and_error(value, error, decimals_of(error))
    power = math.floor(math.log10(size))
    scaled = error / 10.0**power
    return f"({value_and_error(value / 10.0**power, scaled, min(decimals_of(scaled), _MOST_DECIMALS))})e{power}"


def time_text(t: float) -> str:
    """Formats a time with twelve digits: ``0.3`` for ``0.1 + 0.2``, and all digits of seconds since 1970."""
    return f"{t:.12g}"
