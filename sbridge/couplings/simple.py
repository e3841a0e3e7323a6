"""Couplings that need no computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.problems import BridgeProblem, unknown_transition
from sbridge.processes.base import LinearProcess
from sbridge.storage.registry import register

Pairs = tuple[Tensor, Tensor]
PairSampler = Callable[[int, torch.Generator], Pairs]


@runtime_checkable
class Coupling(Protocol):
    """A recipe for pairs ``(X_0, X_T)``: computed once for a problem, then sampled."""

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Returns a function ``(n, generator) → (x0, xT)``, both of shape ``(n, dim)``."""
        ...


@register
@dataclass(frozen=True)
class IndependentCoupling:
    """The independent coupling ``p_0 ⊗ p_T``.

    It is the static plan for infinite noise. As the first coupling of IMF it is unbiased, but far from the plan (Shi et
    al. 2023, Alg. 1). As the coupling of a single regression it gives a process with the right ends that is not a
    Schrödinger bridge.
    """

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Returns a sampler that draws the ends independently."""
        return lambda n, g: (problem.source.sample(n, g), problem.target.sample(n, g))


@register
@dataclass(frozen=True)
class ReferenceCoupling:
    """The coupling of the reference, ``X_0 ~ p_0`` and ``X_T`` from R: the far marginal is *not* the target.

    It is allowed because the stages of IMF start from the data of alternating ends; IMF is then iterative proportional
    fitting (Shi et al. 2023, Prop. 10).

    Raises:
        UnsupportedError: if the reference has no closed-form transition.
    """

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Returns a sampler that draws the source and one exact transition over the whole horizon."""
        reference = problem.reference
        if not isinstance(reference, LinearProcess):
            raise UnsupportedError(unknown_transition("ReferenceCoupling", reference))
        law = reference.transition(0.0, reference.horizon)

        def draw(n: int, g: torch.Generator) -> Pairs:
            x0 = problem.source.sample(n, g)
            noise = torch.randn(x0.shape, generator=g, dtype=x0.dtype, device=g.device).to(x0.device)
            return x0, law.mean(x0) + law.root.to(x0)(noise)

        return draw
