"""The entropic plan of the data as a coupling: of fixed rows, or of new rows for every draw."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.couplings.simple import IndependentCoupling, Pairs, PairSampler
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law, Point
from sbridge.laws.stored import known_rows, row_count
from sbridge.problems import BridgeProblem, unknown_transition
from sbridge.processes import LinearProcess
from sbridge.storage.registry import register
from sbridge.transport import EntropicProblem, Sinkhorn, sinkhorn


@register
@dataclass(frozen=True)
class EntropicCoupling:
    """The static Schrödinger plan between ``rows`` draws of each end, or all its samples, solved once by Sinkhorn.

    In high dimension or at small σ, the plan of few samples is closer to a matching than the plan of the distributions.
    The stages of IMF correct this; a single regression does not.

    Args:
        rows: number of draws of each end in the plan; an end with at most so many unweighted samples uses all of them.
        sinkhorn: tolerance and limits.

    Raises:
        UnsupportedError: if the reference has no closed-form transition.
        NotConvergedError: if the iteration misses its tolerance.
    """

    rows: int = 4096
    sinkhorn: Sinkhorn = field(default_factory=Sinkhorn)

    def __post_init__(self) -> None:
        _check_rows(self.rows)

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Solves the plan; the sampler draws sources uniformly and targets from their rows of the plan."""
        return _plan(problem, type(self).__name__, self.rows, self.sinkhorn, generator)


@register
@dataclass(frozen=True)
class MinibatchCoupling:
    """Plans between ``rows`` new draws of either end, one for every ``rows`` pairs, solved by Sinkhorn when needed.

    All samples of the data are used in turn, whereas :class:`EntropicCoupling` uses one set of draws. The coupling is
    the mean of the plans over these sets. Both ends of the pairs have the right distributions. Their dependence is
    biased towards independence, which ``rows = 1`` would give (Fatras et al. 2020, arXiv:1910.04091). The bias
    decreases with ``rows``, more slowly in higher dimension and for smaller σ. Between
    standard normal ends in 16 dimensions at σ = 1, the covariance of the ends, (√5 − 1)/2 per coordinate, is too small
    by 27 % at 64 rows, 14 % at 256, 7 % at 1024, 2.5 % at 4096; in two dimensions by 6 % at 64 and less than 1 % at
    256.

    If both ends have at most ``rows`` unweighted samples, there is one plan, that of EntropicCoupling.

    Args:
        rows: number of draws of each end in a plan. An end with fewer unweighted samples uses all of them.
        sinkhorn: tolerance and limits.

    Raises:
        UnsupportedError: if the reference has no closed-form transition.
        NotConvergedError: if an iteration misses its tolerance.
    """

    rows: int = 4096
    sinkhorn: Sinkhorn = field(default_factory=Sinkhorn)

    def __post_init__(self) -> None:
        _check_rows(self.rows)

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Solves no plan yet, unless there is only one; a draw of ``n`` pairs solves ``⌈n/rows⌉`` plans."""
        name = type(self).__name__
        _linear(problem, name)
        if all(_takes_all(end, self.rows) for end in (problem.source, problem.target)):
            return _plan(problem, name, self.rows, self.sinkhorn, generator)

        def draw(n: int, g: torch.Generator) -> Pairs:
            counts = [min(self.rows, n - first) for first in range(0, n, self.rows)]
            parts = [_plan(problem, name, self.rows, self.sinkhorn, g)(count, g) for count in counts]
            x0, x1 = (torch.cat(side) for side in zip(*parts, strict=True))
            return x0, x1

        return draw


def _plan(problem: BridgeProblem, name: str, rows: int, options: Sinkhorn, generator: torch.Generator) -> PairSampler:
    """Draws from the plan of some rows of either end; if an end is a point, every coupling is the product."""
    reference = _linear(problem, name)
    if any(isinstance(end, Point) for end in (problem.source, problem.target)):
        return IndependentCoupling()(problem, generator)
    x0, x1 = (_points(end, rows, generator) for end in (problem.source, problem.target))
    near, far = reference.transition(0.0, reference.horizon).whitened(x0, x1)
    plan = sinkhorn(EntropicProblem(near, far, 1.0), options)

    def draw(n: int, g: torch.Generator) -> Pairs:
        index = torch.randint(len(x0), (n,), generator=g, device=g.device).to(x0.device)
        return x0[index], x1[plan.forward.draw(near[index], 1.0, g)]

    return draw


def _points(end: Law, rows: int, generator: torch.Generator) -> Tensor:
    known = known_rows(end, rows, 0) if _takes_all(end, rows) else None
    return end.sample(rows, generator) if known is None else known


def _takes_all(end: Law, rows: int) -> bool:
    """Returns whether all rows of ``end`` fit into one plan."""
    count = row_count(end)
    return count is not None and count <= rows and getattr(end, "weights", None) is None


def _linear(problem: BridgeProblem, name: str) -> LinearProcess:
    if not isinstance(problem.reference, LinearProcess):
        raise UnsupportedError(unknown_transition(name, problem.reference))
    return problem.reference


def _check_rows(rows: int) -> None:
    if rows < 2:
        raise InvalidInputError(f"rows must be at least 2, got {rows}.")
