"""The bridge whose potential is a Gaussian mixture, by maximum likelihood."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.exact import MixtureControl, MixtureKernel
from sbridge.exact.plug_in import FarEnd, PlugInControl, PlugInKernel
from sbridge.laws import Point
from sbridge.laws.scaling import NoScaling, ScalingRecipe
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, unknown_transition, unsampled_end
from sbridge.processes import Direction, LinearProcess
from sbridge.random import derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.mixture.components import Components, Coordinates
from sbridge.solvers.mixture.likelihood import Likelihood, Rows
from sbridge.solvers.mixture.optimise import EarlyStopping, fit_em, fit_lbfgs, shrink_covariances
from sbridge.solvers.mixture.rows import check_resolution, chosen as chosen_rows, drawn
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, State
from sbridge.transport import Cloud

_PIECE = 2**14


@register
class Covariance(enum.Enum):
    """The shape of a component's covariance: any, or along the axes only."""

    FULL = "full"
    DIAGONAL = "diagonal"


@register
@dataclass(frozen=True)
class MixtureBridge(Solver["MixtureState"]):
    """Maximum likelihood for a potential ``e^g = Σ_k exp(b_k + η_k·y − ½yᵀΛ_k y)``, under any linear reference.

    The model is that of Korotin et al. 2024 (arXiv:2310.01174): it maximises ``E_{p_T} g − E_{p_0} log c``, a lower
    bound on the value of the problem that is reached by the bridge itself. Here on all rows at once: from clusters of
    the target every component is matched, again and again, to the bridge between the Gaussians that it statistics of
    either end; its shape is drawn towards that of the Gaussian bridge as far as it is sampling noise (which counts in
    high dimension and at small noise); then L-BFGS. Numbers of components are tried in rising order as long as the
    likelihood of held-out rows rises, in the leading coordinates of the Gaussian bridge, those in which both ends vary
    most; then more coordinates, as long as it rises. In all others the plan is the Gaussian bridge. Plan, marginals and
    forward control are closed forms. The backward process is exact for the model and the source rows: its start points
    are source rows.

    Args:
        components: numbers of components to try, rising; a single one, ``(5,)``, is taken as it is.
        widths: numbers of coordinates to try, rising; a single one is taken as it is. Diagonal components have shapes
            of their own in all.
        covariance: of the components: FULL, or DIAGONAL along the axes of the data.
        rows: rows a side on which numbers of components and of coordinates are compared.
        held_out: the share of these rows on which they are compared.
        max_rows: rows a side of the last fit; of larger sets a random subset.
        matchings: largest number of EM steps before L-BFGS.
        rounds: largest number of rounds of L-BFGS, as long as one uses up its iterations. A fit is given up after one
            that leaves held-out rows less likely than the best fit so far does, or as soon as EM steps make them
            less and less so.
        iterations: iterations of L-BFGS in a round.
        tolerance: gain of the mean log likelihood by an EM step, or by a round, that ends either, in nats.
        grid: time grid on which the solution is simulated.

    Time: ``O(rows · components · width²)`` for each EM step and iteration. Numbers for which fewer than ``width + 1``
    rows a component are left are not tried.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
        InvalidInputError: by them, for rows that span fewer dimensions than they have columns, too few of them for the
            smallest number of components, or noise too small (the message says the smallest workable).
    """

    components: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    widths: tuple[int, ...] = (32, 64, 128)
    covariance: Covariance = Covariance.FULL
    rows: int = 50_000
    held_out: float = 0.2
    max_rows: int = 100_000
    matchings: int = 20
    rounds: int = 2
    iterations: int = 40
    tolerance: float = 1e-4
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(100))

    scaling: ClassVar[ScalingRecipe] = NoScaling()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("components", "widths"):
            numbers = getattr(self, name)
            rising = all(a < b for a, b in pairwise(numbers))
            if not numbers or numbers[0] < 1 or not rising:
                raise InvalidInputError(f"{name} must be rising positive numbers, got {numbers}.")
        for name in ("rows", "max_rows"):
            if getattr(self, name) < 4:
                raise InvalidInputError(f"{name} must be at least 4, got {getattr(self, name)}.")
        for name in ("matchings", "rounds", "iterations"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if not (0.0 < self.held_out < 1.0 and self.tolerance > 0.0):
            raise InvalidInputError(f"held_out must lie in (0, 1) and tolerance be positive, got {self}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference and ends that can be sampled and are no points."""
        reason = unknown_transition("MixtureBridge", problem.reference) or unsampled_end("MixtureBridge", problem)
        if reason is None and any(isinstance(end, Point) for end in (problem.source, problem.target)):
            return (
                "MixtureBridge needs ends that spread in every direction, and a Point does not: take MatchedBridge()."
            )
        return reason

    def max_steps(self, problem: BridgeProblem) -> int:
        """All numbers of components and coordinates and the last fit: each a step of EM and rounds of L-BFGS."""
        return (len(self.components) + len(self.tried(problem.dim))) * (self.rounds + 1)

    def tried(self, dim: int) -> tuple[int, ...]:
        """Those of :attr:`widths` that ``dim`` coordinates allow."""
        if self.covariance is Covariance.DIAGONAL:
            return (dim,)
        return tuple(dict.fromkeys(min(width, dim) for width in self.widths))

    def finished(self, problem: BridgeProblem, state: MixtureState) -> bool:
        """Whether the last fit gains nothing more."""
        return state.done

    def init(self, problem: BridgeProblem, seed: int) -> MixtureState:
        """The start of the smallest number of components."""
        data = _Data.of(self, problem, seed)
        return MixtureState(seed, data, data.view(0, last=False).start(self.components[0], seed))

    def step(self, problem: BridgeProblem, state: MixtureState) -> tuple[MixtureState, Info]:
        """Matching, or one round of L-BFGS; then, if that ends a fit, what is fitted next."""
        likelihood = state.likelihood
        start, tolerance = state.components, self.tolerance
        if state.round == 0:
            early_stopping = state.early_stopping()
            value, components = fit_em(likelihood, start, self.matchings, tolerance, state.shrinkage, early_stopping)
            if not state.last:
                components, state.shrinkage = shrink_covariances(likelihood, components)
            before, over = None, early_stopping is not None and early_stopping.stopped
        else:
            value, components, top = fit_lbfgs(likelihood, start, self.iterations, 0.1 * tolerance, state.shrinkage)
            before, over = value, top or state.round == self.rounds or _gained(state.value, value) < tolerance
            over = over or not (state.last or state.improves(components))
        state.components, state.value, state.round, state.step = components, before, state.round + 1, state.step + 1
        info = {"log likelihood": value, "components": float(len(components.logits))}
        if over:
            state.advance(self)
        return state, info

    def finish(self, problem: BridgeProblem, state: MixtureState) -> Bridge:
        """The potential at hand, and the two processes."""
        reference = problem.linear_reference
        potential = state.coordinates.potential(state.components)
        forward = PathMeasure(
            reference, MixtureControl(potential), problem.source, grid=self.grid, end_kernel=MixtureKernel(potential)
        )
        rows, weights = state.data.source
        pieces = rows.split(_PIECE)  # in float64 a piece at a time: there may be millions
        logits = -torch.cat([potential.log_normaliser(piece.double()) for piece in pieces])
        cloud = Cloud(rows, logits if weights is None else logits + weights.double().log())
        far = FarEnd(reference, cloud, Direction.BACKWARD)
        backward = PathMeasure(
            reference,
            PlugInControl(far),
            problem.target,
            Direction.BACKWARD,
            self.grid,
            end_kernel=PlugInKernel(far),
        )
        return Bridge(forward, backward)


@dataclass(eq=False)
class MixtureState(State):
    """The components at hand, the best so far, and where in the plan of fits the run is.

    Attributes:
        data: the rows of both ends.
        components: the components at hand.
        shrinkage: how strongly their shapes are drawn towards that of the Gaussian bridge, ``(K,)``.
        best: the components under which held-out rows are likeliest.
        best_shrinkage: their shrinkage.
        value: the mean log likelihood after the last round of L-BFGS.
        component_index: index of the number of components.
        width_index: index of the number of coordinates.
        round: 0: EM; k: the k-th round of L-BFGS.
        last: whether the fit is the last one, on all rows.
        done: whether that is over, too.
    """

    data: Derived[_Data]
    components: Components
    shrinkage: Tensor | None = None
    best: Components | None = None
    best_shrinkage: Tensor | None = None
    value: float | None = None
    component_index: int = 0
    width_index: int = 0
    round: int = 0
    last: bool = False
    done: bool = False

    @property
    def view(self) -> _View:
        """Both ends in the coordinates at hand."""
        return self.data.view(self.width_index, last=self.last)

    @property
    def coordinates(self) -> Coordinates:
        """Those in which components are fitted."""
        return self.view.coordinates

    @property
    def likelihood(self) -> Likelihood:
        """What is climbed."""
        return self.view.everything if self.last else self.view.subset

    def advance(self, solver: MixtureBridge) -> None:
        """After a fit: the next number of components or of coordinates, or the best ones on all rows, or the end."""
        self.round, self.value = 0, None
        if self.last:
            self.done = True
            return
        better, first = self.improves(self.components), self.width_index == 0
        if better:
            self.best, self.best_shrinkage = self.components, self.shrinkage
        best = self.best or self.components
        following = solver.components[self.component_index + 1 : self.component_index + 2] if first and better else ()
        if following and self.data.affords(following[0], self.data.widths[0]):
            self.component_index += 1
            self.components, self.shrinkage = self.view.start(following[0], self.seed), None
            return
        wider = self.data.widths[self.width_index + 1 : self.width_index + 2] if first or better else ()
        if wider and self.data.affords(len(best.logits), wider[0]):
            self.width_index += 1
            best = best.widened(self.coordinates.s)
        else:
            if not (first or better):
                self.width_index -= 1
                best = best.narrowed(self.coordinates.width)
            compared, self.last = self.coordinates, True
            best = compared.carried(best, self.coordinates)
            share = self.view.subset.source.count / self.view.everything.source.count
            self.best_shrinkage = None if self.best_shrinkage is None else share * self.best_shrinkage
        self.best = self.components = best
        self.shrinkage = self.best_shrinkage

    def improves(self, components: Components) -> bool:
        """Whether held-out rows are likelier under ``components`` than under the best so far."""
        return self.best is None or self.view.held_out(components) > self.view.held_out(self.best)

    def early_stopping(self) -> EarlyStopping | None:
        """What gives up a fit that does not come up to the best so far."""
        return None if self.last or self.best is None else EarlyStopping(self.view.judge, self.view.held_out(self.best))


@dataclass(eq=False)
class _Data:
    """The rows of both ends, and the coordinates in which components are fitted.

    Attributes:
        source: rows of the source with their weights: the start points of the backward process.
        sides: the rows of either end that are fitted.
        widths: numbers of coordinates to try.
        reference: linear.
        diagonal: whether components are diagonal.
    """

    source: tuple[Tensor, Tensor | None]
    sides: tuple[_Side, _Side]
    widths: tuple[int, ...]
    reference: LinearProcess
    diagonal: bool
    _latest: tuple[tuple[int, bool], _View] | None = None
    _coordinates: tuple[bool, Coordinates] | None = None

    @classmethod
    def of(cls, solver: MixtureBridge, problem: BridgeProblem, seed: int) -> _Data:
        """Draws or chooses the rows.

        Raises:
            InvalidInputError: if there are too few of them, they have no density, or the noise is too small.
        """
        source, target = (
            drawn(law, name, solver.max_rows, seed)
            for law, name in ((problem.source, "source"), (problem.target, "target"))
        )
        named = ("source", source), ("target", target)
        chosen = [chosen_rows(*end, name, solver.max_rows, derive(seed, i)) for i, (name, end) in enumerate(named)]
        first, second = (_Side(*end, solver.rows, solver.held_out) for end in chosen)
        diagonal = solver.covariance is Covariance.DIAGONAL
        data = cls(source, (first, second), solver.tried(problem.dim), problem.linear_reference, diagonal)
        data.check_enough(solver.components[0], problem.dim)
        check_resolution(data.view(0, last=False).coordinates, chosen[0][0])
        return data

    def view(self, width_index: int, *, last: bool) -> _View:
        """Both ends in the leading coordinates: of the rows on which numbers are fitted, or in the last fit of all."""
        if self._coordinates is None or self._coordinates[0] != last:
            (x, a), (y, b) = (side.part(0 if last else side.held_out, None) for side in self.sides)
            found = Coordinates.of(self.reference, x, y, diagonal=self.diagonal, weights=(a, b))
            self._coordinates, self._latest = (last, found), None
        if self._latest is None or self._latest[0] != (width_index, last):
            self._latest = (
                (width_index, last),
                _View(self._coordinates[1].leading(self.widths[width_index]), *self.sides),
            )
        return self._latest[1]

    def affords(self, count: int, width: int) -> bool:
        """Whether there are ``width + 1`` rows a component."""
        return self.fitted_on >= count * (width + 1)

    def check_enough(self, count: int, dim: int) -> None:
        """InvalidInputError if there are too few rows for the smallest number of components."""
        needed = max(count * (self.widths[0] + 1), dim + 1)
        if self.fitted_on < needed:
            raise InvalidInputError(
                f"{count} component(s) in {dim} dimensions need {needed} rows a side to be fitted on, "
                f"{self.fitted_on} are left beside the held-out ones; give more rows, ask for fewer components, or "
                "reduce the dimension."
            )

    @property
    def fitted_on(self) -> int:
        """Rows of the smaller side on which numbers are fitted."""
        return min(side.compared - side.held_out for side in self.sides)


class _Side:
    """Rows of an end with optional weights: the first ones are held out.

    Args:
        rows: of the last fit.
        weights: of the rows, sum 1.
        most: rows on which fits are compared.
        share: the share of these that is held out.
    """

    def __init__(self, rows: Tensor, weights: Tensor | None, most: int, share: float) -> None:
        self.rows, self.weights = rows, weights
        self.compared = min(most, len(rows))
        self.held_out = max(1, round(share * self.compared))

    def part(self, first: int, end: int | None) -> tuple[Tensor, Tensor | None]:
        """Some of the rows, with weights that sum to one."""
        part = slice(first, end)
        return self.rows[part], None if self.weights is None else self.weights[part] / self.weights[part].sum()


@dataclass(frozen=True, eq=False)
class _View:
    """Both ends in coordinates."""

    coordinates: Coordinates
    source: _Side
    target: _Side

    @cached_property
    def everything(self) -> Likelihood:
        """All rows of the last fit."""
        return self._of(lambda side: side.part(0, None))

    @cached_property
    def subset(self) -> Likelihood:
        """The rows on which numbers of components and of coordinates are fitted."""
        return self._of(lambda side: side.part(side.held_out, side.compared))

    @cached_property
    def judge(self) -> Likelihood:
        """The rows on which they are compared."""
        return self._of(lambda side: side.part(0, side.held_out))

    def start(self, count: int, seed: int) -> Components:
        """``count`` components from clusters of the target."""
        return self.subset.start(count, generator_of(derive(seed, "clusters", count)))

    def held_out(self, components: Components) -> float:
        """The mean log likelihood of the rows on which numbers are compared."""
        if components not in self._known:
            self._known[components] = self.judge.value(components)
        return self._known[components]

    @cached_property
    def _known(self) -> dict[Components, float]:
        return {}

    def _of(self, part: Callable[[_Side], tuple[Tensor, Tensor | None]]) -> Likelihood:
        (x, a), (y, b), c = part(self.source), part(self.target), self.coordinates
        return Likelihood(c, Rows(c.source(x), a), Rows(c.target(y), b))


def _gained(before: float | None, now: float) -> float:
    return math.inf if before is None else now - before
