"""Conversions between scores, controls, and other quantities that networks predict.

For a linear noising process ``X_t | X_0 ~ N(Φ X_0 + k, Q)`` with ``Q = L Lᵀ`` and noise ``ε`` in
``X_t = Φ X_0 + k + L ε``, conditional means given ``X_t = x`` are three names of one function::

    score    s(t, x) = ∇ log ρ_t(x)
    noise    E[ε | x]   = −Lᵀ s
    start    E[X_0 | x] = Φ⁻¹(x − k + Q s)          (Tweedie's formula; Efron 2011)

In time reversed by :class:`~sbridge.measures.PathMeasure`, the score is a control: ``û = σᵀ s`` (Premkumar 2023,
eq. (3.34)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.controls.base import Control, Time
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.objectives.score_matching import checked_score, denoising_target
from sbridge.processes import LinearProcess, Process, VariancePreserving
from sbridge.processes.base import repeat_per_row
from sbridge.storage.registry import register


@runtime_checkable
class Score(Protocol):
    """A callable or module ``(t, x) → (batch, dim)``: ``∇ log ρ_t(x)``, in inverse units of state."""

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the score at time ``t`` and states ``x``."""
        ...


@register
@dataclass(frozen=True, eq=False)
class ScoreControl:
    """The backward control ``û(t, x) = σ(t)ᵀ s(t, x)`` given by a score (Premkumar 2023, eq. (3.34)).

    Raises:
        InvalidInputError: when called, if the score returns another shape than its states.
    """

    process: Process
    score: Score

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control, in noise units."""
        return self.process.scale(t).T.to(x)(checked_score(self.score, t, x))


@register
@dataclass(frozen=True, eq=False)
class ControlScore:
    """The score ``s = σ^{−ᵀ} û`` given by a backward control if the forward control is zero."""

    process: Process
    control: Control

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the score."""
        return self.process.inverse_scale(t).T.to(x)(self.control(t, x))


def noise_from_score(process: LinearProcess, t: Time, score: Tensor) -> Tensor:
    """Computes ``E[ε | x] = −Lᵀ s``."""
    return -process.transition(0.0, t).root.T.to(score)(score)


def score_from_noise(process: LinearProcess, t: Time, noise: Tensor) -> Tensor:
    """Computes ``s = −L^{−ᵀ} ε``, ``t > 0``."""
    return denoising_target(process, t, noise)


def start_from_score(process: LinearProcess, t: Time, x: Tensor, score: Tensor) -> Tensor:
    """Computes ``E[X_0 | X_t = x] = Φ⁻¹(x − k + Q s)``."""
    law = process.transition(0.0, t)
    return law.map.inverse().to(x)(x - repeat_per_row(law.offset, len(x)).to(x) + law.covariance.to(x)(score))


def score_from_start(process: LinearProcess, t: Time, x: Tensor, start: Tensor) -> Tensor:
    """``s = −Q⁻¹(x − k − Φ E[X_0 | x])``, ``t > 0``: the gradient of the log transition is affine in the start."""
    return process.conditional_score(t, x, start)


def mean_field_drift(process: LinearProcess, t: Time, x: Tensor, start: Tensor) -> Tensor:
    """Computes the reverse drift from ``E[X_0 | X_t = x]`` instead of the score (Cao et al. 2025, arXiv:2501.17054).

    ``−b(t, x) + σσᵀ Q⁻¹ (Φ⟨X_0⟩ + k − x)``, per unit of reversed time.
    """
    scale = process.scale(t)
    return (scale @ scale.T).to(x)(process.conditional_score(t, x, start)) - process.drift(t, x)


def velocity_from_start(process: VariancePreserving, t: Time, x: Tensor, start: Tensor) -> Tensor:
    """Gives ``w = α ε − √v x_0`` with ``α² + v = 1`` (Salimans & Ho 2022, arXiv:2202.00512, appendix D), ``t > 0``."""
    alpha, root = _preserving(process, t, x)
    return (alpha * x - start) / root


def start_from_velocity(process: VariancePreserving, t: Time, x: Tensor, velocity: Tensor) -> Tensor:
    """Computes ``x_0 = α x − √v w``."""
    alpha, root = _preserving(process, t, x)
    return alpha * x - root * velocity


def _preserving(process: VariancePreserving, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``α`` and ``√v``, one per row or one for all."""
    if not isinstance(process, VariancePreserving) or process.stationary_std != 1.0 or process.mean != 0.0:
        raise UnsupportedError(
            "v-prediction is defined for a VariancePreserving process with stationary_std 1 and mean 0, got "
            f"{shown(process)}; predict the noise or the start instead."
        )
    law = process.transition(0.0, t)
    return law.map.values.to(x), law.root.values.to(x)


def as_times(t: Time, x: Tensor) -> Tensor:
    """Converts ``t`` to float64 of shape ``()`` or ``(batch,)``.

    Raises:
        InvalidInputError: for another shape.
    """
    times = t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
    if times.shape not in ((), x.shape[:1]):
        raise InvalidInputError(
            f"a time is one number, or one per row of x ({len(x)}); got shape {tuple(times.shape)}."
        )
    return times
