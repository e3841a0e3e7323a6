"""Bridges with a known solution: ``sbridge benchmark bridge``.

Pairs: mixture potentials in any dimension (:class:`~sbridge.benchmarks.pairs.MixturePair`), also with a quadratic
state cost (:class:`~sbridge.benchmarks.pairs.StateCostPair`), Gaussian ends under a Brownian and under a turning
reference, and shapes in the plane solved on a grid (:class:`~sbridge.benchmarks.planar_pairs.PlanarPair`); 100 000
unpaired training samples per end. Columns: see :class:`~sbridge.benchmarks.bridge_scores.Scores`; CPU seconds of the
fit, and peak memory of the process that fitted.

Rows: perfect draws (the sampling floor), the true drift on the steps that networks are simulated on (the floor of
discretisation), no control and the independent coupling (what doing nothing scores), every solver with one set of
options for the whole table, ``light``, the published recipe for mixture potentials, and optimal-transport maps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sbridge.benchmarks.bridge_scores import Effort, IndependentKernel, Judge, MapKernel, Scores, shown
from sbridge.benchmarks.light import LightRecipe
from sbridge.benchmarks.memory import in_fresh_process, peak_memory
from sbridge.benchmarks.output import say
from sbridge.benchmarks.pairs import GaussianPair, MixturePair, StateCostPair, turning_reference
from sbridge.benchmarks.planar_pairs import TARGETS, Pair, PlanarPair
from sbridge.benchmarks.tables import timed
from sbridge.errors import InvalidInputError, NotConvergedError, SbridgeError, UnsupportedError, check_known
from sbridge.evaluation.baselines import STANDARD_BASELINES, Baseline
from sbridge.exact import MixtureControl, MixtureKernel
from sbridge.fitting import fit
from sbridge.measures import Direction, PathMeasure
from sbridge.processes import BrownianMotion
from sbridge.random import derive
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.imf import IMF
from sbridge.solvers.ipf import IPF
from sbridge.solvers.matched import MatchedBridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.sinkhorn import SinkhornBridge
from sbridge.storage.documents import Json

SOLVERS: dict[str, tuple[Solver, Solver]] = {
    "mixture": (MixtureBridge(), MixtureBridge(components=(1, 5), rounds=1)),
    "matched": (MatchedBridge(), MatchedBridge(updates=80, refresh=40, pairs=512)),
    "imf": (IMF(), IMF(pretraining=60, stages=2, updates=10, refresh=10, pairs=256)),
    "ipf": (IPF(), IPF(half_steps=2, updates=20, refresh=10, paths=128)),
    "sinkhorn": (SinkhornBridge(max_rows=4096), SinkhornBridge(max_rows=500)),
    "gaussian": (GaussianBridge(), GaussianBridge()),
}
"""Solvers by name: with the options of the full table, and of a quick run."""
LIGHT = "light"
_LIGHT = LightRecipe(), LightRecipe(steps=200)
_MAPS: dict[str, Baseline] = {baseline.name: baseline for baseline in STANDARD_BASELINES}
METHODS = (*SOLVERS, LIGHT, *_MAPS)
"""The names of all methods."""
STEPS = IMF().grid
"""The grid on which networks are simulated; other solvers know their ends in closed form."""


_FREE = ("perfect draws", f"true drift, {STEPS.steps} steps", "no control", "independent coupling")


def _brownian(epsilon: float) -> BrownianMotion:
    return BrownianMotion(math.sqrt(epsilon))


PAIRS: dict[str, Callable[[int, float, int], Pair]] = {
    "mixture": MixturePair,
    "state-cost": StateCostPair,
    "gaussian": lambda dim, epsilon, seed: GaussianPair(_brownian(epsilon), dim, seed),
    "turning": lambda dim, epsilon, seed: GaussianPair(turning_reference(dim, epsilon, seed), dim, seed),
    **{name: lambda dim, epsilon, seed, name=name: PlanarPair(name, epsilon, seed) for name in TARGETS},
}
"""Pairs by name, from dimension, ε and seed; planar pairs have no other dimension."""


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        pairs: names of pairs.
        solvers: names of methods.
        dims: dimensions of mixture and Gaussian pairs.
        epsilons: noise levels ε of mixture pairs.
        planar_epsilons: of pairs in the plane; Gaussian pairs have ε = 1.
        seeds: of pairs and data.
        quick: little data and short fits: whether everything runs, not how good it is.
    """

    pairs: tuple[str, ...] = tuple(PAIRS)
    solvers: tuple[str, ...] = METHODS
    dims: tuple[int, ...] = (2, 16, 64)
    epsilons: tuple[float, ...] = (0.1, 1.0, 10.0)
    planar_epsilons: tuple[float, ...] = (0.2, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False

    def __post_init__(self) -> None:
        check_known("pair", self.pairs, PAIRS)
        check_known("solver", self.solvers, METHODS)
        for name, least in (("dims", 1), ("seeds", 0)):
            if min(getattr(self, name), default=least) < least:
                raise InvalidInputError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not all(epsilon > 0.0 for epsilon in (*self.epsilons, *self.planar_epsilons)):
            raise InvalidInputError(f"epsilons must be positive, got {self.epsilons} and {self.planar_epsilons}.")

    @classmethod
    def hurried(cls) -> Settings:
        """Returns the settings of a quick run over two pairs, in about a minute."""
        return cls(("mixture", "ring"), METHODS, (2,), (1.0,), (1.0,), (0,), quick=True)

    @property
    def rows(self) -> int:
        """The number of training rows of either end."""
        return 2000 if self.quick else 100_000

    @property
    def map_rows(self) -> int:
        """The number of training rows of the transport maps, whose memory grows with its square."""
        return 300 if self.quick else 4000

    @property
    def effort(self) -> Effort:
        """The effort of the scores."""
        return Effort(20, 200, 100) if self.quick else Effort()


@dataclass(frozen=True)
class Cell:
    """One pair of the table."""

    pair: str
    dim: int
    epsilon: float
    seed: int

    def __str__(self) -> str:
        """Formats the cell as in the table."""
        return f"{self.pair} d={self.dim} ε={self.epsilon:g} seed {self.seed}"

    def make(self) -> Pair:
        """Makes the pair."""
        return PAIRS[self.pair](self.dim, self.epsilon, self.seed)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        cell: the pair.
        method: solver, floor or trivial row.
        scores: ``None`` if there is a failure.
        seconds: CPU time of the fit; ``None`` if nothing is fitted.
        memory: peak of the process that fitted it, in MiB.
        failure: why there are no scores.
    """

    cell: Cell
    method: str
    scores: Scores | None = None
    seconds: float | None = None
    memory: float | None = None
    failure: str | None = None

    def __str__(self) -> str:
        """Formats one line, below :data:`HEADING`."""
        if self.scores is None:
            return f"  {self.method:<24}{self.failure}"
        s, excess = self.scores, self.scores.excess
        cells = [
            f"{s.conditional:10.4f}",
            f"{excess.value:9.4f} ± {excess.standard_error:.4f}",
            f"{s.marginal:9.4f}",
            f"{shown(s.from_truth):>18}",
            f"{shown(s.to_truth):>18}",
            "" if self.seconds is None else f"{self.seconds:8.1f}",
            "" if self.memory is None else f"{self.memory:7.0f}",
        ]
        return f"  {self.method:<24}" + " ".join(cells).rstrip()

    def to_json(self) -> Json:
        """Returns the row as stored in files."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Row:
        """Reads what :meth:`to_json` wrote."""
        scores = None if document["scores"] is None else Scores.from_json(document["scores"])
        return cls(**document | {"cell": Cell(**document["cell"]), "scores": scores})


HEADING = (
    f"  {'':<24}{'cBW-UVP %':>10} {'excess ± s.e.':>18} {'BW-UVP %':>9} {'KL(P*‖P)':>18} {'KL(P‖P*)':>18} "
    f"{'CPU s':>8} {'MiB':>7}"
)
"""Names of the columns; divergences in nats."""


def cells(settings: Settings) -> list[Cell]:
    """Returns the pairs to be run."""
    found = []
    for name in settings.pairs:
        dims = (2,) if name in TARGETS else settings.dims
        levels = settings.planar_epsilons if name in TARGETS else settings.epsilons if name == "mixture" else (1.0,)
        found += [Cell(name, dim, level, seed) for dim in dims for level in levels for seed in settings.seeds]
    return found


def rows(settings: Settings, done: Collection[Row] = ()) -> Iterator[Row]:
    """The rows, pair by pair; but for a quick run, each fit has a process of its own, so that its memory is its own.

    Args:
        settings: which.
        done: rows of an earlier run, which are not measured again.
    """
    known = {(row.cell, row.method): row for row in done}
    for cell in cells(settings):
        whole = all((cell, name) in known for name in _FREE)
        yield from (known[cell, name] for name in _FREE) if whole else _unfitted(cell, settings)
        for method in settings.solvers:
            if (cell, method) in known:
                yield known[cell, method]
            else:
                yield replace(run(cell, method, settings), memory=None) if settings.quick else run_alone(cell, method)


def run_alone(cell: Cell, method: str, settings: Settings = Settings()) -> Row:
    """Runs :func:`run` in a new process."""
    task = json.dumps({**dataclasses.asdict(cell), "method": method, "quick": settings.quick})
    try:
        document = json.loads(in_fresh_process("sbridge.benchmarks.bridge", [task]))
    except NotConvergedError as error:  # a solver that breaks down is a result, too
        return Row(cell, method, failure=str(error))
    return Row.from_json(document)


def run(cell: Cell, method: str, settings: Settings) -> Row:
    """Runs one method on one pair in this process."""
    pair = cell.make()
    x0, x1 = pair.sample(settings.rows, seed=derive(pair.seed, "train"))
    try:
        if method in SOLVERS:
            solver = SOLVERS[method][int(settings.quick)]
            problem = _problem(pair)
            bridge, seconds = timed(lambda: fit(x0, x1, **problem, solver=solver, seed=0))
            measure = bridge.forward
        elif method == LIGHT:
            recipe, reference = _LIGHT[int(settings.quick)], pair.reference
            if not isinstance(reference, BrownianMotion):
                raise UnsupportedError("the recipe knows Brownian references only.")
            potential, seconds = timed(lambda: recipe.fit(x0, x1, cell.epsilon, seed=0))
            control, kernel = MixtureControl(potential), MixtureKernel(potential)
            measure = PathMeasure(reference, control, pair.source, grid=STEPS, end_kernel=kernel)
        else:
            few = (x0[: settings.map_rows], x1[: settings.map_rows])
            fitted, seconds = timed(lambda: _MAPS[method](*few, pair.reference, Direction.FORWARD))
            measure = PathMeasure(pair.reference, None, pair.source, end_kernel=MapKernel(fitted))
    except SbridgeError as error:
        return Row(cell, method, failure=str(error))
    memory = peak_memory()
    return Row(cell, method, Judge(pair, settings.effort).scores(measure, path=method not in _MAPS), seconds, memory)


def _problem(pair: Pair) -> dict[str, Any]:
    """Returns reference and state cost of the fit."""
    if isinstance(pair, StateCostPair):
        return {"reference": pair.brownian, "state_cost": pair.state_cost}
    return {"reference": pair.reference}


def _unfitted(cell: Cell, settings: Settings) -> Iterator[Row]:
    """Yields floors and trivial rows."""
    pair = cell.make()
    judge = Judge(pair, settings.effort)
    stepped = replace(pair.truth, end_kernel=None, grid=STEPS)
    still = replace(stepped, control=None)
    independent = replace(still, end_kernel=IndependentKernel(pair.sample(settings.rows, seed=derive(pair.seed, 1))[1]))
    measures = (pair.truth, stepped, still, independent)
    for name, measure in zip(_FREE, measures, strict=True):
        yield Row(cell, name, judge.scores(measure, path=measure is still))


if __name__ == "__main__":  # one row, for the parent process
    asked = json.loads(sys.argv[1])
    name, quick = asked.pop("method"), asked.pop("quick")
    say(json.dumps(run(Cell(**asked), name, Settings(quick=quick)).to_json()))
