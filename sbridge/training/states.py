"""The state of a run as a dataclass: one function writes all of it as data, and one reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from sbridge.errors import FileFormatError, UnsupportedError, shown
from sbridge.training.entries import FOREIGN, StateDict, below, copied, take
from sbridge.training.learner import Learner

_T = TypeVar("_T")
_DERIVED = "derived"
Derived = Annotated[_T, _DERIVED]
"""Marks a field of a :class:`State` that ``init`` makes from problem and seed, so that it need not be saved."""


@dataclass(eq=False)
class State:
    """What a solver carries from step to step. A subclass is a dataclass that declares all of it as fields.

    A field holds tensors, numbers, text, a ``torch.Generator`` or a :class:`Learner`; ``None`` if its annotation says
    so; or a dict, a tuple or a dataclass of these. ``Derived[…]`` marks fields that are not saved.

    Attributes:
        seed: seed of the run.
        step: number of steps done.
        stopped: why a callback ended training before its last step, or ``None``.
    """

    seed: int
    step: int = field(default=0, init=False)
    stopped: Derived[str | None] = field(default=None, init=False)

    def state_dict(self) -> StateDict:
        """Copies of all fields but the derived ones: tensors and JSON scalars.

        Raises:
            UnsupportedError: for a field that holds something else.
        """
        return dict(_entries(self, ""))

    def load_state_dict(self, saved: StateDict) -> None:
        """Sets all fields but the derived ones from what :meth:`state_dict` returned; ``saved`` stays as it is.

        Devices are not saved. Tensors and networks move to the device of those that ``init`` made, so a run can be
        resumed on another device; tensors in fields that ``init`` leaves empty stay on the device of ``saved`` (a
        checkpoint is read on the CPU). A generator continues on its own kind of device only, CPU or CUDA. The command
        line records ``--device`` as a setting of the run and does not resume it with another one.

        Raises:
            FileFormatError: if a value is missing, of another type, or belongs to no field; or if the state of a
                generator is from another kind of device.
        """
        left = dict(saved)
        for name, kind in _declared(type(self)).items():
            setattr(self, name, _read(kind, getattr(self, name, None), left, name))
        if left:
            raise FileFormatError(f"the state has no field for {', '.join(sorted(left)[:5])}: {FOREIGN}.")


def _declared(cls: type) -> dict[str, Any]:
    """The fields of a dataclass that are saved, with their annotations."""
    hints = get_type_hints(cls, include_extras=True)
    names = [item.name for item in dataclasses.fields(cls)]
    return {name: hints[name] for name in names if _DERIVED not in getattr(hints[name], "__metadata__", ())}


def _entries(value: object, name: str) -> Iterator[tuple[str, Tensor | int | float | str]]:
    """The tensors and scalars that ``value`` consists of, each with its name: the one place that writes states."""
    parts: dict[str, object] = {}
    if isinstance(value, Tensor):
        yield name, value.detach().clone()
    elif isinstance(value, torch.Generator):
        yield name, value.get_state()
    elif isinstance(value, (int, float, str)):
        yield name, value
    elif isinstance(value, Learner):
        parts.update(value.state_dict())
    elif isinstance(value, dict):
        parts = {_word(key): item for key, item in value.items()}
    elif isinstance(value, tuple):
        parts = {str(index): item for index, item in enumerate(value)}
    elif dataclasses.is_dataclass(value):
        parts = {key: getattr(value, key) for key in _declared(type(value))}
    elif value is not None:
        raise UnsupportedError(
            f"the field {shown(name)} of a state holds a {type(value).__name__}, which cannot be saved. Mark it as "
            "Derived[…] if init makes it from problem and seed."
        )
    for key, part in parts.items():
        yield from _entries(part, f"{name}.{key}" if name else key)


def _read(kind: Any, current: object, left: StateDict, name: str) -> Any:  # noqa: ANN401
    """What a field annotated as ``kind`` held; taken out of ``left``. The one place that reads states."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType) and NoneType in parts:
        if not any(key == name or key.startswith(f"{name}.") for key in left):
            return None
        (kind,) = (part for part in parts if part is not NoneType)
        parts = get_args(kind)
    if isinstance(current, torch.Generator):
        try:
            current.set_state(take(Tensor, left, name).cpu())
        except RuntimeError as error:
            raise FileFormatError(
                f"the state of the generator {shown(name)} does not fit one on {current.device}: resume on the kind of "
                "device, CPU or CUDA, on which the state was saved."
            ) from error
        return current
    if isinstance(current, Learner):
        current.load_state_dict(below(left, name))
        return current
    if isinstance(current, dict) and any(isinstance(item, Learner) for item in current.values()):
        return {key: _read(parts[1], item, left, f"{name}.{_word(key)}") for key, item in current.items()}
    if get_origin(kind) is dict:
        return {key: copied(value) for key, value in below(left, name).items()}
    if get_origin(kind) is tuple:
        now = current if isinstance(current, tuple) else (None,) * len(parts)
        return tuple(_read(part, now[i], left, f"{name}.{i}") for i, part in enumerate(parts))
    if dataclasses.is_dataclass(kind):
        fields = _declared(kind)  # type: ignore[arg-type]
        return kind(**{key: _read(part, None, left, f"{name}.{key}") for key, part in fields.items()})  # type: ignore[operator]
    value = copied(take(kind, left, name))
    return value.to(current.device) if isinstance(current, Tensor) else value


def _word(key: object) -> str:
    return key.name.lower() if isinstance(key, Enum) else str(key)
