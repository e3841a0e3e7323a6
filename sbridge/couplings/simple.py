"""Couplings that need no computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law, Samples
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


@register
@dataclass(frozen=True)
class GivenPairs:
    """Rows that belong together: row ``i`` of the source with row ``i`` of the target.

    A single regression on these pairs gives the Markov process nearest to their pinned bridges (Shi et al. 2023, Prop.
    2): its marginals are those of the pinned bridges at all times, but ``X_T`` given ``X_0`` is not that of the pairs,
    unless they follow the plan of a Schrödinger bridge. Between independent standard normal ends, under Brownian motion
    with σ = 1, the covariance of the ends of that process is ``e^{−π/√27} = .546``, not 0.

    Raises:
        UnsupportedError: if an end is not samples.
        InvalidInputError: if numbers of rows or weights differ.
    """

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Returns a sampler that draws pairs by their weight, with replacement."""
        source, target = _paired(problem.source, problem.target)
        weights = source.weights

        def draw(n: int, g: torch.Generator) -> Pairs:
            if weights is None:
                index = torch.randint(len(source.rows), (n,), generator=g, device="cpu")
            else:
                index = torch.multinomial(weights.cpu(), n, replacement=True, generator=g)
            index = index.to(source.rows.device)
            return source.rows[index], target.rows[index]

        return draw


def _paired(source: Law, target: Law) -> tuple[Samples, Samples]:
    """Returns two sets of samples whose rows belong together, or raises the errors of :class:`GivenPairs`."""
    if not (isinstance(source, Samples) and isinstance(target, Samples)):
        raise UnsupportedError(
            f"given pairs are rows of two sets of samples, got {type(source).__name__} and {type(target).__name__}."
        )
    equal = source.weights is target.weights is None
    if source.weights is not None and target.weights is not None and source.weights.shape == target.weights.shape:
        equal = torch.allclose(source.weights, target.weights)
    if len(source.rows) != len(target.rows) or not equal:
        raise InvalidInputError(
            "pairs need as many source rows as target rows, in the same order and with the same weights; got "
            f"{len(source.rows)} and {len(target.rows)} rows."
        )
    return source, target
