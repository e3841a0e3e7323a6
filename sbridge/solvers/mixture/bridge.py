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

from sbridge.errors import InvalidInputError, check_at_least
from sbridge.exact import MixtureControl, MixtureKernel
from sbridge.exact.plug_in import FarEnd, PlugInControl, PlugInKernel
from sbridge.laws import Point
from sbridge.laws.scaling import NoScaling, ScalingRecipe
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, not_plain, unknown_transition, unsampled_end
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
    """The shape of the covariances of the components: full, or diagonal."""

    FULL = "full"
    DIAGONAL = "diagonal"


@register
@dataclass(frozen=True)
class MixtureBridge(Solver["MixtureState"]):
    """Maximum likelihood for a potential ``e^g = Σ_k exp(b_k + η_k·y − ½yᵀΛ_k y)``, under any linear reference.

    The model is that of Korotin et al. 2024 (arXiv:2310.01174). It maximises ``E_{p_T} g − E_{p_0} log c``, a lower
    bound on the value of the problem; the bridge itself attains the bound. The fit uses all samples at once:

    1. The components start at clusters of the target. Each EM step makes every component the bridge between the two
       Gaussians with the moments of the samples that it is responsible for at either end.
    2. Covariances are shrunk towards the covariance of the Gaussian bridge, as far as they are sampling noise. This
       matters in high dimension and at small noise.
    3. L-BFGS maximises the likelihood.

    Larger numbers of components are tried as long as the likelihood of held-out samples grows. These fits use the
    leading coordinates of the Gaussian bridge, in which both ends vary most. Then more coordinates are tried in the
    same way. In the remaining coordinates the plan is the Gaussian bridge. The plan, its marginals and the forward
    control have closed forms. The backward process is exact for the model and the source samples: it ends on them.

    Args:
        components: numbers of components to try, increasing; with a single one, ``(5,)``, nothing is compared.
        widths: numbers of coordinates to try, increasing; with a single one, nothing is compared. Diagonal components
            are fitted in all coordinates.
        covariance: shape of the covariances: FULL, or DIAGONAL along the axes of the data.
        rows: samples per end that are used to choose the numbers of components and coordinates.
        held_out: fraction of these samples that is held out to compare the fits.
        max_rows: samples per end in the last fit; larger sets are subsampled at random.
        matchings: largest number of EM steps before L-BFGS.
        rounds: largest number of rounds of L-BFGS; a round that converges is the last one. A fit stops early if
            held-out samples are less likely than under the best fit so far, after a round or after two EM steps that
            made them less likely.
        iterations: iterations of L-BFGS in a round.
        tolerance: gain of the mean log likelihood in nats below which EM, or L-BFGS, stops.
        grid: time grid on which the solution is simulated.

    Each EM step and each iteration takes time ``O(rows · components · width²)``. A number of components is not tried
    if fewer than ``width + 1`` samples per component remain.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
        InvalidInputError: by ``solve`` and ``fit``, for samples that span fewer dimensions than they have columns, too
            few samples for the smallest number of components, or noise that is too small (the message gives the
            smallest workable noise).
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
                raise InvalidInputError(f"{name} must be increasing positive numbers, got {numbers}.")
        check_at_least(self, 4, "rows", "max_rows")
        check_at_least(self, 1, "matchings", "rounds", "iterations")
        if not (0.0 < self.held_out < 1.0 and self.tolerance > 0.0):
            raise InvalidInputError(f"held_out must lie in (0, 1) and tolerance be positive, got {self}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference and ends that can be sampled and are not points."""
        name = type(self).__name__
        reason = not_plain(name, problem) or unknown_transition(name, problem.reference)
        reason = reason or unsampled_end(name, problem)
        if reason is None and any(isinstance(end, Point) for end in (problem.source, problem.target)):
            return "MixtureBridge needs ends that vary in every direction, and a Point does not: use MatchedBridge()."
        return reason

    def max_steps(self, problem: BridgeProblem) -> int:
        """EM and all rounds of L-BFGS for every number of components and of coordinates, and for the last fit."""
        return (len(self.components) + len(self.tried(problem.dim))) * (self.rounds + 1)

    def tried(self, dim: int) -> tuple[int, ...]:
        """Returns the numbers of coordinates to try in ``dim`` dimensions."""
        if self.covariance is Covariance.DIAGONAL:
            return (dim,)
        return tuple(dict.fromkeys(min(width, dim) for width in self.widths))

    def finished(self, problem: BridgeProblem, state: MixtureState) -> bool:
        """Whether the last fit has converged."""
        return state.done

    def init(self, problem: BridgeProblem, seed: int) -> MixtureState:
        """Starts the fit with the smallest number of components."""
        data = _Data.of(self, problem, seed)
        return MixtureState(seed, data, data.view(0, last=False).start(self.components[0], seed))

    def step(self, problem: BridgeProblem, state: MixtureState) -> tuple[MixtureState, Info]:
        """Runs EM, or one round of L-BFGS; if that ends a fit, chooses the next one."""
        likelihood = state.likelihood
        start, tolerance = state.components, self.tolerance
        if state.round == 0:
            early_stopping = state.early_stopping()
            value, components = fit_em(likelihood, start, self.matchings, tolerance, state.shrinkage, early_stopping)
            if not state.last:
                components, state.shrinkage = shrink_covariances(likelihood, components)
            before, over = None, early_stopping is not None and early_stopping.stopped
        else:
            value, components, converged = fit_lbfgs(
                likelihood, start, self.iterations, 0.1 * tolerance, state.shrinkage
            )
            before, over = value, converged or state.round == self.rounds or _gained(state.value, value) < tolerance
            over = over or not (state.last or state.improves(components))
        state.components, state.value, state.round, state.step = components, before, state.round + 1, state.step + 1
        info = {"log likelihood": value, "components": float(len(components.logits))}
        if over:
            state.advance(self)
        return state, info

    def finish(self, problem: BridgeProblem, state: MixtureState) -> Bridge:
        """Makes the two processes of the fitted potential."""
        reference = problem.linear_reference
        potential = state.coordinates.potential(state.components)
        forward = PathMeasure(
            reference, MixtureControl(potential), problem.source, grid=self.grid, end_kernel=MixtureKernel(potential)
        )
        rows, weights = state.data.source
        pieces = rows.split(_PIECE)  # converted to float64 piece by piece, since there may be millions
        logits = -torch.cat([potential.log_normaliser(piece.double()) for piece in pieces])
        cloud = Cloud(rows, logits if weights is None else logits + weights.double().log())
        far = FarEnd(reference, cloud, Direction.BACKWARD)
        backward = PathMeasure(
            reference, PlugInControl(far), problem.target, Direction.BACKWARD, self.grid, end_kernel=PlugInKernel(far)
        )
        return Bridge(forward, backward)


@dataclass(eq=False)
class MixtureState(State):
    """The current components, the best ones so far, and the position in the sequence of fits.

    Attributes:
        data: the samples of both ends.
        components: the current components.
        shrinkage: how strongly their covariances are shrunk towards that of the Gaussian bridge, ``(K,)``.
        best: the components under which held-out samples are most likely.
        best_shrinkage: their shrinkage.
        value: the mean log likelihood after the last round of L-BFGS.
        component_index: index of the number of components.
        width_index: index of the number of coordinates.
        round: 0: EM; k: the k-th round of L-BFGS.
        last: whether the fit is the last one, on all samples.
        done: whether the last fit is finished.
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
        """Both ends in the current coordinates."""
        return self.data.view(self.width_index, last=self.last)

    @property
    def coordinates(self) -> Coordinates:
        """The coordinates in which components are fitted."""
        return self.view.coordinates

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood that is maximised."""
        return self.view.everything if self.last else self.view.subset

    def advance(self, solver: MixtureBridge) -> None:
        """Chooses what follows a fit: more components, more coordinates, the best ones on all samples, or the end."""
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
            ratio = self.view.subset.source.count / self.view.everything.source.count
            self.best_shrinkage = None if self.best_shrinkage is None else ratio * self.best_shrinkage
        self.best = self.components = best
        self.shrinkage = self.best_shrinkage

    def improves(self, components: Components) -> bool:
        """Whether held-out samples are more likely under ``components`` than under the best so far."""
        return self.best is None or self.view.held_out(components) > self.view.held_out(self.best)

    def early_stopping(self) -> EarlyStopping | None:
        """Returns the rule that stops a fit worse than the best so far; ``None`` for the first and the last fit."""
        return None if self.last or self.best is None else EarlyStopping(self.view.judge, self.view.held_out(self.best))


@dataclass(eq=False)
class _Data:
    """The samples of both ends, and the coordinates in which components are fitted.

    Attributes:
        source: samples of the source with their weights, on which the backward process ends.
        sides: the samples of either end that are fitted.
        widths: numbers of coordinates to try.
        reference: the linear reference.
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
        """Draws or chooses the samples.

        Raises:
            InvalidInputError: if there are too few samples, they have no density, or the noise is too small.
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
        """Both ends in the leading coordinates; ``last`` selects the samples of the last fit."""
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
        """Whether there are ``width + 1`` samples per component."""
        return self.fitted_on >= count * (width + 1)

    def check_enough(self, count: int, dim: int) -> None:
        """Raises InvalidInputError if there are too few samples for the smallest number of components."""
        needed = max(count * (self.widths[0] + 1), dim + 1)
        if self.fitted_on < needed:
            raise InvalidInputError(
                f"{count} component(s) in {dim} dimensions need {needed} samples per end, and {self.fitted_on} remain "
                "without the held-out ones; give more samples, ask for fewer components, or reduce the dimension."
            )

    @property
    def fitted_on(self) -> int:
        """The number of samples of the smaller end on which fits are compared, without the held-out ones."""
        return min(side.compared - side.held_out for side in self.sides)


class _Side:
    """Samples of an end with optional weights; the first samples are held out.

    Args:
        rows: the samples of the last fit.
        weights: weights of the samples, with sum 1.
        most: number of samples that are used to compare fits.
        fraction: the fraction of these that is held out.
    """

    def __init__(self, rows: Tensor, weights: Tensor | None, most: int, fraction: float) -> None:
        self.rows, self.weights = rows, weights
        self.compared = min(most, len(rows))
        self.held_out = max(1, round(fraction * self.compared))

    def part(self, first: int, end: int | None) -> tuple[Tensor, Tensor | None]:
        """Returns some of the samples, with weights that sum to one."""
        part = slice(first, end)
        return self.rows[part], None if self.weights is None else self.weights[part] / self.weights[part].sum()


@dataclass(frozen=True, eq=False)
class _View:
    """Both ends in given coordinates."""

    coordinates: Coordinates
    source: _Side
    target: _Side

    @cached_property
    def everything(self) -> Likelihood:
        """The likelihood of all samples of the last fit."""
        return self._of(lambda side: side.part(0, None))

    @cached_property
    def subset(self) -> Likelihood:
        """The likelihood of the samples for choosing numbers of components and coordinates."""
        return self._of(lambda side: side.part(side.held_out, side.compared))

    @cached_property
    def judge(self) -> Likelihood:
        """The likelihood of the held-out samples."""
        return self._of(lambda side: side.part(0, side.held_out))

    def start(self, count: int, seed: int) -> Components:
        """Makes ``count`` components from clusters of the target."""
        return self.subset.start(count, generator_of(derive(seed, "clusters", count)))

    def held_out(self, components: Components) -> float:
        """The mean log likelihood of the held-out samples."""
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
