"""The entropic plan of the data as a starting coupling."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.coupling.simple import Pairs, PairSampler
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.registry import register
from sbridge.transport import EntropicProblem, Sinkhorn, sinkhorn


@register
@dataclass(frozen=True)
class EntropicCoupling:
    """The static Schrödinger plan between ``rows`` draws of either end, or all its rows, solved once by Sinkhorn.

    In high dimension or at small σ the plan of few rows is closer to a matching than the plan of the laws is; IMF's
    stages mend that, a single regression does not.

    Args:
        rows: draws of either end that carry the plan; an end of no more unweighted rows takes part with those.
        sinkhorn: tolerance and limits.

    Raises:
        UnsupportedError: if the reference has no closed-form transition.
        NotConvergedError: if the iteration misses its tolerance.
    """

    rows: int = 4096
    sinkhorn: Sinkhorn = field(default_factory=Sinkhorn)

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise InvalidInputError(f"rows must be at least 2, got {self.rows}.")

    def __call__(self, problem: BridgeProblem, generator: torch.Generator) -> PairSampler:
        """Solves the plan, then draws sources uniformly and targets from their rows of the plan."""
        reference = problem.reference
        if not isinstance(reference, LinearProcess):
            raise UnsupportedError("EntropicCoupling needs a LinearProcess; use IndependentCoupling().")
        x0, x1 = (self._points(end, generator) for end in (problem.source, problem.target))
        law = reference.transition(0.0, reference.horizon)
        whiten = law.root.inverse().to(x0)
        near = whiten(law.mean(x0))
        plan = sinkhorn(EntropicProblem(near, whiten(x1), 1.0), self.sinkhorn)

        def draw(n: int, g: torch.Generator) -> Pairs:
            index = torch.randint(len(x0), (n,), generator=g, device=g.device).to(x0.device)
            return x0[index], x1[plan.forward.draw(near[index], 1.0, g)]

        return draw

    def _points(self, end: Law, generator: torch.Generator) -> Tensor:
        if isinstance(end, Samples) and end.weights is None and len(end.rows) <= self.rows:
            return end.rows
        return end.sample(self.rows, generator)
