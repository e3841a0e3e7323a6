"""The bridge whose potential is a Gaussian mixture, by maximum likelihood."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws import Density, Law, Samples
from sbridge.measures import PathMeasure
from sbridge.potentials import MixtureControl, MixtureKernel
from sbridge.problems import BridgeProblem, unknown_transition
from sbridge.processes import Direction
from sbridge.random import as_seed, derive, generator as generator_of
from sbridge.registry import register
from sbridge.scaling import NoScaling, ScalingRecipe
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.gaussian import span_fewer
from sbridge.solvers.mixture_climb import Watch, climb_by_matching, climb_by_quasi_newton, shrink
from sbridge.solvers.mixture_likelihood import Likelihood, Rows
from sbridge.solvers.mixture_plan import Coordinates, Parts
from sbridge.solvers.sinkhorn import FarEnd, PlugInControl, PlugInKernel
from sbridge.time import TimeGrid
from sbridge.training import Flat, Info, flat_number, flat_tensor
from sbridge.transport import Cloud

_RESOLUTION = 1e-2  # largest error of a log weight, from rounding of the rows, that is let pass
_PIECE = 2**14
_NAMES = ("logits", "means", "spreads")
_PULLS = ("pulls", "best_pulls")


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
    the target every component is matched, again and again, to the bridge between the Gaussians that it claims of
    either end; its shape is drawn towards that of the Gaussian bridge as far as it is sampling noise (which counts in
    high dimension and at small noise); then L-BFGS. Numbers of components are tried in rising order as long as the
    likelihood of held-out rows rises. Plan, marginals and forward control are closed forms. The backward
    process is exact for the model and the source rows: its start points are source rows.

    Args:
        components: numbers of components to try, rising; one number is taken as it is.
        covariance: of the components: FULL, or DIAGONAL along the axes of the data.
        rows: rows a side on which numbers of components are compared.
        held_out: the share of these rows on which they are compared.
        max_rows: rows a side of the last fit; of larger sets a random subset.
        matchings: largest number of matchings of components to what they claim, before L-BFGS.
        rounds: largest number of rounds of L-BFGS, as long as one uses up its iterations. A number of components is
            given up after one that leaves held-out rows less likely than the best number so far does, or as soon as
            matchings make them less and less so.
        iterations: iterations of L-BFGS in a round.
        tolerance: gain of the mean log likelihood by a matching, or by a round, that ends either, in nats.
        grid: time grid on which the solution is simulated.

    Time: ``O(rows · components · dim²)`` for each matching and iteration. Numbers of components for which fewer than
    ``dim + 1`` rows a component are left are not tried.
    """

    components: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
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
        rising = all(a < b for a, b in zip(self.components, self.components[1:], strict=False))
        if not self.components or self.components[0] < 1 or not rising:
            raise InvalidInputError(f"components must be rising positive numbers, got {self.components}.")
        for name in ("rows", "max_rows"):
            if getattr(self, name) < 4:
                raise InvalidInputError(f"{name} must be at least 4, got {getattr(self, name)}.")
        for name in ("matchings", "rounds", "iterations"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if not (0.0 < self.held_out < 1.0 and self.tolerance > 0.0):
            raise InvalidInputError(f"held_out must lie in (0, 1) and tolerance be positive, got {self}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference and ends that can be sampled."""
        unknown = unknown_transition("MixtureBridge", problem.reference)
        if unknown is not None:
            return unknown
        if isinstance(problem.source, Density) or isinstance(problem.target, Density):
            return "MixtureBridge needs ends that can be sampled, which an unnormalised density cannot: draw samples."
        return None

    def length(self, problem: BridgeProblem) -> int:
        """All numbers of components and the last fit, each one step of matching and the rounds of L-BFGS."""
        return (len(self.components) + 1) * (self.rounds + 1)

    def finished(self, problem: BridgeProblem, state: MixtureState) -> bool:
        """Whether the last fit gains nothing more."""
        return state.done

    def init(self, problem: BridgeProblem, generator: torch.Generator) -> MixtureState:
        """The start of the smallest number of components."""
        state = MixtureState(self, problem, as_seed(generator))
        state.parts = state.start(self.components[0])
        return state

    def restore(self, problem: BridgeProblem, flat: Flat) -> MixtureState:
        """The state of an interrupted run."""
        state = MixtureState(self, problem, int(flat_number(flat, "seed")))
        state.load(flat)
        return state

    def step(self, problem: BridgeProblem, state: MixtureState) -> tuple[MixtureState, Info]:
        """Matching, or one round of L-BFGS; then, if that ends a fit, what is fitted next."""
        likelihood = state.everything if state.last else state.subset
        start, tolerance = state.parts, self.tolerance
        if state.round == 0:
            watch = state.watch()
            value, parts = climb_by_matching(likelihood, start, self.matchings, tolerance, state.pulls, watch)
            if not state.last:
                parts, state.pulls = shrink(likelihood, parts)
            before, over = -math.inf, watch is not None and watch.hopeless
        else:
            value, parts, top = climb_by_quasi_newton(likelihood, start, self.iterations, 0.1 * tolerance, state.pulls)
            before, over = value, top or state.round == self.rounds or value - state.value < tolerance
            over = over or not (state.last or state.improves(parts))
        state.parts, state.value, state.round, state.step = parts, before, state.round + 1, state.step + 1
        info = {"log likelihood": value, "components": float(len(parts.logits))}
        if over:
            state.advance(self)
        return state, info

    def finish(self, problem: BridgeProblem, state: MixtureState) -> Bridge:
        """The potential at hand, and the two processes."""
        reference = problem.linear_reference
        potential = state.coordinates.potential(state.parts)
        forward = PathMeasure(
            reference, MixtureControl(potential), problem.source, grid=self.grid, end_kernel=MixtureKernel(potential)
        )
        rows, weights = state.source
        parts = rows.split(_PIECE)  # in float64 a piece at a time: there may be millions
        logits = -torch.cat([potential.log_normaliser(part.double()) for part in parts])
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


class MixtureState:
    """The components at hand, the best so far, and where in the plan of fits the run is."""

    def __init__(self, solver: MixtureBridge, problem: BridgeProblem, seed: int) -> None:
        self.step, self.rung, self.round = 0, 0, 0
        self.last, self.done = False, False
        self.seed, self.value = seed, -math.inf
        self.best: Parts | None = None
        self.parts: Parts
        self.pulls: Tensor | None = None
        self.best_pulls: Tensor | None = None
        reference = problem.linear_reference
        ends = (problem.source, "source"), (problem.target, "target")
        self.source, target = (_drawn(law, name, solver.max_rows, seed) for law, name in ends)
        diagonal = solver.covariance is Covariance.DIAGONAL
        chosen = [_chosen(*end, solver.max_rows, derive(seed, i)) for i, end in enumerate((self.source, target))]
        self._chosen, self._share = chosen, solver.held_out
        self._dim = problem.dim
        self._most = solver.rows
        self._check_enough(solver.components[0])
        fitted = [rows[self._held_out(rows) :] for rows, _ in chosen]  # shapes are drawn to what these show
        self.coordinates = Coordinates.of(reference, *fitted, diagonal=diagonal)
        _check_resolution(self.coordinates, chosen[0][0])

    @cached_property
    def everything(self) -> Likelihood:
        """All rows of the last fit."""
        (x, a), (y, b) = self._chosen
        c = self.coordinates
        return Likelihood(c, Rows(c.source(x), a), Rows(c.target(y), b))

    @cached_property
    def subset(self) -> Likelihood:
        """The rows on which numbers of components are fitted."""
        return self._part(held_out=False)

    @cached_property
    def judge(self) -> Likelihood:
        """The rows on which they are compared."""
        return self._part(held_out=True)

    def start(self, count: int) -> Parts:
        """Clusters."""
        return self.subset.start(count, generator_of(derive(self.seed, "clusters", count)))

    def advance(self, solver: MixtureBridge) -> None:
        """After a fit: the next number of components, or the best one on all rows, or the end."""
        self.round, self.value = 0, -math.inf
        if self.last:
            self.done = True
            return
        better = self.improves(self.parts)
        if better:
            self.best, self.best_pulls = self.parts, self.pulls
        following = solver.components[self.rung + 1 : self.rung + 2]
        if better and following and self._affords(following[0]):
            self.rung += 1
            self.parts, self.pulls = self.start(following[0]), None
        else:  # the more rows, the less is chance
            share = self.subset.source.count / self.everything.source.count
            self.last, self.parts = True, self.best or self.parts
            self.pulls = None if self.best_pulls is None else share * self.best_pulls

    def improves(self, parts: Parts) -> bool:
        """Whether held-out rows are likelier under ``parts`` than under the best number of components so far."""
        return self.best is None or self.judge.value(parts) > self.judge.value(self.best)

    def watch(self) -> Watch | None:
        """What gives up a number of components that does not come up to the best so far."""
        return None if self.last or self.best is None else Watch(self.judge, self.judge.value(self.best))

    def flat(self) -> Flat:
        """Components, best components, counters, seed."""
        flat: Flat = {name: getattr(self, name) for name in ("step", "rung", "round", "seed")}
        flat |= {"last": int(self.last), "done": int(self.done)}
        if math.isfinite(self.value):
            flat["value"] = self.value
        for name in _PULLS:
            if getattr(self, name) is not None:
                flat[name] = getattr(self, name).clone()
        for prefix, parts in (("parts", self.parts), ("best", self.best)):
            if parts is not None:
                flat |= {f"{prefix}.{name}": getattr(parts, name).clone() for name in _NAMES}
        return flat

    def load(self, flat: Flat) -> None:
        """The opposite of :meth:`flat`."""
        self.step, self.rung, self.round = (int(flat_number(flat, name)) for name in ("step", "rung", "round"))
        self.last, self.done = (bool(flat_number(flat, name)) for name in ("last", "done"))
        self.value = flat_number(flat, "value") if "value" in flat else -math.inf
        self.parts = Parts(*(flat_tensor(flat, f"parts.{name}") for name in _NAMES))
        self.pulls, self.best_pulls = (flat_tensor(flat, name) if name in flat else None for name in _PULLS)
        if "best.logits" in flat:
            self.best = Parts(*(flat_tensor(flat, f"best.{name}") for name in _NAMES))

    def _affords(self, count: int) -> bool:
        return self._fitted_on >= count * (self._dim + 1)

    def _check_enough(self, count: int) -> None:
        if not self._affords(count):
            raise InvalidInputError(
                f"{count} component(s) in {self._dim} dimensions need {count} × {self._dim + 1} rows a side to be "
                f"fitted on, {self._fitted_on} are left beside the held-out ones; give more rows, ask for fewer "
                "components, or reduce the dimension."
            )

    @property
    def _fitted_on(self) -> int:
        """Rows of the smaller side on which numbers of components are fitted."""
        return min(min(self._most, len(rows)) - self._held_out(rows) for rows, _ in self._chosen)

    def _held_out(self, rows: Tensor) -> int:
        """How many of the rows of an end, the first ones, are held out."""
        return max(1, round(self._share * min(self._most, len(rows))))

    def _part(self, *, held_out: bool) -> Likelihood:
        sides = []
        for rows, weights in self._chosen:
            first, count = self._held_out(rows), min(self._most, len(rows))
            part = slice(first) if held_out else slice(first, count)
            sides.append((rows[part], None if weights is None else weights[part] / weights[part].sum()))
        (x, a), (y, b) = sides
        c = self.coordinates
        return Likelihood(c, Rows(c.source(x), a), Rows(c.target(y), b))


def _drawn(law: Law, name: str, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """The rows of samples with their weights, or draws of another law."""
    if isinstance(law, Samples):
        return law.rows, None if law.weights is None else law.weights.double()
    return law.sample(count, generator_of(derive(seed, name))), None


def _chosen(rows: Tensor, weights: Tensor | None, most: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """At most ``most`` rows in random order, which have a density in every direction."""
    order = torch.randperm(len(rows), generator=generator_of(seed))[:most].to(rows.device)
    found = rows[order]
    if span_fewer(found):
        raise InvalidInputError(
            f"{len(found)} rows of an end span fewer than their {rows.shape[1]} dimensions, so no component has a "
            "density there; reduce the dimension (PCA), add rows, or use SinkhornBridge()."
        )
    return found, None if weights is None else weights[order] / weights[order].sum()


def _check_resolution(coordinates: Coordinates, like: Tensor) -> None:
    """Log weights of components are of the order of the spread in units of the noise, and must not be rounding."""
    largest, eps = float(coordinates.n.max()), torch.finfo(like.dtype).eps
    if largest * eps > _RESOLUTION:
        remedy = "give the rows in float64, or " if like.dtype == torch.float32 else ""
        raise InvalidInputError(
            f"the noise of the reference is too small for {like.dtype}: the ends are {largest:.1e} times as wide as it "
            f"in variance, and at most {_RESOLUTION / eps:.1e} can be resolved; {remedy}take a σ at least "
            f"{math.sqrt(largest * eps / _RESOLUTION):.2g} times as large."
        )
