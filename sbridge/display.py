"""Short descriptions of objects that hold tensors."""

from __future__ import annotations

import dataclasses
import enum

from torch import Tensor, nn

_ITEMS, _TEXT, _DEPTH = 6, 100, 3


def short_repr(self: object) -> str:
    """``Class(field=…, …)`` for a dataclass, in one line if that is short, else one line for each field.

    Tensors are given by dtype and shape, networks by their number of weights, long values cut.
    """
    fields = _fields(self, depth=1)
    name, line = type(self).__name__, ", ".join(fields)
    return f"{name}({line})" if len(line) <= _TEXT else f"{name}(\n  " + ",\n  ".join(fields) + ")"


def _fields(thing: object, depth: int) -> list[str]:
    shown = [item.name for item in dataclasses.fields(thing) if item.repr]  # type: ignore[arg-type]
    return [f"{name}={_described(getattr(thing, name), depth)}" for name in shown]


def _described(value: object, depth: int) -> str:
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
    if isinstance(value, (tuple, list)) and len(value) > _ITEMS:
        return f"{len(value)} items from {_described(value[0], depth)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
