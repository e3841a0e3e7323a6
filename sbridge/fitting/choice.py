"""Choice of the default solver for a bridge problem, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from sbridge.errors import UnsupportedError
from sbridge.exact import balanced
from sbridge.fitting.samples import unlike_mixtures
from sbridge.laws import Density, Gaussian, Point, Samples
from sbridge.laws.moments import span_fewer
from sbridge.laws.stored import MOST_KNOWN, known_rows, row_count
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.solvers.adjoint_bridge import AdjointBridge
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.ipf import IPF
from sbridge.solvers.matched import MatchedBridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge

FEW_ROWS = 1000
"""Number of rows of either end below which a network has too little to learn from."""
FEW_TO_COMPARE = 200
"""Number of rows of either end below which the held-out fifth is too small to choose a number of components."""
MANY_COLUMNS = 1000
"""Number of columns above which covariances of Gaussian components are too large for a default."""


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
    """Chooses the solver for a first result without tuning, from ends, reference and numbers of samples and columns.

    * two Gaussian distributions under a linear reference: :class:`GaussianBridge`, exact;
    * an end that is one point, under a linear reference: :class:`MatchedBridge`; its plan then has no bias;
    * other ends that can be sampled, with at most :data:`MANY_COLUMNS` columns and twice as many samples, under a
      linear reference: :class:`MixtureBridge`, which chooses the number of components on held-out samples. It takes
      seconds; plan and forward control have closed forms. Backward paths end on samples of the source;
    * samples at both ends that Gaussian components do not represent, in at most :data:`MANY_COLUMNS` columns:
      :class:`SinkhornBridge`, whose end points have exactly the values of the samples. This holds for fewer than
      :data:`FEW_TO_COMPARE` samples, discrete columns only, an atom and continuous values in one column (zero-inflated
      columns), discrete columns with more than a few joint states, and heavy tails;
    * the same with more columns, or with samples that span fewer dimensions than they have columns: :class:`IMF` from
      the entropic plan, which learns both directions and takes minutes;
    * fewer samples than that, or fewer than :data:`FEW_ROWS` that span fewer dimensions: :class:`SinkhornBridge`, exact
      for the given samples;
    * one or two ends that are only unnormalised densities, under a linear reference: :class:`AdjointBridge`, which
      follows the gradient of the log density and needs no samples of that end;
    * ends that can be sampled under any other reference, or with a state cost that is a function: :class:`IPF`, which
      needs no transition in closed form.

    Raises:
        UnsupportedError: if there is no default for the problem.
    """
    problem = balanced(problem.absorbed())
    if problem.running_cost is not None:
        return _with_cost(problem)
    return _without_samples(problem) or _from_samples(problem)


def _with_cost(problem: BridgeProblem) -> SolverChoice:
    """Chooses for a state cost that is a function."""
    solver = IPF()
    told = solver.refusal(problem)
    if told is not None:
        raise UnsupportedError(told)
    return SolverChoice(solver, "since the state cost is a function, which it learns with the forward control")


def _without_samples(problem: BridgeProblem) -> SolverChoice | None:
    """Chooses by the reference and the kinds of the ends; ``None`` if the samples decide."""
    ends, kind = (problem.source, problem.target), type(problem.reference).__name__
    unnormalised = any(isinstance(end, Density) for end in ends)
    if not isinstance(problem.reference, LinearProcess):
        if all(isinstance(end, Density) for end in ends):
            raise UnsupportedError(
                f"there is no solver between two unnormalised densities under {kind}: use a linear reference such as "
                "BrownianMotion, for AdjointBridge(), or draw samples of one of them first."
            )
        if unnormalised:
            raise UnsupportedError(
                f"there is no default for an unnormalised density under {kind}: solve() with "
                "IPF(forward=AdjointHalfBridge()) accepts such a target, with backward= such a source; or draw samples."
            )
        return SolverChoice(IPF(), f"since {kind} has no transition in closed form")
    if unnormalised:
        if all(isinstance(end, Density) for end in ends):
            reason = "since both ends are known by their densities alone: it learns to draw the source, then the bridge"
        else:
            reason = "since one end is known by its density alone, whose gradient it follows"
        return SolverChoice(AdjointBridge(), reason)
    if all(isinstance(end, Gaussian) for end in ends):
        return SolverChoice(GaussianBridge(), "since the bridge between Gaussians is known in closed form")
    if any(isinstance(end, Point) for end in ends):
        reason = "since one end is a point: the plan is known, every pair, and one regression learns both directions"
        return SolverChoice(MatchedBridge(), reason)
    return None


def _from_samples(problem: BridgeProblem) -> SolverChoice:
    """Chooses between solvers for ends that can be sampled, under a linear reference."""
    ends = (problem.source, problem.target)
    counts = [count for count in map(row_count, ends) if count is not None]
    rows = min(counts, default=None)
    sampled = all(isinstance(end, Samples) for end in ends)
    scarce = sampled and min(counts) < FEW_TO_COMPARE
    if len(counts) == len(ends) and not scarce and problem.dim <= MANY_COLUMNS:
        unlike = _unlike_mixtures(problem)
        if unlike is not None and sampled:
            return SolverChoice(SinkhornBridge(), f"since {unlike}: it reproduces the samples exactly")
        if unlike is not None:
            return SolverChoice(IMF(), f"since {unlike}, and rows are not in memory, which SinkhornBridge needs")
    few = rows is not None and rows < FEW_ROWS
    thin = rows is not None and rows < 2 * (problem.dim + 1)
    seen = f"{'ends that can be sampled without limit' if rows is None else f'{rows} rows'} in {problem.dim} columns"
    bearable = problem.dim <= MANY_COLUMNS and not thin
    flat = _without_density(problem) if bearable else None  # of thousands of columns no covariance is made
    if bearable and flat is None:
        if scarce:
            reason = f"since {seen} are too few to choose a number of Gaussian components: it is exact for them"
            return SolverChoice(SinkhornBridge(), reason)
        if few:
            reason = (
                f"since {seen} are few for a network: it has Gaussian components, whose number is chosen on held-out "
                "rows"
            )
        else:
            reason = (
                f"since {seen} suffice for Gaussian components, whose number is chosen on held-out rows: a fit of "
                "seconds, in closed form; backward it ends in source samples (IMF learns both directions, and takes "
                "longer)"
            )
        return SolverChoice(MixtureBridge(), reason)
    if (few or thin) and sampled:
        reason = f"since {seen} are few for a network, or for any covariance: it is exact for the rows at hand"
        return SolverChoice(SinkhornBridge(), reason)
    size = f"{rows} rows are few" if few or thin else f"{problem.dim} columns are many"
    reason = f"since {size} for Gaussian components" if flat is None else flat
    return SolverChoice(
        IMF(),
        f"{reason}: its networks learn both directions, make new points and treat unseen rows like seen ones "
        "(SinkhornBridge is quicker, and exact for the rows at hand)",
    )


def _unlike_mixtures(problem: BridgeProblem) -> str | None:
    """Explains why Gaussian components do not represent the samples of an end; ``None`` if they may."""
    for name, end in (("source", problem.source), ("target", problem.target)):
        rows = known_rows(end, MOST_KNOWN, 0)
        if rows is not None:
            reason = unlike_mixtures(rows)
            if reason is not None:
                return f"the {name} {reason}, which Gaussian components do not represent"
    return None


def _without_density(problem: BridgeProblem) -> str | None:
    """Reports that the rows of an end span fewer dimensions than they have columns; ``None`` if they do not."""
    for name, end in (("source", problem.source), ("target", problem.target)):
        rows = known_rows(end, MOST_KNOWN, 0)
        if rows is not None and span_fewer(rows):
            return f"since columns of the {name} are constant or follow from others, so Gaussian components do not fit"
    return None
