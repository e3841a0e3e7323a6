"""From two data sets to a bridge: explicit choices, the problem in model units, the run of the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Unpack, cast

import torch
from torch import Tensor

from sbridge import distributed
from sbridge.data.annotated import AnnotatedCells
from sbridge.diffusion.reverse import end_distribution, moments
from sbridge.diffusion.training import ScoreMatching
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.exact import balanced
from sbridge.exact.ends import describe
from sbridge.fitting.arrivals import warn_if_missed
from sbridge.fitting.choice import SolverChoice, choose_solver
from sbridge.fitting.data_checks import warn_if_hard
from sbridge.fitting.selection import End, Selection, ends_of
from sbridge.laws import Density, Law, as_law, check_same_kind, check_same_space
from sbridge.laws.arrays import check_precision
from sbridge.laws.frames import common_columns
from sbridge.laws.scaling import AffineScaling, CommonScale, ScalingRecipe, check_units
from sbridge.laws.shapes import common_shape, shape_of
from sbridge.laws.stored import MOST_KNOWN, known_rows
from sbridge.modes import standard_modes
from sbridge.problems import BridgeProblem, Growth, SoftEnds, StateCost
from sbridge.processes import BrownianMotion, LinearProcess, Process, VariancePreserving
from sbridge.processes.base import check_horizon
from sbridge.random import Seed, as_seed, derive, generator
from sbridge.solutions import Bridge, ControlSolution
from sbridge.solvers.base import Method, P, R, S, Solver
from sbridge.training import Callback, StateDict, run_loop

NOISE_SHARE = 0.1
_PROBE_ROWS = 4096


@dataclass(frozen=True)
class SigmaChoice:
    """A noise level for a Brownian reference, with the numbers that explain it.

    ``σ² T = 0.1 s²``, where ``s`` is the mean over coordinates of the pooled standard deviation of both ends. Half way,
    the noise ``σ√T/2`` of the bridge is then 16 % of ``s``. A larger σ gives smoother plans, easier problems and more
    diffuse predictions. A smaller σ is closer to optimal transport and harder for every solver.

    Attributes:
        sigma: σ, in units of the data per root of time.
        epsilon: ``σ² T``, the entropic constant for the cost ``½|x − y|²``.
        spread: ``s``.
        shift: root mean square distance per coordinate between the means of the two ends.
    """

    sigma: float
    epsilon: float
    spread: float
    shift: float

    def __str__(self) -> str:
        return (
            f"sigma = {self.sigma:.4g} (epsilon = {self.epsilon:.4g}; half way, the standard deviation of the noise is "
            f"{0.5 * self.epsilon**0.5 / self.spread:.0%} of that of the data, {self.spread:.4g}; the means of the "
            f"ends are {self.shift / self.spread:.2g} standard deviations apart per coordinate)"
        )


@standard_modes(gradients=False)
def choose_sigma(x0: End, x1: End, *, horizon: float = 1.0, seed: Seed = 0) -> SigmaChoice:
    """Chooses the default σ for two ends: see :class:`SigmaChoice`. Ends in closed form are sampled with ``seed``.

    Raises:
        InvalidInputError: if every column is constant, the ends do not fit together, the horizon is not positive, or an
            end is a :class:`~sbridge.laws.Density`, whose standard deviation is unknown.
    """
    horizon = check_horizon(horizon)
    common_shape((x0, x1), ("x0", "x1"))
    source, target = as_law(x0, "x0"), as_law(x1, "x1")
    _check_spreads(source, target)
    return _sigma_for(_probes(source, target, as_seed(seed)), horizon)


def _sigma_for(probes: tuple[Tensor, Tensor], horizon: float) -> SigmaChoice:
    rows0, rows1 = probes
    scaling = CommonScale()(rows0, rows1)
    spread = float(scaling.scale)
    shift = float((rows1.double().mean(0) - rows0.double().mean(0)).square().mean().sqrt())
    epsilon = NOISE_SHARE * spread**2
    return SigmaChoice((epsilon / horizon) ** 0.5, epsilon, spread, shift)


@standard_modes(gradients=True)
def solve(
    problem: P,
    solver: Method[P, S, R],
    *,
    seed: Seed,
    callbacks: Sequence[Callback] = (),
    resume_from: StateDict | None = None,
) -> R:
    """Runs ``solver`` on ``problem`` in the problem's own units; returns the result of the solver.

    Args:
        problem: what to solve: a :class:`~sbridge.problems.BridgeProblem` gives a :class:`~sbridge.solutions.Bridge`, a
            :class:`~sbridge.problems.ControlProblem` a :class:`~sbridge.solutions.ControlSolution`.
        solver: with its hyperparameters.
        seed: of everything random in the fit.
        callbacks: called after every step. One that raises :class:`~sbridge.training.StopTraining`, such as
            :class:`~sbridge.training.Patience`, ends training there; the solution says so in ``stopped``.
        resume_from: ``state.state_dict()`` of an interrupted run of the same problem and solver; the result equals that
            of an uninterrupted run.

    Raises:
        UnsupportedError: if the solver cannot treat the problem.
        NonFiniteError: if training diverges.
        NotConvergedError: if an iteration does not reach its tolerance.
        InvalidInputError: if several processes (``sbridge.distributed``) solve different problems.
        DistributedError: if another of them has ended.
    """
    problem = _plain(problem, as_seed(seed))
    _check_treatable(problem, solver)
    told = {"problem": problem, "solver": solver, "seed": seed, "resumed": resume_from, "callbacks": bool(callbacks)}
    distributed.check_equal(lambda: distributed.describe(told, "fit"))
    with distributed.together():
        state = solver.init(problem, as_seed(seed)) if resume_from is None else solver.resume(problem, resume_from)
        state = run_loop(lambda s: solver.step(problem, s), state, lambda s: solver.finished(problem, s), callbacks)
    solution = _of(solver.finish(problem, state), problem)
    if state.stopped is None or not isinstance(solution, (Bridge, ControlSolution)):
        return solution
    early = f"{state.stopped} (after {state.step} of at most {solver.max_steps(problem)} steps)"
    return cast("R", replace(solution, stopped=early))


@dataclass(frozen=True, eq=False)
class Preparation:
    """Everything that a fit decides before its first step.

    Attributes:
        problem: in units of the data; a quadratic state cost is part of its reference.
        scaling: from data to model units.
        solver: chosen or given.
        seed: of the fit.
        notes: one sentence for each choice that the user did not make.
        choice: the solver with the reason for it, if the user gave none.
        columns: names of the columns, if an end is a data frame.
        shape: of one sample, if an end is an array of more than two dimensions.
    """

    problem: BridgeProblem
    scaling: AffineScaling
    solver: Solver
    seed: int
    notes: tuple[str, ...] = ()
    choice: SolverChoice | None = None
    columns: tuple[str, ...] | None = field(default=None, kw_only=True)
    shape: tuple[int, ...] | None = field(default=None, kw_only=True)

    __repr__ = short_repr

    @property
    def model(self) -> BridgeProblem:
        """The problem in model units."""
        return self.problem if self.scaling.changes_nothing else self.problem.rescaled(self.scaling)

    @standard_modes(gradients=True)
    def run(self, *, callbacks: Sequence[Callback] = (), resume_from: StateDict | None = None) -> Bridge:
        """Solves the model problem and returns the bridge in units of the data.

        Warns with :class:`~sbridge.errors.MarginalWarning` if the bridge does not carry the samples of an end to the
        mean, the covariance and the shares of values of the other end: see
        :func:`~sbridge.fitting.arrivals.warn_if_missed`.
        """
        solved = solve(self.model, self.solver, seed=self.seed, callbacks=callbacks, resume_from=resume_from)
        bridge = solved if self.scaling.changes_nothing else solved.rescaled(self.scaling, self.problem)
        with distributed.together():
            warn_if_missed(bridge, self.problem, self.seed)
        return replace(bridge, columns=self.columns, shape=self.shape)


@standard_modes(gradients=True)
def prepare(
    x0: End,
    x1: End,
    *,
    reference: Process | None = None,
    state_cost: StateCost | None = None,
    balance: SoftEnds | Growth | None = None,
    solver: Solver | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
) -> Preparation:
    """Checks the input and makes every choice of :func:`fit`, without running anything yet.

    Warns of ends that are hard for every solver: see ``sbridge.fitting.data_checks``.
    """
    _check_options(reference, solver, scaling)
    seed, columns = as_seed(seed), common_columns((x0, x1), ("x0", "x1"))
    shape = common_shape((x0, x1), ("x0", "x1"))
    source, target = as_law(x0, "x0"), as_law(x1, "x1")
    probes = _probes(source, target, seed)
    notes = []
    if reference is None:
        _check_spreads(source, target)
        choice = _sigma_for(probes, 1.0)
        reference = BrownianMotion(sigma=choice.sigma)
        notes.append(f"reference: Brownian motion, {choice}")
    problem = _plain(BridgeProblem(source, target, reference, state_cost=state_cost, balance=balance), seed)
    notes += [note for note in (describe(problem),) if note is not None]
    choice = None
    if solver is None:
        choice = choose_solver(problem)
        solver = choice.solver
        notes.append(f"solver: {choice}; {solver}")
    _check_treatable(problem, solver)
    _check_recipe(solver, shape)
    check_precision(*probes)
    known0, known1 = (
        None if isinstance(end, Density) else rows for end, rows in zip((source, target), probes, strict=True)
    )
    warn_if_hard(known0, known1, problem.reference)
    scaling = type(solver).scaling if scaling is None else scaling
    return Preparation(problem, scaling(*probes), solver, seed, tuple(notes), choice, columns=columns, shape=shape)


@standard_modes(gradients=True)
def fit(
    x0: End | AnnotatedCells,
    x1: End | None = None,
    *,
    reference: Process | None = None,
    state_cost: StateCost | None = None,
    balance: SoftEnds | Growth | None = None,
    solver: Solver | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
    callbacks: Sequence[Callback] = (),
    **selection: Unpack[Selection],
) -> Bridge:
    """Fits a Schrödinger bridge between two ends: ``min KL(P ‖ R) + E_P∫V dt``.

    Args:
        x0: source: array, tensor or data frame ``(n, dim)``, or a distribution; or an ``AnnData`` with the cells of
            both ends.
        x1: target: the same; with an ``AnnData`` nothing.
        reference: the process to stay close to, in units of the data; ``None``: Brownian motion with
            :func:`choose_sigma`.
        state_cost: ``V`` per unit time, of states in units of the data, such as ``costs.Quadratic(matrix, vector)``,
            which becomes part of the reference of the bridge; ``None``: zero.
        balance: ``ends.SoftEnds(source, target)`` in nats: ends that may change, by growth and death or because rows
            of the target are not explained; ``ends.Growth(rate)``: the source grows at a known rate; ``None``: the
            bridge has exactly these ends.
        solver: ``None``: :func:`choose_solver`.
        scaling: how data are scaled inside; σ is scaled with them, so this never changes the problem, only its
            numerics. ``None``: the default of the solver, mostly :class:`~sbridge.laws.scaling.CommonScale`.
        seed: integer or generator; equal seeds give equal bridges.
        callbacks: called after every training step.
        selection: of an ``AnnData``: ``time_key``, the column of ``obs`` with the times; ``times``, the two to use, if
            there are more; ``rep``, a name in ``obsm`` or ``"X"``, by default ``"X_pca"``. The bridge runs from 0 to
            the horizon of the reference, which is 1 by default; :func:`fit_course` keeps the times.

    Returns:
        The bridge, in units of the data. float64 input is fitted in float64, which is slower. Of data frames the bridge
        knows the columns, :attr:`~sbridge.Bridge.columns`.

    Raises:
        InvalidInputError: for NaN, infinities, mismatched columns or dtypes, fewer than two rows, constant data,
            σ ≤ 0.
        UnsupportedError: if the solver cannot treat ends, reference or state cost.
    """
    source, target = ends_of(x0, x1, selection)
    prepared = prepare(
        source,
        target,
        reference=reference,
        state_cost=state_cost,
        balance=balance,
        solver=solver,
        scaling=scaling,
        seed=seed,
    )
    return prepared.run(callbacks=callbacks)


@standard_modes(gradients=True)
def diffuse(
    x0: End,
    *,
    process: LinearProcess | None = None,
    solver: ScoreMatching | None = None,
    seed: Seed = 0,
    callbacks: Sequence[Callback] = (),
) -> Bridge:
    """Fits a reverse diffusion of one data set as a bridge: ``bridge.backward`` generates; its control is ``σᵀ score``.

    Args:
        x0: the data: array or tensor ``(n, dim)``, or a distribution that can be sampled.
        process: the noising process, in units of the data; ``None``: :func:`choose_noise_schedule`.
        solver: how the score is learned; ``None``: :class:`~sbridge.diffusion.ScoreMatching` with its defaults.
        seed: integer or generator; equal seeds give equal models.
        callbacks: called after every training step.

    Returns:
        The bridge from the data to ``N(m, P)``, the Gaussian with the moments of the noised data at ``t = T``.
        ``bridge.reversed().transport(rows, seed=…)`` transports prior samples to data; :func:`sbridge.generate` draws
        both.

    Raises:
        InvalidInputError, UnsupportedError: as :func:`fit`.
    """
    source = as_law(x0, "x0")
    process = choose_noise_schedule(source) if process is None else process
    solver = ScoreMatching() if solver is None else solver
    _check_recipe(solver, shape_of(x0))
    bridge = fit(
        source, end_distribution(process, source), reference=process, solver=solver, seed=seed, callbacks=callbacks
    )
    return replace(bridge, shape=shape_of(x0))


@standard_modes(gradients=False)
def choose_noise_schedule(x0: End) -> VariancePreserving:
    """Chooses variance-preserving noise with the mean and the root mean square deviation of the data.

    β grows linearly from 0.1 to 20 over ``T = 1``. At the end, ``e^{−∫β/2} = .7 %`` of the data remains.

    Args:
        x0: data: array or tensor ``(n, dim)``, or a distribution.

    Raises:
        InvalidInputError: for samples that are all equal, or an array without numbers.
    """
    law = as_law(x0, "x0")
    mean, covariance = moments(law)
    spread = float(covariance.diagonal().double().mean().sqrt())
    rows = known_rows(law, MOST_KNOWN, 0)
    constant = rows is not None and bool((rows == rows[:1]).all())  # the covariance is then rounding
    if constant or not spread > 0:
        raise InvalidInputError(
            "all rows of x0 are equal, so the noise level, their standard deviation, would be zero."
        )
    return VariancePreserving(stationary_std=spread, mean=mean.double())


def _rows_of(law: Law, seed: Seed) -> Tensor | None:
    """Returns rows of a distribution; ``None`` for a density, which cannot be sampled."""
    if isinstance(law, Density):
        return None
    rows = known_rows(law, MOST_KNOWN, as_seed(seed))
    return law.sample(_PROBE_ROWS, generator(seed)) if rows is None else rows


def _probes(source: Law, target: Law, seed: int) -> tuple[Tensor, Tensor]:
    """Returns rows of either end; raises InvalidInputError unless their columns, dtype and device agree.

    An end that is only a density is represented by the rows of the other one, and two such ends by the origin.
    """
    names = ("x0", "x1")
    rows0, rows1 = _rows_of(source, seed), _rows_of(target, seed)
    check_same_space(source, target, names)
    rows0, rows1 = rows1 if rows0 is None else rows0, rows0 if rows1 is None else rows1
    if rows0 is None or rows1 is None:
        return torch.zeros(1, source.dim, device="cpu"), torch.zeros(1, source.dim, device="cpu")
    check_same_kind(rows0, rows1, names)
    check_units(rows0, rows1, names)
    return rows0, rows1


def _check_spreads(source: Law, target: Law) -> None:
    """Raises InvalidInputError if an end has no rows from whose standard deviation σ could be chosen."""
    for name, end in (("x0", source), ("x1", target)):
        if isinstance(end, Density):
            raise InvalidInputError(
                f"{name} is an unnormalised density, from which no noise level can be chosen: give a reference, such "
                "as BrownianMotion(sigma) with σ√T about the width of the density."
            )


def _check_options(reference: object, solver: object, scaling: object) -> None:
    """Raises InvalidInputError for an option of the wrong kind, such as a class or a name instead of an object."""
    for name, value, kind, example in (
        ("reference", reference, Process, "BrownianMotion(sigma=1.0)"),
        ("solver", solver, Solver, "IMF()"),
        ("scaling", scaling, ScalingRecipe, "CommonScale()"),
    ):
        if value is not None and (isinstance(value, type) or not isinstance(value, kind)):
            raise InvalidInputError(f"{name} must be an object such as {example}, or None; got {shown(value)}.")


def _plain(problem: P, seed: int) -> P:
    """Returns a bridge problem with its quadratic cost in the reference and its ends chosen, any other as it is."""
    if not isinstance(problem, BridgeProblem):
        return problem
    return cast("P", balanced(problem.absorbed(), seed=derive(seed, "ends")))


def _of(solution: R, problem: object) -> R:
    """Returns the bridge of a plain problem with what is left of the state cost and of soft ends."""
    if not (isinstance(solution, Bridge) and isinstance(problem, BridgeProblem)):
        return solution
    return cast("R", solution.of(problem))


def _check_recipe(solver: object, shape: tuple[int, ...] | None) -> None:
    """Raises InvalidInputError if the network of a solver is for samples of another shape."""
    recipe = getattr(solver, "network", None)
    wanted = getattr(recipe, "shape", None)
    if None not in (shape, wanted) and wanted != shape:
        raise InvalidInputError(
            f"{type(recipe).__name__} is for samples of shape {wanted}, and the data have shape {shape}."
        )


def _check_treatable(problem: P, solver: Method[P, S, R]) -> None:
    if not isinstance(problem, solver.problem_type):
        raise UnsupportedError(
            f"{type(solver).__name__} solves a {solver.problem_type.__name__}, got a {type(problem).__name__}; use a "
            "solver for that problem, such as IMF() for bridges and AdjointMatching() for control."
        )
    reason = solver.refusal(problem)
    if reason is not None:
        raise UnsupportedError(reason)
