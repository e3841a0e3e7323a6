"""Bridge matching: regression of controls on pinned bridges, which IMF and MatchedBridge share.

Pairs ``(X_0, X_T)`` of a coupling are joined by the reference's pinned bridges; the regression

    forward    u(t, X_t) ← σᵀ ∇_x log R(X_T | X_t)         backward   û(t, X_t) ← σᵀ ∇_x log R(X_t | X_0)

makes the mixture of these bridges Markov (Shi et al. 2023, Def. 1 and Prop. 9; Peluchetti 2023). If the pairs follow
the static Schrödinger plan, the mixture is Markov already and the regression finds the controls of the bridge itself.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sbridge.controls import Control, NetworkRecipe, seeded_control
from sbridge.couplings import Coupling
from sbridge.couplings.simple import Pairs, PairSampler
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, unknown_transition, unsampled_end
from sbridge.processes import Direction, LinearProcess
from sbridge.processes.base import Pinned, repeat_per_row
from sbridge.processes.chain import check_growth
from sbridge.random import as_seed, derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.time import TimeGrid
from sbridge.training import Flat, Learner, Optimisation, flat_number, flat_tensor

DIRECTIONS: tuple[Direction, ...] = (Direction.FORWARD, Direction.BACKWARD)
MATCHING = Optimisation(learning_rate=3e-3, batch=512, ema_decay=0.998)
"""Targets are noisy and smooth in the mean: large steps to begin with, averaged over batches, weights and the decay."""
_END_MARGIN = 1e-3
_DENSE_TIMES = 32
_PROBE_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Regression:
    """The regression of either control on pinned bridges.

    Args:
        reference: whose pinned bridges join the pairs.
        dim: of the states.
        residual_square: mean square per coordinate of ``X_T − m(T | 0, X_0)``, which sizes the targets.
    """

    reference: LinearProcess
    dim: int
    residual_square: float

    @classmethod
    def of(cls, problem: BridgeProblem, pairs: Pairs) -> Regression:
        """Sized by ``pairs``."""
        reference = problem.linear_reference
        residual = pairs[1] - reference.transition(0.0, reference.horizon).mean(pairs[0])
        return cls(reference, problem.dim, float(residual.double().square().mean()))

    def loss(
        self, control: Control, pairs: Pairs, direction: Direction, batch: int, generator: torch.Generator
    ) -> Tensor:
        """The weighted mean square error of ``control``: about 1 for no control.

        Of ``⌈batch/2⌉`` pairs, each at a random time, the pinned bridge is taken with noise ``ζ`` and with ``−ζ``: near
        the end the targets are hardly more than ``∓ζ``, which then cancels.
        """
        count = -(-batch // 2)
        index = torch.randint(len(pairs[0]), (count,), generator=generator)
        x0, xT = (side[index.to(side.device)] for side in pairs)
        t, pinned = self.times(count, direction, generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        sigma = self.reference.scale(t)
        gradient = pinned.guiding_term if direction is Direction.FORWARD else pinned.conditional_score
        signed = (noise, -noise)
        x = torch.cat([pinned.sample(x0, xT, zeta) for zeta in signed])
        target = torch.cat([sigma.T.to(x)(gradient(x0, xT, zeta)) for zeta in signed])
        error = control(repeat_per_row(t, count, 0).repeat(2), x) - target
        weight = repeat_per_row(self.weight(pinned, sigma, direction), count, 0).to(x).repeat(2)
        return (weight.unsqueeze(-1) * error.square()).mean()

    def weight(self, pinned: Pinned, sigma: LinearMap, direction: Direction) -> Tensor:
        """``1/(s √E target²)`` at each time, ``s`` the typical size of controls.

        Half way, on a log scale, between equal weights, which the path divergence has, and equal noise.
        """
        return 1.0 / (self.target_square(pinned, sigma, direction).sqrt() * self.typical_size)

    def times(self, batch: int, direction: Direction, generator: torch.Generator) -> tuple[Tensor, Pinned]:
        """Stratified times and their pinned bridge; a margin of 10⁻³ T stays off the end where the target is infinite.

        Dense references share each of 32 times among the rows, since every time costs matrix factorisations.
        """
        reference = self.reference
        dense = reference.scale(0.0).dense or reference.linear(0.0).dense
        count = math.gcd(batch, _DENSE_TIMES) if dense else batch
        fractions = torch.arange(count, dtype=torch.float64)
        fractions = fractions + torch.rand(count, generator=generator, dtype=torch.float64)
        fractions = fractions * (1.0 - _END_MARGIN) / count
        if direction is Direction.BACKWARD:
            fractions = 1.0 - fractions
        times = fractions * reference.horizon
        return times, reference.pinned(times)

    def target_square(self, pinned: Pinned, sigma: LinearMap, direction: Direction) -> Tensor:
        """The expected square, per coordinate, of the target at each time."""
        shaking = pinned.noise_gain_forward if direction is Direction.FORWARD else pinned.noise_gain_backward
        steady = (sigma.T @ pinned.residual_gain).mean_square(self.dim)
        return steady * self.residual_square + (sigma.T @ shaking).mean_square(self.dim)

    @cached_property
    def typical_size(self) -> float:
        """A size for controls: the root of the target's expected square half way."""
        t = 0.5 * self.reference.horizon
        sigma = self.reference.scale(t)
        return math.sqrt(float(self.target_square(self.reference.pinned(t), sigma, Direction.FORWARD)))


@dataclass(frozen=True)
class Matcher:
    """What is trained, and how: two networks on pairs that come from ``start`` first.

    Args:
        start: the coupling that the first regression uses.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid on which solutions are simulated.
        updates: for each direction the updates of its network in the whole run.
    """

    start: Coupling
    network: NetworkRecipe
    optimisation: Optimisation
    grid: TimeGrid
    updates: Mapping[Direction, int]

    def measure(self, problem: BridgeProblem, direction: Direction, network: torch.nn.Module) -> PathMeasure:
        """The process that ``network``, which is frozen, controls."""
        control = network.eval().requires_grad_(requires_grad=False)
        return PathMeasure(problem.reference, control, problem.near(direction), direction, self.grid)

    def bridge(self, problem: BridgeProblem, state: MatchingState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        forward, backward = (
            self.measure(problem, direction, copy.deepcopy(state.learners[direction].averaged))
            for direction in DIRECTIONS
        )
        return Bridge(forward, backward)


class MatchingSolver(Solver["MatchingState"]):
    """What the solvers by bridge matching share: all but their steps and how long they take.

    They need a linear reference and ends that can be sampled.
    """

    @property
    @abstractmethod
    def matcher(self) -> Matcher:
        """What is trained, with the updates that each network gets in all."""

    @final
    def refusal(self, problem: BridgeProblem) -> str | None:
        """A reference without closed transitions, or an end that cannot be sampled."""
        name = type(self).__name__
        return unknown_transition(name, problem.reference) or unsampled_end(name, problem)

    @final
    def init(self, problem: BridgeProblem, generator: torch.Generator) -> MatchingState:
        """Networks at zero output."""
        times = self.matcher.grid.times(problem.reference.horizon)
        for direction in DIRECTIONS:
            check_growth(problem.reference, times, direction)
        return MatchingState.begun(self.matcher, problem, as_seed(generator))

    @final
    def restore(self, problem: BridgeProblem, flat: Flat) -> MatchingState:
        """The state of an interrupted run."""
        return MatchingState.restored(self.matcher, problem, flat)

    @final
    def finish(self, problem: BridgeProblem, state: MatchingState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        return self.matcher.bridge(problem, state)


class MatchingState:
    """Networks, optimisers, the pairs at hand and the generator; the start coupling is made again from its seed.

    Attributes:
        step: steps done.
        pairs: what both networks learn from now.
        regression: with its size, measured once on the start coupling.
        learners: the network under training in either direction.
    """

    pairs: Pairs
    regression: Regression
    learners: dict[Direction, Learner]

    def __init__(self, matcher: Matcher, problem: BridgeProblem, seed: int) -> None:
        self.step = 0
        self.seed = seed
        self.matcher = matcher
        self.generator = generator_of(derive(seed, "training"))
        self._make_start = lambda: matcher.start(problem, generator_of(derive(seed, "start")))

    @classmethod
    def begun(cls, matcher: Matcher, problem: BridgeProblem, seed: int) -> MatchingState:
        """Measures the size of the problem on draws of the start coupling, and makes networks at zero output."""
        state = cls(matcher, problem, seed)
        state.pairs = state.start(_PROBE_ROWS, state.generator)
        state.regression = Regression.of(problem, state.pairs)
        state.learners = state._new_learners(state.pairs[0])
        return state

    @classmethod
    def restored(cls, matcher: Matcher, problem: BridgeProblem, flat: Flat) -> MatchingState:
        """The opposite of :meth:`flat`."""
        state = cls(matcher, problem, int(flat_number(flat, "seed")))
        like = problem.source.sample(1, generator_of(0))
        state.pairs = (flat_tensor(flat, "pairs.source").to(like), flat_tensor(flat, "pairs.target").to(like))
        size = float(flat_number(flat, "residual_square"))
        state.regression = Regression(problem.linear_reference, problem.dim, size)
        state.learners = state._new_learners(like)
        for direction, learner in state.learners.items():
            learner.load(flat, direction.name.lower())
        state.generator.set_state(flat_tensor(flat, "generator"))
        state.step = int(flat_number(flat, "step"))
        return state

    @cached_property
    def start(self) -> PairSampler:
        """Draws from the start coupling, which is computed when it is first asked for."""
        return self._make_start()

    def learn(self, direction: Direction) -> float:
        """One update of a network on the pairs at hand; the loss."""
        learner, batch = self.learners[direction], self.matcher.optimisation.batch
        return learner.update(self.regression.loss(learner.module, self.pairs, direction, batch, self.generator))

    def flat(self) -> Flat:
        """Networks, optimisers, pairs, generator, seed."""
        flat: Flat = {"step": self.step, "seed": self.seed, "residual_square": self.regression.residual_square}
        flat["generator"] = self.generator.get_state()
        flat["pairs.source"], flat["pairs.target"] = self.pairs
        for direction, learner in self.learners.items():
            flat |= learner.flat(direction.name.lower())
        return flat

    def _new_learners(self, like: Tensor) -> dict[Direction, Learner]:
        regression, matcher = self.regression, self.matcher
        horizon, learners = regression.reference.horizon, {}
        for direction in DIRECTIONS:
            weights = generator_of(derive(self.seed, direction.name))
            module = seeded_control(matcher.network, regression.dim, horizon, regression.typical_size, weights)
            learners[direction] = Learner(module.to(like), matcher.optimisation, matcher.updates[direction])
        return learners
