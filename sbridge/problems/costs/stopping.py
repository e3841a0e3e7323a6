"""First hitting times on stored paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.measures import Paths
from sbridge.random import generator
from sbridge.storage.registry import register

Level = Callable[[Tensor], Tensor]
"""A level function ``x (batch, dim) → (batch,)``: negative outside, zero on the boundary, positive inside."""


@register
@dataclass(frozen=True)
class BridgeCorrection:
    """A correction that counts hits between grid points, with their Brownian-bridge probability.

    Between levels ``l, l' < 0`` at the ends of a step the level, taken as linear in ``x`` there, is a Brownian bridge
    of variance ``|Lᵀ∇l|²`` and crosses zero with probability ``exp(−2 l l'/|Lᵀ∇l|²)`` (Baldi 1995). The distribution of
    that bridge does not depend on the control of the step, so importance weights do not change. Without the correction,
    hits are detected at grid points only, and hitting times are late by ``O(√Δ)``.
    """

    def hits(self, paths: Paths, level: Level, levels: Tensor, seed: int) -> Tensor:
        """Draws for each step whether it is hit in between, shape ``(N, batch)``, given levels ``(N + 1, batch)``."""
        chain, found = paths.chain, torch.empty_like(levels[1:], dtype=torch.bool)
        uniform = torch.rand(found.shape, generator=generator(seed, levels.device), device=levels.device)
        for k in range(chain.length):
            gradient = _gradient(level, paths.x[k])
            variance = chain.root(k).T(gradient).square().sum(1)
            probability = torch.exp(-2.0 * levels[k] * levels[k + 1] / variance)
            below = (levels[k] < 0) & (levels[k + 1] < 0)
            found[k] = below & (uniform[k] < probability)
        return found


@register
@dataclass(frozen=True, eq=False)
class StoppingSet:
    """A set in which paths stop: after the first entry into ``{inside ≥ 0}``, costs, control and noise do not count.

    Args:
        inside: signed level ``x (batch, dim) → (batch,)`` in any unit, like a signed distance near the boundary.
        correction: :class:`BridgeCorrection` for hits between grid points; ``None``: grid points only.
    """

    inside: Level
    correction: BridgeCorrection | None = None

    def alive(self, paths: Paths, seed: int) -> Tensor:
        """Returns whether a path is not yet stopped at the time of each state, shape ``(N + 1, batch)``.

        Args:
            paths: simulated paths, which continue beyond the hitting time.
            seed: of the correction's uniform numbers.

        Raises:
            InvalidInputError: if the level has another shape.
            NonFiniteError: if it is NaN.
        """
        with torch.no_grad():
            states = paths.x.detach()
            levels = torch.stack([self.level(x) for x in states.unbind(0)])
            hit = levels >= 0
            if self.correction is not None:
                hit[1:] |= self.correction.hits(paths, self.inside, levels, seed)
            return hit.cumsum(0) == 0

    def level(self, x: Tensor) -> Tensor:
        """Computes and checks the level at states ``x``."""
        value: object = self.inside(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidInputError(f"the stopping level must have shape (batch,) = ({len(x)},), got {got}.")
        if bool(value.isnan().any()):
            raise NonFiniteError("the stopping level is NaN at some states.")
        return value


def _gradient(level: Level, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = level(x)
        if not value.requires_grad:
            raise InvalidInputError(
                "the Brownian-bridge correction needs a stopping level that is differentiable in x; write it in torch "
                "functions, such as lambda x: x[:, 0], or omit the correction."
            )
        return torch.autograd.grad(value.sum(), x)[0]
