"""How networks are trained: plain options, and methods that a subclass may replace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sbridge.errors import InvalidInputError
from sbridge.storage.registry import check_kinds, register


@register
@dataclass(frozen=True)
class Optimisation:
    """How networks are trained: Adam, gradient clipping, warm-up then cosine decay, averaged weights.

    To train in another way, override a method in a subclass: :meth:`optimiser`, :meth:`rate`, :meth:`clip_gradients`,
    :meth:`average` or :meth:`prepare`. A solver with an object of it can be saved if the subclass is registered
    (:func:`~sbridge.storage.registry.register`); files hold its name and its fields, never its code.

    Args:
        learning_rate: the largest rate, reached after ``warm_up`` updates.
        batch: rows per update.
        ema_decay: decay of the exponential moving average of the weights, which is what the solution uses.
        clip: largest gradient norm; ``math.inf``: any.
        warm_up: updates of linear warm-up.
        accumulate: updates whose gradients are averaged before the optimiser takes one step.
        autocast: whether the network under training computes in bfloat16 where torch's autocast allows it. Losses,
            averaged weights and solutions keep float32.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
    """

    learning_rate: float = 1e-3
    batch: int = 256
    ema_decay: float = 0.999
    clip: float = 1.0
    warm_up: int = 100
    accumulate: int = field(default=1, kw_only=True)
    autocast: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("learning_rate", "batch", "clip", "accumulate"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1 or self.warm_up < 0:
            raise InvalidInputError(f"ema_decay must lie in [0, 1) and warm_up be ≥ 0, got {self}.")

    def optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Makes the optimiser of ``parameters``: any class of ``torch.optim`` whose step needs no closure.

        :meth:`rate` sets its learning rate before each step. A group that was made with another one than
        ``learning_rate`` keeps the ratio.
        """
        return torch.optim.Adam(parameters, lr=self.learning_rate, betas=(0.9, 0.99), fused=True)

    def rate(self, update: int, length: int) -> float:
        """Learning rate of update number ``update`` of ``length``: warm-up times cosine, down to 1 % of the largest.

        ``learning_rate · min(1, (update + 1)/(warm_up + 1)) · (0.01 + 0.99 · ½(1 + cos π·update/length))``.
        """
        warm = min(1.0, (update + 1) / (self.warm_up + 1))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(update / length, 1.0))))

    def clip_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Limits the gradients, in place, before a step of the optimiser."""
        nn.utils.clip_grad_norm_(parameters, self.clip)

    def average(self, module: nn.Module) -> AveragedModel:
        """Makes the averaged copy of ``module``, which is updated after every step of the optimiser."""
        return AveragedModel(module, multi_avg_fn=_warming_average(self.ema_decay))

    def prepare(self, module: nn.Module) -> None:
        """Changes the new network in place before training: ``module.compile()``, hooks, frozen layers.

        Nothing by default. What solvers, files and the average use is ``module`` itself, so it cannot be replaced.
        """


def _warming_average(decay: float) -> Callable[..., None]:
    """PyTorch's exponential moving average with decay ``min(decay, (1 + n)/(10 + n))`` at update ``n``.

    The initial weights carry no information; they are forgotten after a few dozen updates instead of ``1/(1 − decay)``.
    """

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        get_ema_multi_avg_fn(now)(averaged, current, count)

    return average
