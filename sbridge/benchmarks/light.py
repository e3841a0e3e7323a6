"""The published recipe for Gaussian-mixture potentials (Korotin et al. 2024, arXiv:2310.01174).

``v(y) = Σ_k α_k N(y; r_k, ε S_k)`` with diagonal ``S_k``, so that ``π(y|x) ∝ v(y) e^{x·y/ε}``; Adam descends the
minibatch mean of ``log Z(x) − log v(y)``, ``Z(x) = Σ_k α_k exp((r_k·x + ½ xᵀS_k x)/ε)``. What is learned are
``ε log α_k`` (0 for equal weights), ``r_k`` (from target rows) and ``log S_k`` (from 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.exact import MixturePotential
from sbridge.processes import BrownianMotion
from sbridge.random import Seed, generator

LEARNING_RATES = {0.1: 1e-3, 1.0: 3e-3, 10.0: 6e-2}
"""Learning rates by ε."""


@dataclass(frozen=True)
class LightRecipe:
    """Hyperparameters of the recipe.

    Args:
        potentials: components.
        steps: of Adam.
        batch: rows a side, drawn anew for each step.
        learning_rate: ``None``: that of the nearest ε in :data:`LEARNING_RATES`.
        spread: first value of ``S``.
    """

    potentials: int = 50
    steps: int = 10_000
    batch: int = 128
    learning_rate: float | None = None
    spread: float = 1.0

    def rate(self, epsilon: float) -> float:
        """Returns the learning rate for ε."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[min(LEARNING_RATES, key=lambda known: abs(math.log(known / epsilon)))]

    def fit(self, x0: Tensor, x1: Tensor, epsilon: float, *, seed: Seed) -> MixturePotential:
        """Fits the potential for rows of both ends, with a Brownian reference of ``σ² = ε`` and ``T = 1``.

        Raises:
            InvalidInputError: if there are fewer target rows than components.
        """
        if len(x1) < self.potentials:
            raise InvalidInputError(
                f"{self.potentials} components start in different target rows and need as many, got {len(x1)}."
            )
        draws, dim = generator(seed), x0.shape[1]
        first = x1[torch.randperm(len(x1), generator=draws)[: self.potentials]]
        weights = torch.zeros(self.potentials, dtype=x0.dtype, requires_grad=True)
        centres = first.clone().requires_grad_()
        spreads = torch.full((self.potentials, dim), math.log(self.spread), dtype=x0.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([weights, centres, spreads], lr=self.rate(epsilon))
        for _ in range(self.steps):
            x, y = (rows[torch.randint(len(rows), (self.batch,), generator=draws)] for rows in (x0, x1))
            logits, s = weights / epsilon, spreads.exp()
            log_z = torch.logsumexp(logits + (x @ centres.mT + 0.5 * x.square() @ s.mT) / epsilon, 1)
            gaps = (y.unsqueeze(1) - centres).square() / (epsilon * s)
            log_v = torch.logsumexp(logits - 0.5 * (gaps + spreads).sum(2), 1)
            optimiser.zero_grad()
            (log_z.mean() - log_v.mean()).backward()
            optimiser.step()
        return _potential(weights.detach() / epsilon, centres.detach(), spreads.detach().exp(), epsilon)


def _potential(logits: Tensor, centres: Tensor, s: Tensor, epsilon: float) -> MixturePotential:
    """Computes ``g(y) = log v(y) + |y|²/2ε``."""
    logits, centres, s = logits.double(), centres.double(), s.double()
    shifts = centres / (epsilon * s)
    constants = logits - 0.5 * (s.log() + centres * shifts).sum(1)
    return MixturePotential(BrownianMotion(math.sqrt(epsilon)), constants, shifts, (1.0 / s - 1.0) / epsilon)
