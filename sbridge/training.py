"""The one training loop, and a network under training.

The loop knows no bridge, file or progress bar. A *state* is anything with a step counter and a flat
form (tensors and JSON scalars, nothing that depends on wall time), so that a checkpoint is data and
a run that was stopped and taken up again ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError
from sbridge.storage.registry import register

Flat = dict[str, Tensor | int | float | str]
Info = dict[str, float]


@runtime_checkable
class State(Protocol):
    """What a solver carries from step to step."""

    step: int

    def flat(self) -> Flat:
        """Everything needed to go on, as tensors and JSON scalars; later steps leave it as it is."""
        ...


_S = TypeVar("_S", bound=State)


@runtime_checkable
class Callback(Protocol):
    """Called after every step."""

    def __call__(self, state: State, info: Info) -> None:
        """Look at the state and the step's numbers; do not change them."""
        ...


def minimise(
    step: Callable[[_S], tuple[_S, Info]],
    state: _S,
    finished: Callable[[_S], bool],
    callbacks: Sequence[Callback] = (),
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
        options: how.
        length: the number of updates that the schedule of the learning rate is laid out for.
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
        """The network with averaged weights."""
        return self.average.module

    def flat(self, prefix: str) -> Flat:
        """Copies of weights, averaged weights and moments, each key starting with ``prefix``."""
        flat: Flat = {f"{prefix}.updates": self.updates}
        for key, value in self.average.state_dict().items():
            flat[f"{prefix}.average.{key}"] = value.clone()
        for key, value in self.module.state_dict().items():
            flat[f"{prefix}.module.{key}"] = value.clone()
        for index, moments in self.optimiser.state_dict()["state"].items():
            for key, value in moments.items():
                flat[f"{prefix}.adam.{index}.{key}"] = value.clone()
        return flat

    def load(self, flat: Flat, prefix: str) -> None:
        """The opposite of :meth:`flat`."""
        self.updates = int(flat_number(flat, f"{prefix}.updates"))
        self.module.load_state_dict(_part(flat, f"{prefix}.module."))
        self.average.load_state_dict(_part(flat, f"{prefix}.average."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(flat, f"{prefix}.adam.").items():
            index, name = key.split(".", 1)
            # The optimiser keeps the tensors that it is given and changes them in place.
            moments.setdefault(int(index), {})[name] = value.clone()
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})


def flat_tensor(flat: Flat, key: str) -> Tensor:
    """The tensor under ``key``; FileFormatError if there is none."""
    value = flat.get(key)
    if not isinstance(value, Tensor):
        raise FileFormatError(f"the state has no tensor {key!r}: it belongs to another solver, or is incomplete.")
    return value


def flat_number(flat: Flat, key: str) -> float:
    """The number under ``key``; FileFormatError if there is none."""
    value = flat.get(key)
    if not isinstance(value, (int, float)):
        raise FileFormatError(f"the state has no number {key!r}: it belongs to another solver, or is incomplete.")
    return value


def _warming_average(decay: float) -> Callable[..., None]:
    """PyTorch's exponential moving average with decay ``min(decay, (1 + n)/(10 + n))`` at update ``n``.

    So the initial weights, which say nothing, are forgotten after a few dozen updates instead of ``1/(1 − decay)``.
    """

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        get_ema_multi_avg_fn(now)(averaged, current, count)

    return average


def _part(flat: Flat, prefix: str) -> dict[str, Tensor]:
    return {
        key[len(prefix) :]: value for key, value in flat.items() if key.startswith(prefix) and isinstance(value, Tensor)
    }
