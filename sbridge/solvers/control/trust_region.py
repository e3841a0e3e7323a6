"""Trust regions in path space: how far one outer step of control learning may go towards the optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.storage.registry import check_kinds, register

_HALVINGS = 40


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
