"""Trust regions in path space: how far one outer step of control learning may go towards the optimum."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import ConvergenceWarning, InvalidInputError
from sbridge.laws import HasDensity, Law, Point
from sbridge.storage.registry import check_kinds, register

_HALVINGS = 40
_LEFT = 0.05  # a larger missing share of the costs gives a warning


@register
@dataclass(frozen=True)
class TrustRegion:
    """Tempers importance weights so that one outer step changes the path measure by a bounded KL divergence.

    With ``α = dP*/dP_n`` of the current path measure, the next target is ``P_{n+1} ∝ P_n α^b``, ``b ≤ 1`` the largest
    power for which ``KL(P_{n+1} ‖ P_n) ≤ max_kl`` on the simulated paths. This is an annealing that sets its own pace
    (Blessing et al. 2025, arXiv:2508.12511, where ``b = 1/(1 + λ)``).

    Args:
        max_kl: bound in nats, positive.

    Raises:
        InvalidInputError: if ``max_kl`` is not positive and finite.
    """

    max_kl: float = 0.1

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0.0 < self.max_kl < math.inf:
            raise InvalidInputError(f"max_kl must be positive and finite, got {self.max_kl}.")

    def weights(self, log_weights: Tensor) -> tuple[Tensor, float]:
        """Returns normalised weights ``w_i ∝ exp(b log α_i)`` in float64, and the power ``b``.

        ``KL(w ‖ uniform)`` grows with ``b``, so bisection finds the power.
        """
        logs = log_weights.double() - log_weights.double().max()
        low, high = 0.0, 1.0
        if self._divergence(logs) <= self.max_kl:
            return logs.softmax(0), 1.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._divergence(middle * logs) <= self.max_kl else (low, middle)
        return (low * logs).softmax(0), low

    def _divergence(self, logs: Tensor) -> float:
        """``Σ w log(n w)`` of the weights ``w ∝ exp(logs)``."""
        w = logs.log_softmax(0)
        return float((w.exp() * (w + math.log(len(w)))).sum())


def without_start(log_weights: Tensor, start: Tensor, law: Law) -> Tensor:
    """Removes from ``log α`` most of its dependence on the start: the residual of a regression, shape ``(batch,)``.

    The control has no influence on where paths start, so weights ``α/h(X_0)`` serve as well as ``α`` with any ``h``,
    and best with ``h = E[α | X_0]``. Its logarithm is fitted by least squares in ``1``, the coordinates, their squares
    and, if it is known, the log density of the start; for reverse diffusion that is the answer itself.

    Args:
        log_weights: ``log α``, shape ``(batch,)``.
        start: ``X_0``, shape ``(batch, dim)``.
        law: its distribution.
    """
    if isinstance(law, Point):
        return log_weights
    x = start.double()
    columns = [torch.ones_like(x[:, :1]), x, x.square()]
    if isinstance(law, HasDensity):
        columns.append(law.log_density(start).double().unsqueeze(1))
    features, wanted = torch.cat(columns, 1).cpu(), log_weights.double().unsqueeze(1)
    fitted = features @ torch.linalg.lstsq(features, wanted.cpu(), driver="gelsy").solution
    return (wanted - fitted.to(wanted)).squeeze(1)


def record_power(memory: dict[str, Tensor], power: float) -> None:
    """Keeps the power ``b`` of a simulation, and the share ``∏(1 − b)`` of ``log α`` that is left out so far."""
    left = memory.get("left", torch.ones((), dtype=torch.float64))
    memory |= {"power": torch.tensor(power, dtype=torch.float64), "left": left * (1.0 - power)}


def warn_if_short(solver: object, region: TrustRegion | None, memory: dict[str, Tensor], updates: int) -> None:
    """ConvergenceWarning if the trust region was too small for the updates."""
    left = float(memory.get("left", 0.0))
    if region is not None and left > _LEFT:
        warnings.warn(
            f"{type(solver).__name__} has not reached the whole cost: a share of {left:.0%} is missing after {updates} "
            f"updates, since each simulation may change the path measure by at most {region.max_kl:g} nats. Use more "
            "updates, a larger TrustRegion(max_kl) or, if the solver takes one, a start that is closer, such as "
            "GaussianStart(end=Gaussian(mean, covariance)).",
            ConvergenceWarning,
            stacklevel=4,
        )


def check_one_pace(trust_region: TrustRegion | None, annealing: object) -> None:
    """InvalidInputError if both bring the terminal cost in."""
    if trust_region is not None and annealing is not None:
        raise InvalidInputError(
            "trust_region and annealing both bring the terminal cost in little by little: give one of them, and None "
            "for the other."
        )
