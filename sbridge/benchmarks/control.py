"""Control solvers against exact answers: ``sbridge benchmark control``, or ``python -m sbridge.benchmarks.control``.

Every row is one solver on one problem, from a network whose output is zero unless its name says where it starts.
Problems with known optima (:mod:`sbridge.benchmarks.control_problems`) show the objective beside the optimum of the
chain, and the relative control error ``E_{P*}∫|u − u*|² / E_{P*}∫|u*|²``; densities
(:mod:`sbridge.benchmarks.densities`) show ``log Z`` and how far the weights of modes are off at worst.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import tyro

from sbridge.benchmarks import control_problems as problems, densities
from sbridge.benchmarks.control_problems import ControlBenchmark
from sbridge.benchmarks.densities import Target
from sbridge.benchmarks.memory import in_fresh_process, peak_memory
from sbridge.errors import NotConvergedError, unknown_name
from sbridge.evaluation import control_error, objective_and_value
from sbridge.fitting import solve
from sbridge.laws import Point
from sbridge.measures import Estimate, PathMeasure
from sbridge.processes import BrownianMotion
from sbridge.registry import Json
from sbridge.sampling import log_normaliser, sampling_problem
from sbridge.solutions import ControlSolution
from sbridge.solvers import (
    AdjointMatching,
    Annealing,
    ControlSolver,
    CrossEntropy,
    LogVariance,
    Moment,
    RelativeEntropy,
    RiccatiStart,
)
from sbridge.time import TimeGrid

QUICK = 40
"""Rows of a quick run take this many times fewer updates and paths: they show that everything works, no more."""
_PATHS = 16_384

SOLVERS: dict[str, ControlSolver] = {
    "AdjointMatching": AdjointMatching(updates=6000),
    "RelativeEntropy": RelativeEntropy(),
    "LogVariance": LogVariance(),
    "Moment": Moment(),
    "CrossEntropy": CrossEntropy(),
}
"""One set of options for all problems."""
SAMPLER = LogVariance(updates=2500, annealing=Annealing(0.01, 0.7), grid=TimeGrid.refined(50))
"""For densities, which have modes to be found and weighed: annealed, with a loss that sees the weights of modes.

Steps shrink towards the end, where modes are narrower than a step of σ√Δ: the exact control has an effective sample
size of 71 % on the nine modes with this grid, and of 40 % with 50 equal steps."""
WARM = "LogVariance, Riccati start"
"""A warm start, which for quadratic costs is the optimum itself: what the network adds is its noise."""

PROBLEMS: dict[str, tuple[Callable[[], ControlBenchmark], tuple[str, ...]]] = {
    "quadratic_ou_easy": (problems.quadratic_ou_easy, (*SOLVERS, WARM)),
    "quadratic_ou_hard": (problems.quadratic_ou_hard, (*SOLVERS, WARM)),
    "linear_ou": (problems.linear_ou, ("AdjointMatching", "RelativeEntropy", "LogVariance")),
    "double_well": (problems.double_well, ("AdjointMatching", "RelativeEntropy", "LogVariance")),
    "killed_well": (problems.killed_well, ("LogVariance", "Moment", "CrossEntropy")),
}
"""Problems with the solvers that suit them."""
TARGETS: dict[str, tuple[Callable[[], Target], float]] = {
    "nine modes": (densities.nine_modes, 5.0),
    "double wells": (densities.double_wells, 2.0),
    "many well": (densities.many_well, 2.0),
    "Challenger": (densities.challenger, 3.0),
    "funnel": (densities.funnel, 3.0),
    "forty modes": (densities.forty_modes, 25.0),
}
"""Densities with σ of the Brownian motion from the origin that is steered."""


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        only: problems and densities, by name; all by default.
        quick: a fortieth of the updates and paths, in a minute or two: whether it runs, not how good it is.
        seed: of everything random.
    """

    only: tuple[str, ...] = ()
    quick: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """A line of either table.

    Args:
        problem, solver: names.
        seconds: of training.
        steps_per_second: of training.
        memory: peak of the process that trained it, in MiB.
        numbers: what the table shows, by column.
        targets: exact answers of some columns.
        failure: why there are no numbers.
    """

    problem: str
    solver: str
    seconds: float = 0.0
    steps_per_second: float = 0.0
    memory: float = 0.0
    numbers: dict[str, Estimate | float] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    def __str__(self) -> str:
        """One line."""
        cells = [
            f"{name} {_shown(value)}" + (f" [{self.targets[name]:.5g}]" if name in self.targets else "")
            for name, value in self.numbers.items()
        ]
        head = f"{self.problem:<18}{self.solver:<29}"
        if self.failure is not None:
            return head + self.failure
        cost = f"{self.seconds:6.1f} s  {self.steps_per_second:7.1f} steps/s  {self.memory:5.0f} MiB"
        return "  ".join([head + cost, *cells])

    def to_json(self) -> Json:
        """As it stands in files."""
        return dataclasses.asdict(self)


def rows(settings: Settings) -> Iterator[Row]:
    """The rows, each trained in a process of its own, so that its memory is its own.

    Raises:
        UnknownNameError: for a name in ``only`` that is neither a problem nor a density.
    """
    for problem, solver in plan(settings):
        arguments = [problem, solver, str(settings.seed), str(int(settings.quick))]
        try:
            document = json.loads(in_fresh_process("sbridge.benchmarks.control", arguments))
        except NotConvergedError as error:  # one solver that breaks down is a result, too
            yield Row(problem, solver, failure=str(error))
            continue
        numbers = {
            name: Estimate(**value) if isinstance(value, dict) else value for name, value in document["numbers"].items()
        }
        yield Row(**document | {"numbers": numbers})


def plan(settings: Settings) -> list[tuple[str, str]]:
    """The pairs of problem and solver to be run."""
    known = [*PROBLEMS, *TARGETS]
    for name in settings.only:
        if name not in known:
            raise unknown_name("benchmark problem", name, known)
    names = settings.only or known
    pairs = [(name, solver) for name in names if name in PROBLEMS for solver in PROBLEMS[name][1]]
    return pairs + [(name, "LogVariance") for name in names if name in TARGETS]


def run(problem: str, solver: str, seed: int = 0, divisor: int = 1) -> Row:
    """One row, in this process.

    Args:
        problem: a name in :data:`PROBLEMS` or :data:`TARGETS`.
        solver: a name in :data:`SOLVERS`, or :data:`WARM`.
        seed: of training and scores.
        divisor: of updates and paths.
    """
    if problem in TARGETS:
        return _density_row(problem, seed, divisor)
    benchmark, n = PROBLEMS[problem][0](), max(2, _PATHS // divisor)
    options = _options(solver)
    options = dataclasses.replace(
        options, updates=max(1, options.updates // divisor), grid=benchmark.grid, rule=benchmark.rule
    )
    solution, seconds = _timed(lambda: solve(benchmark.problem, options, seed=seed))
    memory, truth = peak_memory(), benchmark.truth
    objective, value = objective_and_value(solution, n, seed=seed + 1)
    numbers: dict[str, Estimate | float] = {
        "objective": objective,
        "excess %": 100.0 * (objective.value - truth.optimum) / abs(truth.optimum),
        "−log Eα": value,
        "control error": control_error(solution, truth.control, n, seed=seed + 2),
    }
    if benchmark.problem.stopping is not None:
        idle = PathMeasure(benchmark.problem.process, None, benchmark.problem.start, grid=benchmark.grid)
        zero, _ = objective_and_value(ControlSolution(benchmark.problem, idle), 4 * n, seed=seed + 1)
        numbers["excess % of zero control's"] = 100.0 * (objective.value - truth.optimum) / (zero.value - truth.optimum)
    targets = {"objective": truth.optimum, "−log Eα": truth.tilted}
    return Row(problem, solver, seconds, options.updates / seconds, memory, numbers, targets)


def main(settings: Settings) -> None:
    """Prints the rows as they come."""
    for row in rows(settings):
        _say(str(row))


def _options(solver: str) -> ControlSolver:
    if solver == WARM:
        return dataclasses.replace(SOLVERS["LogVariance"], start=RiccatiStart())
    return SOLVERS[solver]


def _density_row(problem: str, seed: int, divisor: int) -> Row:
    make, sigma = TARGETS[problem]
    target, n = make(), max(2, 4 * _PATHS // divisor)
    options = dataclasses.replace(SAMPLER, updates=max(1, SAMPLER.updates // divisor))
    steered = sampling_problem(target.law, BrownianMotion(sigma), Point(torch.zeros(target.dim)))
    solution, seconds = _timed(lambda: solve(steered, options, seed=seed))
    memory, found = peak_memory(), log_normaliser(solution, n, seed=seed + 1)
    weighted = target.mean_observables(found.x, found.weights.values)
    plain = target.mean_observables(found.x)
    numbers: dict[str, Estimate | float] = {
        "log Z": found.log_normaliser,
        "ELBO": found.lower_bound,
        "ESS %": 100.0 * found.weights.effective_sample_size / n,
        "worst mode": float((weighted - target.expectations).abs().max()),
        "unweighted": float((plain - target.expectations).abs().max()),
    }
    targets = {"log Z": target.log_normaliser, "worst mode": 0.0}
    return Row(problem, "LogVariance", seconds, options.updates / seconds, memory, numbers, targets)


def _timed(task: Callable[[], ControlSolution]) -> tuple[ControlSolution, float]:
    begun = time.perf_counter()
    return task(), time.perf_counter() - begun


def _shown(value: Estimate | float) -> str:
    if not isinstance(value, Estimate):
        return f"{value:.3g}"
    size = "" if value.effective_sample_size is None else f" (effective {value.effective_sample_size:.0f})"
    return f"{value.value:.5g} ± {value.standard_error:.2g}{size}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in (*PROBLEMS, *TARGETS):  # one row, for the parent process
        name, how, number, quick = sys.argv[1:]
        _say(json.dumps(run(name, how, int(number), QUICK if int(quick) else 1).to_json()))
    else:
        main(tyro.cli(Settings))
