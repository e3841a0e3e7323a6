"""Which solver a bridge problem gets when its user names none, and why."""

from __future__ import annotations

from dataclasses import dataclass

from sbridge.errors import UnsupportedError
from sbridge.laws import Density, Gaussian, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.solvers.adjoint_bridge import AdjointBridge
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.ipf import IPF
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge

FEW_ROWS = 1000
"""Below this number of rows at either end a network has too little to learn from."""


@dataclass(frozen=True)
class SolverChoice:
    """A solver, with the reason for it.

    Attributes:
        solver: with its default options.
        reason: a clause without a full stop.
    """

    solver: Solver
    reason: str

    def __str__(self) -> str:
        return f"{type(self.solver).__name__}, {self.reason}"


def choose_solver(problem: BridgeProblem) -> SolverChoice:
    """The solver for a first result without tuning, decided by ends, reference, numbers of rows and columns.

    * two Gaussian laws under a linear reference: :class:`GaussianBridge`, exact;
    * fewer than :data:`FEW_ROWS` rows at an end, under a linear reference: :class:`MixtureBridge`, whose number of
      components is chosen on rows held out; with no more rows than columns, :class:`SinkhornBridge`;
    * other ends that can be sampled, under a linear reference: :class:`IMF` from the entropic plan. It learns smooth
      controls of either direction, so end points are new points and not rows of the data, and rows that it has not
      seen are treated like those it has. (:class:`SinkhornBridge` is quicker, and exact for the empirical laws: use it
      where reproducing the rows at hand is what you want.);
    * an end that is only an unnormalised density, under a linear reference: :class:`AdjointBridge`, which follows the
      gradient of the log density and needs no samples of that end;
    * ends that can be sampled under any other reference: :class:`IPF`, which needs no transition in closed form.

    Raises:
        UnsupportedError: if there is no default for the problem.
    """
    ends, kind = (problem.source, problem.target), type(problem.reference).__name__
    unnormalised = any(isinstance(end, Density) for end in ends)
    if not isinstance(problem.reference, LinearProcess):
        if unnormalised:
            raise UnsupportedError(
                f"there is no default for an unnormalised density under {kind}: solve() with "
                "IPF(forward=AdjointHalfBridge()) takes such a target, with backward= such a source; or draw samples."
            )
        return SolverChoice(IPF(), f"since {kind} has no transition in closed form")
    if unnormalised:
        return SolverChoice(AdjointBridge(), "since one end is known by its density alone, whose gradient it follows")
    if all(isinstance(end, Gaussian) for end in ends):
        return SolverChoice(GaussianBridge(), "since the bridge between Gaussian laws is known in closed form")
    counts = [len(end.rows) for end in ends if isinstance(end, Samples)]
    rows = min(counts, default=None)
    if rows is not None and rows < FEW_ROWS:
        few = f"since {rows} rows in {problem.dim} columns are few for a network"
        if rows > problem.dim:
            return SolverChoice(MixtureBridge(), f"{few}: it has as many Gaussian components as rows held out can bear")
        if len(counts) == len(ends):
            return SolverChoice(SinkhornBridge(), f"{few}, or for any covariance: it is exact for the rows at hand")
    seen = "ends that can be drawn from at will" if rows is None else f"{rows} rows"
    return SolverChoice(
        IMF(),
        f"since {seen} in {problem.dim} columns let networks learn both directions: they make new points and treat "
        "unseen rows like seen ones (SinkhornBridge is quicker, and exact for the rows at hand)",
    )
