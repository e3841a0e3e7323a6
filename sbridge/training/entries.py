"""The entries of a state as data: names to tensors and JSON scalars."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sbridge.errors import FileFormatError, shown

# A state as data, PyTorch's word for it: names of fields (joined by dots) to tensors and JSON scalars.
StateDict = dict[str, Tensor | int | float | str]
FOREIGN = "it belongs to another solver, or is incomplete"


def take(kind: Any, left: StateDict, name: str) -> Any:  # noqa: ANN401
    """Removes and returns the value under ``name``; FileFormatError if there is none of this type."""
    value = left.pop(name, None)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        word = "tensor" if kind is Tensor else "number" if kind in (int, float) else kind.__name__
        raise FileFormatError(f"the state has no {word} {shown(name)}: {FOREIGN}.")
    return value


def below(left: StateDict, name: str) -> StateDict:
    """Removes and returns the values whose names start with ``name`` and a dot, without that."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}


def copied(value: Any) -> Any:  # noqa: ANN401
    """Returns a copy of a tensor, and anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value
