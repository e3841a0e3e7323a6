"""Control solvers and exact answers: ``sbridge benchmark control``.

Every row is one solver on one problem, from a network whose output is zero unless its name says where it starts, with
one set of options per solver. Problems with known optima (:mod:`sbridge.benchmarks.control_problems`) show the
objective, the optima of the chain and of continuous time, the relative control error
``E_{P*}∫|u − u*|² / E_{P*}∫|u*|²``, and the largest Kolmogorov–Smirnov distance between a coordinate's end distribution
and the optimal one. Densities (:mod:`sbridge.benchmarks.densities`) show ``log Z``, and how far the weights of modes
are off at worst. Each fit has a process and a thread of its own; seconds are CPU time of its training.

Nulls stand first (:data:`NULLS`): no control, and for densities Laplace's approximation at all modes that ascents from
random points find, with the importance weights of samples from it. A solver that they beat has shown nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.benchmarks import control_problems as problems, densities
from sbridge.benchmarks.control_problems import ControlBenchmark
from sbridge.benchmarks.control_rows import Row, merged
from sbridge.benchmarks.densities import Target
from sbridge.benchmarks.laplace import laplace
from sbridge.benchmarks.memory import in_fresh_process, peak_memory
from sbridge.benchmarks.output import say
from sbridge.benchmarks.tables import timed
from sbridge.errors import InvalidInputError, NotConvergedError, check_known
from sbridge.evaluation.control import control_error, objective_and_value
from sbridge.evaluation.normaliser import WeightedSamples, log_normaliser
from sbridge.fitting import solve
from sbridge.laws import Gaussian, GaussianMixture, Point
from sbridge.measures import Estimate, PathMeasure, importance_weights
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import BrownianMotion, LinearSchedule, VariancePreserving
from sbridge.random import derive, generator
from sbridge.solutions import ControlSolution
from sbridge.solvers import (
    AdjointMatching,
    Annealing,
    ControlSolver,
    CrossEntropy,
    LogVariance,
    Moment,
    ReciprocalAdjointMatching,
    RelativeEntropy,
    RiccatiStart,
)
from sbridge.time import TimeGrid

QUICK = 40
"""Factor by which a quick run has fewer updates and paths: it shows that everything works, no more."""
_PATHS = 16_384

_PROBE = 30
"""Number of updates that are timed to find how many fit into a budget: whole rounds of adjoint matching's replay."""

SOLVERS: dict[str, ControlSolver] = {
    "AdjointMatching": AdjointMatching(),
    "RelativeEntropy": RelativeEntropy(),
    "LogVariance": LogVariance(),
    "Moment": Moment(),
    "CrossEntropy": CrossEntropy(),
}
"""One set of options for all problems."""
ZERO = "zero control"
LAPLACE = "Laplace, 256 starts"
NULLS = {"problem": (ZERO,), "density": (ZERO, LAPLACE)}
"""Rows without a fit, first in every table."""
WARM = ", Riccati start"
"""A warm start, which for quadratic costs is the optimum itself: what the network adds is its noise."""
REVERSED = ", time reversal"
_ANNEALED = {"annealing": Annealing(0.01, 0.5), "grid": TimeGrid.refined(50)}
SAMPLERS: dict[str, ControlSolver] = {
    "LogVariance": LogVariance(updates=2500, **_ANNEALED),
    "ReciprocalAdjointMatching": ReciprocalAdjointMatching(grid=TimeGrid.refined(50)),
}
"""For densities, which have modes to be found and weighed: annealed, or within a trust region.

Steps shrink towards the end, where modes are narrower than a step of σ√Δ: the exact control has an effective sample
size of 71 % on the nine modes with this grid, and of 40 % with 50 equal steps."""

PROBLEMS: dict[str, tuple[Callable[[], ControlBenchmark], tuple[str, ...], tuple[str, ...]]] = {
    "quadratic_ou_easy": (
        problems.quadratic_ou_easy,
        ("AdjointMatching", "AdjointMatching" + WARM, "LogVariance" + WARM),
        tuple(SOLVERS),
    ),
    "quadratic_ou_hard": (
        problems.quadratic_ou_hard,
        ("AdjointMatching", "AdjointMatching" + WARM, "LogVariance" + WARM),
        tuple(SOLVERS),
    ),
    "linear_ou": (problems.linear_ou, tuple(SOLVERS), ()),
    "double_well": (problems.double_well, ("AdjointMatching", "RelativeEntropy", "LogVariance"), ()),
    "killed_well": (problems.killed_well, ("LogVariance", "Moment", "CrossEntropy"), ()),
}
"""Problems with suitable solvers, and those that are compared at an equal budget too."""
TARGETS: dict[str, tuple[Callable[[], Target], float, tuple[str, ...]]] = {
    "nine modes": (
        densities.nine_modes,
        5.0,
        ("LogVariance", "LogVariance" + REVERSED, "ReciprocalAdjointMatching" + REVERSED),
    ),
    "double wells": (densities.double_wells, 2.0, ("LogVariance",)),
    "many well": (densities.many_well, 2.0, ("LogVariance",)),
    "Challenger": (densities.challenger, 3.0, ("LogVariance",)),
    "funnel": (densities.funnel, 3.0, ("LogVariance",)),
    "forty modes": (densities.forty_modes, 25.0, ("LogVariance",)),
}
"""Densities with the standard deviation ``σ`` of the uncontrolled end, and solvers.

A Brownian motion of scale σ is steered from the origin; by time reversal, a variance-preserving process with stationary
law ``N(0, σ²)``, whose noise falls towards the end like that of a diffusion model run backwards."""


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        only: problems and densities, by name; all by default.
        quick: a fortieth of the updates and paths, in a minute or two: whether it runs, not how good it is.
        seeds: of everything random; with several, each number is a mean over fits with its standard error.
        budget: seconds of CPU time that every loss gets in the rows at equal budget; 0: no such rows.
        nulls: only the rows without a fit.
    """

    only: tuple[str, ...] = ()
    quick: bool = False
    seeds: tuple[int, ...] = (0,)
    budget: float = 120.0
    nulls: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or self.budget < 0:
            raise InvalidInputError(f"at least one seed and a budget ≥ 0 are needed, got {self.seeds}, {self.budget}.")


@dataclass(frozen=True)
class Case:
    """A row to be measured: ``solver`` is a name in the tables; ``budget`` in seconds, 0: the default updates."""

    problem: str
    solver: str
    budget: float = 0.0

    @property
    def label(self) -> str:
        """The name of the row."""
        return f"{self.solver}, {self.budget:g} s" if self.budget else self.solver


def rows(settings: Settings, done: Collection[Row] = ()) -> Iterator[Row]:
    """Yields the rows, each fitted in its own process, to measure its memory.

    Args:
        settings: which.
        done: rows of an earlier run, which are not measured again.

    Raises:
        UnknownNameError: for a name in ``only`` that is neither a problem nor a density.
    """
    known, divisor = {row.key: row for row in done}, QUICK if settings.quick else 1
    for case in plan(settings):
        key = (case.problem, case.label, settings.seeds)
        yield known[key] if key in known else merged([_apart(case, seed, divisor) for seed in settings.seeds])


def plan(settings: Settings) -> list[Case]:
    """Returns the rows to be measured."""
    known = [*PROBLEMS, *TARGETS]
    check_known("benchmark problem", settings.only, known)
    names, cases = settings.only or known, []
    for name in names:
        if name in TARGETS:
            cases += [Case(name, solver) for solver in (*NULLS["density"], *TARGETS[name][2])]
            continue
        _, own, compared = PROBLEMS[name]
        cases += [Case(name, solver) for solver in (*NULLS["problem"], *own)]
        cases += [Case(name, solver, settings.budget) for solver in compared if settings.budget]
    trivial = {null for nulls in NULLS.values() for null in nulls}
    return [case for case in cases if case.solver in trivial] if settings.nulls else cases


def run(case: Case, seed: int = 0, divisor: int = 1) -> Row:
    """Runs one fit in this process.

    Args:
        case: of the plan.
        seed: of training and scores.
        divisor: of updates, budget and paths.
    """
    return (_density_row if case.problem in TARGETS else _problem_row)(case, seed, divisor)


def _problem_row(case: Case, seed: int, divisor: int) -> Row:
    benchmark, n = PROBLEMS[case.problem][0](), max(2, _PATHS // divisor)
    problem, truth = benchmark.problem, benchmark.truth
    best, idle = (
        ControlSolution(
            problem, PathMeasure(problem.process, u, problem.start, grid=benchmark.grid, rule=benchmark.rule)
        )
        for u in (truth.control, None)
    )
    if case.solver == ZERO:
        solution, updates, seconds = idle, 0, 0.0
    else:
        base, warm = case.solver.removesuffix(WARM), case.solver.endswith(WARM)
        options = dataclasses.replace(SOLVERS[base], grid=benchmark.grid, rule=benchmark.rule)
        options = dataclasses.replace(options, start=RiccatiStart()) if warm else options
        solution, updates, seconds = _fit(problem, options, case.budget, seed, divisor)
    memory, judge = peak_memory(), derive(seed, "judge")
    objective, value = objective_and_value(solution, n, seed=judge)
    numbers: dict[str, Estimate | float] = {
        "objective": objective,
        "excess %": 100.0 * (objective.value - truth.optimum) / abs(truth.optimum),
        "−log Eα": value,
        "control error": control_error(solution, truth.control, n, seed=derive(judge, "error")),
    }
    if problem.stopping is None:
        ends = [one.sample(n, seed=derive(judge, "ends", i)).x[-1] for i, one in enumerate((solution, best))]
        numbers["end laws"] = kolmogorov_smirnov(*ends)
        if benchmark.positive is not None:
            numbers["worst well"] = float(((ends[0] > 0).double().mean(0) - benchmark.positive).abs().max())
    else:
        zero, _ = objective_and_value(idle, 4 * n, seed=judge)
        numbers["excess % of zero control's"] = 100.0 * (objective.value - truth.optimum) / (zero.value - truth.optimum)
    targets = {"objective": truth.optimum, "−log Eα": truth.tilted, "limit": truth.limit}
    return Row(case.problem, case.label, (seed,), updates, seconds, memory, numbers, targets)


def _density_row(case: Case, seed: int, divisor: int) -> Row:
    make, sigma, _ = TARGETS[case.problem]
    target, n, judge = make(), max(2, 4 * _PATHS // divisor), derive(seed, "judge")
    more: dict[str, float] = {}
    if case.solver == LAPLACE:
        approximation, seconds = timed(lambda: laplace(target, seed=seed))
        memory, updates, found = peak_memory(), 0, _weighted(target, approximation.mixture, n, judge)
        more = {"modes": float(approximation.modes), "Laplace's log Z": approximation.log_normaliser}
    else:
        problem = steered(target, sigma, reversal=case.solver.endswith(REVERSED))
        if case.solver == ZERO:
            still = PathMeasure(problem.process, None, problem.start, grid=TimeGrid.uniform(1))
            solution, updates, seconds = ControlSolution(problem, still), 0, 0.0
        else:
            solver = SAMPLERS[case.solver.removesuffix(REVERSED)]
            solution, updates, seconds = _fit(problem, solver, 0.0, seed, divisor)
        memory, found = peak_memory(), log_normaliser(solution, n, seed=judge)
    weighted = target.mean_observables(found.x, found.weights.values)
    plain = target.mean_observables(found.x)
    numbers: dict[str, Estimate | float] = {
        "log Z": found.log_normaliser,
        "ELBO": found.lower_bound,
        "ESS %": 100.0 * found.weights.effective_sample_size / n,
        "worst mode": float((weighted - target.expectations).abs().max()),
        "unweighted": float((plain - target.expectations).abs().max()),
        **more,
    }
    targets = {"log Z": target.log_normaliser, "worst mode": 0.0}
    return Row(case.problem, case.label, (seed,), updates, seconds, memory, numbers, targets)


def _weighted(target: Target, law: GaussianMixture, n: int, seed: int) -> WeightedSamples:
    """Draws samples of ``law`` and weights them to be those of the density."""
    x = law.sample(n, generator(seed))
    logs = target.law.log_density(x) - law.log_density(x)
    weights = importance_weights(logs)
    return WeightedSamples(x, weights, weights.log_normaliser, Estimate.of(logs))


def steered(target: Target, sigma: float, *, reversal: bool) -> ControlProblem:
    """Makes a control problem of sampling from ``target``: see :data:`TARGETS`."""
    centre = torch.zeros(target.dim)
    if not reversal:
        return sampling_problem(target.law, BrownianMotion(sigma), Point(centre))
    noise = VariancePreserving(LinearSchedule(20.0, 0.1), stationary_std=sigma)
    return sampling_problem(target.law, noise, Gaussian(centre, sigma**2 * torch.eye(target.dim)))


def kolmogorov_smirnov(x: Tensor, y: Tensor) -> float:
    """Computes the largest distance of the distribution functions of a column of ``x`` and the same column of ``y``.

    Both ``(n, dim)``. For equal distributions about ``1.4 √(2/n)`` in one column out of twenty.
    """
    both = torch.cat([x, y])
    order = both.argsort(0)
    steps = torch.cat([torch.full_like(x, 1.0 / len(x)), torch.full_like(y, -1.0 / len(y))]).double()
    return float(steps.gather(0, order).cumsum(0).abs().max())


def updates_within(problem: ControlProblem, options: ControlSolver, budget: float, seed: int) -> int:
    """Returns how many updates fit into ``budget`` CPU seconds, from the time of a few, at least one.

    Known before training, so that the learning rate falls over the whole of it.
    """
    probe, begun = dataclasses.replace(options, updates=2 * _PROBE), time.process_time()
    state = probe.init(problem, seed)
    set_up = time.process_time() - begun
    for _ in range(_PROBE):  # whatever is loaded on first use
        state, _ = probe.step(problem, state)
    begun = time.process_time()
    for _ in range(_PROBE):
        state, _ = probe.step(problem, state)
    each = (time.process_time() - begun) / _PROBE
    return max(1, int((budget - set_up) / each))


def _fit(
    problem: ControlProblem, options: ControlSolver, budget: float, seed: int, divisor: int
) -> tuple[ControlSolution, int, float]:
    """Returns the solution, its updates, and the CPU seconds of training."""
    updates = updates_within(problem, options, budget / divisor, seed) if budget else options.updates // divisor
    options, begun = dataclasses.replace(options, updates=max(1, updates)), time.process_time()
    solution = solve(problem, options, seed=seed)
    return solution, options.updates, time.process_time() - begun


def _apart(case: Case, seed: int, divisor: int) -> Row:
    arguments = [case.problem, case.solver, str(case.budget), str(seed), str(divisor)]
    try:
        return Row.from_json(json.loads(in_fresh_process("sbridge.benchmarks.control", arguments, threads=1)))
    except NotConvergedError as error:  # one solver that breaks down is a result, too
        return Row(case.problem, case.label, (seed,), failure=str(error))


if __name__ == "__main__":  # one fit, for the parent process
    name, how, limit, number, part = sys.argv[1:]
    say(json.dumps(run(Case(name, how, float(limit)), int(number), int(part)).to_json()))
