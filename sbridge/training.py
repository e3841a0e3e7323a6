"""The training loop, the state of a run, and a network under training.

The loop does not depend on bridges, files or progress bars. A :class:`State` is a dataclass whose fields are everything
that a run needs to continue. One function writes them as tensors and JSON scalars, and one reads them. A checkpoint is
therefore plain data, and a resumed run ends in the same bits as an uninterrupted one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError, UnsupportedError, shown
from sbridge.storage.registry import register

# A state as data, PyTorch's word for it: names of fields (joined by dots) to tensors and JSON scalars.
StateDict = dict[str, Tensor | int | float | str]
Info = dict[str, float]
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
    """

    seed: int
    step: int = field(default=0, init=False)

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
            raise FileFormatError(f"the state has no field for {', '.join(sorted(left)[:5])}: {_FOREIGN}.")


_S = TypeVar("_S", bound=State)


@runtime_checkable
class Callback(Protocol):
    """Called after every step."""

    def __call__(self, state: State, info: Info) -> None:
        """Look at the state and the step's numbers; do not change them."""
        ...


def run_loop(
    step: Callable[[_S], tuple[_S, Info]], state: _S, finished: Callable[[_S], bool], callbacks: Sequence[Callback] = ()
) -> _S:
    """``state ← step(state)`` until ``finished(state)``; returns the last state.

    Raises:
        NonFiniteError: when a number that a step reports is NaN or infinite: with the step and the likely cause.
    """
    while not finished(state):
        state, info = step(state)
        for name, value in info.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} became {value} at step {state.step}. Likely causes: a learning rate that "
                    "is too large, σ far smaller than the scale of the data, or extreme outliers in the data."
                )
        for callback in callbacks:
            callback(state, info)
    return state


@register
@dataclass(frozen=True)
class Optimisation:
    """How networks are trained: Adam, gradient clipping, warm-up then cosine decay, averaged weights.

    Args:
        learning_rate: the largest rate, reached after ``warm_up`` updates.
        batch: rows per update.
        ema_decay: decay of the exponential moving average of the weights, which is what the solution uses.
        clip: largest gradient norm.
        warm_up: updates of linear warm-up.
    """

    learning_rate: float = 1e-3
    batch: int = 256
    ema_decay: float = 0.999
    clip: float = 1.0
    warm_up: int = 100

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch", "clip"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1 or self.warm_up < 0:
            raise InvalidInputError(f"ema_decay must lie in [0, 1) and warm_up be ≥ 0, got {self}.")

    def rate(self, update: int, length: int) -> float:
        """Learning rate of update number ``update`` of ``length``: warm-up times cosine, down to 1 % of the largest.

        ``learning_rate · min(1, (update + 1)/(warm_up + 1)) · (0.01 + 0.99 · ½(1 + cos π·update/length))``.
        """
        warm = min(1.0, (update + 1) / (self.warm_up + 1))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(update / length, 1.0))))


class Learner:
    """A network, its averaged copy and its optimiser.

    Args:
        module: the network that is trained.
        options: how it is trained.
        length: the number of updates in the schedule of the learning rate.
    """

    def __init__(self, module: nn.Module, options: Optimisation, length: int) -> None:
        self.module = module
        self.options = options
        self.length = length
        self.updates = 0
        self.average = AveragedModel(module, multi_avg_fn=_warming_average(options.ema_decay))
        self.optimiser = torch.optim.Adam(module.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), fused=True)

    def update(self, loss: Tensor) -> float:
        """One step down the gradient of ``loss``; returns its value."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate(self.updates, self.length)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.options.clip)
        self.optimiser.step()
        self.average.update_parameters(self.module)
        self.updates += 1
        return float(loss.detach())

    @property
    def averaged(self) -> nn.Module:
        """The network with averaged weights, which training changes."""
        return self.average.module

    def solution(self) -> nn.Module:
        """A copy of the network with averaged weights, which further training leaves alone."""
        return frozen_copy(self.averaged)

    def state_dict(self) -> StateDict:
        """Copies of the weights, the averaged weights and the optimiser's moments."""
        found: StateDict = {"updates": self.updates}
        for name, module in (("average", self.average), ("module", self.module)):
            found |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            found |= {f"adam.{index}.{key}": value.clone() for key, value in moments.items()}
        return found

    def load_state_dict(self, saved: StateDict) -> None:
        """Sets everything from what :meth:`state_dict` returned, which stays as it is.

        Raises:
            FileFormatError: if something is missing, or the weights are those of another network.
        """
        left = dict(saved)
        self.updates = _take(int, left, "updates")
        weights = {name: _below(left, name) for name in ("average", "module")}
        moments: dict[int, dict[str, Any]] = {}
        for key, value in _below(left, "adam").items():
            index, name = key.split(".", 1)
            # The optimiser keeps the tensors that it is given and changes them in place.
            moments.setdefault(int(index), {})[name] = _copied(value)
        whole = self.optimiser.state_dict()
        try:
            self.average.load_state_dict(weights["average"])
            self.module.load_state_dict(weights["module"])
            self.optimiser.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})
        except (RuntimeError, ValueError) as error:
            raise FileFormatError(f"the weights in the state are those of another network: {error}.") from error


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights need no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(requires_grad=False)


def _warming_average(decay: float) -> Callable[..., None]:
    """PyTorch's exponential moving average with decay ``min(decay, (1 + n)/(10 + n))`` at update ``n``.

    The initial weights carry no information; they are forgotten after a few dozen updates instead of ``1/(1 − decay)``.
    """

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        get_ema_multi_avg_fn(now)(averaged, current, count)

    return average


_FOREIGN = "it belongs to another solver, or is incomplete"


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
            current.set_state(_take(Tensor, left, name).cpu())
        except RuntimeError as error:
            raise FileFormatError(
                f"the state of the generator {shown(name)} does not fit one on {current.device}: resume on the kind of "
                "device, CPU or CUDA, on which the state was saved."
            ) from error
        return current
    if isinstance(current, Learner):
        current.load_state_dict(_below(left, name))
        return current
    if isinstance(current, dict) and any(isinstance(item, Learner) for item in current.values()):
        return {key: _read(parts[1], item, left, f"{name}.{_word(key)}") for key, item in current.items()}
    if get_origin(kind) is dict:
        return {key: _copied(value) for key, value in _below(left, name).items()}
    if get_origin(kind) is tuple:
        now = current if isinstance(current, tuple) else (None,) * len(parts)
        return tuple(_read(part, now[i], left, f"{name}.{i}") for i, part in enumerate(parts))
    if dataclasses.is_dataclass(kind):
        fields = _declared(kind)  # type: ignore[arg-type]
        return kind(**{key: _read(part, None, left, f"{name}.{key}") for key, part in fields.items()})  # type: ignore[operator]
    value = _copied(_take(kind, left, name))
    return value.to(current.device) if isinstance(current, Tensor) else value


def _word(key: object) -> str:
    return key.name.lower() if isinstance(key, Enum) else str(key)


def _take(kind: Any, left: StateDict, name: str) -> Any:  # noqa: ANN401
    """Removes and returns the value under ``name``; FileFormatError if there is none of this type."""
    value = left.pop(name, None)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        word = "tensor" if kind is Tensor else "number" if kind in (int, float) else kind.__name__
        raise FileFormatError(f"the state has no {word} {shown(name)}: {_FOREIGN}.")
    return value


def _below(left: StateDict, name: str) -> StateDict:
    """Removes and returns the values whose names start with ``name`` and a dot, without that."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}


def _copied(value: Any) -> Any:  # noqa: ANN401
    return value.clone() if isinstance(value, Tensor) else value
