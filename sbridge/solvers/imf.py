"""Iterative Markovian fitting (bridge matching), with a network for either direction."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.controls import MLP, NetworkRecipe, seeded_control
from sbridge.coupling import Coupling, EntropicCoupling
from sbridge.coupling.simple import Pairs, PairSampler
from sbridge.errors import InvalidInputError
from sbridge.laws import Density
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem
from sbridge.processes import Direction, LinearProcess
from sbridge.processes.base import Pinned, spread
from sbridge.random import as_seed, derive, generator as generator_of
from sbridge.registry import register
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.time import TimeGrid
from sbridge.training import Flat, Info, Learner, Optimisation, flat_number, flat_tensor

_END_MARGIN = 1e-3
_DENSE_TIMES = 32
_PROBE_ROWS = 4096


@register
@dataclass(frozen=True)
class IMF(Solver["IMFState"]):
    """Iterative Markovian fitting: Markovian and reciprocal projections in turn (Shi et al. 2023; Peluchetti 2023).

    Pairs ``(X_0, X_T)`` of the current coupling are joined by the reference's pinned bridges (the reciprocal
    projection); regression on the gradients of the log transition density makes the mixture Markov again::

        forward    u(t, X_t) ← σᵀ ∇_x log R(X_T | X_t)         backward   û(t, X_t) ← σᵀ ∇_x log R(X_t | X_0)

    First both networks learn from ``start``. Then stages alternate: the backward network simulates pairs from the
    target's data and the forward network learns from them; then the other way round. Losses are weighted by the
    inverse of the targets' expected square, so that all times count alike. Training rows are never the answer:
    pairs always have a simulated end.

    Args:
        start: the coupling that the first regression uses.
        pretraining: updates of each network on the start coupling.
        stages: Markovian projections after that, alternating; an even number treats both directions alike.
        updates: updates per stage.
        refresh: updates between simulations of new pairs.
        pairs: pairs simulated at a time.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid on which pairs and solutions are simulated; by default finer towards both ends, where
            controls change fastest and the last step's noise would blur the data.

    Works with any linear reference and any ends that can be sampled.
    """

    start: Coupling = field(default_factory=EntropicCoupling)
    pretraining: int = 1500
    stages: int = 4
    updates: int = 1000
    refresh: int = 250
    pairs: int = 4096
    network: NetworkRecipe = field(default_factory=MLP)
    optimisation: Optimisation = field(default_factory=Optimisation)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(50))

    def __post_init__(self) -> None:
        for name in ("pretraining", "updates", "refresh", "pairs"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.stages < 0:
            raise InvalidInputError(f"stages must not be negative, got {self.stages}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference and ends that can be sampled."""
        if not isinstance(problem.reference, LinearProcess):
            return (
                f"IMF needs pinned bridges in closed form, which {type(problem.reference).__name__} has not: take a "
                "LinearProcess such as BrownianMotion or OrnsteinUhlenbeck as reference, or IPF, which takes any."
            )
        if isinstance(problem.source, Density) or isinstance(problem.target, Density):
            return (
                "IMF needs ends that can be sampled, which an unnormalised density cannot: draw samples from it first."
            )
        return None

    def length(self, problem: BridgeProblem) -> int:
        """Pretraining and all stages."""
        return self.pretraining + self.stages * self.updates

    def init(self, problem: BridgeProblem, generator: torch.Generator) -> IMFState:
        """Networks at zero output."""
        state = IMFState(self, problem, as_seed(generator))
        state.begin(self, problem)
        return state

    def restore(self, problem: BridgeProblem, flat: Flat) -> IMFState:
        """The state of an interrupted run."""
        state = IMFState(self, problem, int(flat_number(flat, "seed")))
        state.load(self, problem, flat)
        return state

    def step(self, problem: BridgeProblem, state: IMFState) -> tuple[IMFState, Info]:
        """One update: of both networks while pretraining, of the stage's own network afterwards."""
        stage, within = self.stage(state.step)
        directions = _DIRECTIONS if stage < 0 else (self.trained(stage),)
        if within % self.refresh == 0:
            state.pairs = self._new_pairs(problem, state, stage)
        losses = [state.learners[d].update(self._loss(problem, state, d)) for d in directions]
        state.step += 1
        return state, {"loss": sum(losses) / len(losses), "stage": float(stage + 1)}

    def stage(self, step: int) -> tuple[int, int]:
        """The stage that ``step`` belongs to (−1: pretraining) and the step within it."""
        if step < self.pretraining:
            return -1, step
        stage, within = divmod(step - self.pretraining, self.updates)
        return stage, within

    @staticmethod
    def trained(stage: int) -> Direction:
        """Even stages train the forward network, odd ones the backward network."""
        return Direction.FORWARD if stage % 2 == 0 else Direction.BACKWARD

    def finish(self, problem: BridgeProblem, state: IMFState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        forward, backward = (
            self._measure(problem, direction, copy.deepcopy(state.learners[direction].averaged))
            for direction in _DIRECTIONS
        )
        return Bridge(forward, backward)

    def _measure(self, problem: BridgeProblem, direction: Direction, network: torch.nn.Module) -> PathMeasure:
        start = problem.source if direction is Direction.FORWARD else problem.target
        control = network.eval().requires_grad_(requires_grad=False)
        return PathMeasure(problem.reference, control, start, direction, self.grid)

    def _new_pairs(self, problem: BridgeProblem, state: IMFState, stage: int) -> Pairs:
        if stage < 0:
            return state.start(max(self.pairs, self.refresh * 8), state.generator)
        # Shi et al. 2023, Alg. 1, lines 4 and 8: the coupling comes from the direction trained last.
        other = Direction.BACKWARD if self.trained(stage) is Direction.FORWARD else Direction.FORWARD
        measure = self._measure(problem, other, state.learners[other].averaged)
        near = measure.start.sample(self.pairs, state.generator)
        far = measure.transport(near, seed=state.generator)
        return (near, far) if other is Direction.FORWARD else (far, near)

    def _loss(self, problem: BridgeProblem, state: IMFState, direction: Direction) -> Tensor:
        batch = self.optimisation.batch
        index = torch.randint(len(state.pairs[0]), (batch,), generator=state.generator)
        x0, xT = (side[index.to(side.device)] for side in state.pairs)
        reference = problem.linear_reference
        t, pinned = _times(reference, batch, direction, state.generator)
        noise = torch.randn(x0.shape, generator=state.generator, dtype=x0.dtype).to(x0.device)
        x = pinned.sample(x0, xT, noise)
        sigma = reference.scale(t)
        gradient = pinned.pull if direction is Direction.FORWARD else pinned.push
        target = sigma.T.to(x)(gradient(x0, xT, noise))
        weight = 1.0 / _target_square(pinned, sigma, direction, state.residual_square, problem.dim)
        error = state.learners[direction].module(spread(t, batch, 0), x) - target
        return (spread(weight, batch, 0).to(x).unsqueeze(-1) * error.square()).mean()


class IMFState:
    """Networks, optimisers, the pairs at hand and the generator; the start coupling is made again from its seed."""

    def __init__(self, solver: IMF, problem: BridgeProblem, seed: int) -> None:
        self.step = 0
        self.seed = seed
        self.generator = generator_of(derive(seed, "training"))
        self.residual_square = 1.0
        self._make_start = lambda: solver.start(problem, generator_of(derive(seed, "start")))

    @cached_property
    def start(self) -> PairSampler:
        """Draws from the start coupling, which is computed when it is first asked for."""
        return self._make_start()

    def begin(self, solver: IMF, problem: BridgeProblem) -> None:
        """Measures the size of the problem on draws of the start coupling, and makes the networks."""
        x0, xT = self.pairs = self.start(_PROBE_ROWS, self.generator)
        reference = problem.linear_reference
        residual = xT - reference.transition(0.0, reference.horizon).mean(x0)
        self.residual_square = float(residual.double().square().mean())
        self.learners = self._learners(solver, problem, x0)

    def _learners(self, solver: IMF, problem: BridgeProblem, like: Tensor) -> dict[Direction, Learner]:
        reference = problem.linear_reference
        scale = math.sqrt(_typical_square(reference, self.residual_square, problem.dim))
        learners = {}
        for direction in _DIRECTIONS:
            weights = generator_of(derive(self.seed, direction.name))
            module = seeded_control(solver.network, problem.dim, reference.horizon, scale, weights).to(like)
            stages = sum(solver.trained(stage) is direction for stage in range(solver.stages))
            learners[direction] = Learner(module, solver.optimisation, solver.pretraining + solver.updates * stages)
        return learners

    def flat(self) -> Flat:
        """Networks, optimisers, pairs, generator, seed."""
        flat: Flat = {"step": self.step, "seed": self.seed, "residual_square": self.residual_square}
        flat["generator"] = self.generator.get_state()
        flat["pairs.source"], flat["pairs.target"] = self.pairs
        for direction, learner in self.learners.items():
            flat |= learner.flat(direction.name.lower())
        return flat

    def load(self, solver: IMF, problem: BridgeProblem, flat: Flat) -> None:
        """The opposite of :meth:`flat`."""
        like = problem.source.sample(1, generator_of(0))
        self.pairs = (flat_tensor(flat, "pairs.source").to(like), flat_tensor(flat, "pairs.target").to(like))
        self.residual_square = float(flat_number(flat, "residual_square"))
        self.learners = self._learners(solver, problem, like)
        for direction, learner in self.learners.items():
            learner.load(flat, direction.name.lower())
        self.generator.set_state(flat_tensor(flat, "generator"))
        self.step = int(flat_number(flat, "step"))


_DIRECTIONS = (Direction.FORWARD, Direction.BACKWARD)


def _times(
    reference: LinearProcess, batch: int, direction: Direction, generator: torch.Generator
) -> tuple[Tensor, Pinned]:
    """Stratified times and their pinned bridge; a margin of 10⁻³ T stays off the end where the target is infinite.

    Dense references share each of 32 times among the rows, since every time costs matrix factorisations.
    """
    dense = reference.scale(0.0).dense or reference.linear(0.0).dense
    count = math.gcd(batch, _DENSE_TIMES) if dense else batch
    fractions = torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator, dtype=torch.float64)
    fractions = fractions * (1.0 - _END_MARGIN) / count
    if direction is Direction.BACKWARD:
        fractions = 1.0 - fractions
    times = fractions * reference.horizon
    return times, reference.pinned(times)


def _target_square(pinned: Pinned, sigma: LinearMap, direction: Direction, residual_square: float, dim: int) -> Tensor:
    """The expected square, per coordinate, of the regression target at each time: what the loss is divided by."""
    shaking = pinned.shaking_ahead if direction is Direction.FORWARD else pinned.shaking_behind
    return (sigma.T @ pinned.steady).mean_square(dim) * residual_square + (sigma.T @ shaking).mean_square(dim)


def _typical_square(reference: LinearProcess, residual_square: float, dim: int) -> float:
    """A size for controls: the expected square of the target half way."""
    t = 0.5 * reference.horizon
    return float(_target_square(reference.pinned(t), reference.scale(t), Direction.FORWARD, residual_square, dim))
