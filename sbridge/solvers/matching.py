"""Bridge matching: regression of controls on pinned bridges, which IMF and MatchedBridge share.

Pairs ``(X_0, X_T)`` of a coupling are joined by the reference's pinned bridges; the regression

    forward    u(t, X_t) ← σᵀ ∇_x log R(X_T | X_t)         backward   û(t, X_t) ← σᵀ ∇_x log R(X_t | X_0)

makes the mixture of these bridges Markov (Shi et al. 2023, Def. 1 and Prop. 9; Peluchetti 2023). If the pairs follow
the static Schrödinger plan, the mixture is Markov already and the regression finds the controls of the bridge itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from sbridge.controls import Control, NetworkRecipe, on_top
from sbridge.couplings import Coupling
from sbridge.couplings.simple import Pairs, PairSampler
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, not_plain, unknown_transition, unsampled_end
from sbridge.processes import Direction, LinearProcess
from sbridge.processes.base import Pinned, repeat_per_row
from sbridge.processes.chain import check_growth
from sbridge.random import derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.control.starts import WarmStart, known_controls
from sbridge.solvers.learners import DIRECTIONS, control_learner
from sbridge.time import TimeGrid
from sbridge.training import Derived, Learner, Optimisation, State, shared

MATCHING = Optimisation(learning_rate=3e-3, batch=512, ema_decay=0.998)
"""Targets are noisy, but their mean is smooth: large steps first, averaged over batches, weights and the decay."""
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
        typical_size: a size for controls: the root of the target's expected square half way.
    """

    reference: LinearProcess
    dim: int
    residual_square: float
    typical_size: float

    @classmethod
    def of(cls, problem: BridgeProblem, pairs: Pairs) -> Regression:
        """Measures both sizes on ``pairs``."""
        reference, half_way = problem.linear_reference, 0.5 * problem.reference.horizon
        residual = pairs[1] - reference.transition(0.0, reference.horizon).mean(pairs[0])
        unsized = cls(reference, problem.dim, float(residual.double().square().mean()), 1.0)
        pinned, sigma = reference.pinned(half_way), reference.scale(half_way)
        square = float(unsized.target_square(pinned, sigma, Direction.FORWARD))
        return replace(unsized, typical_size=math.sqrt(square))

    def loss(
        self, control: Control, pairs: Pairs, direction: Direction, batch: int, generator: torch.Generator
    ) -> Tensor:
        """The weighted mean squared error of ``control``, about 1 for no control.

        Of ``⌈batch/2⌉`` pairs, each at a random time, the pinned bridge is drawn with noise ``ζ`` and with ``−ζ``. Near
        the end the targets are almost entirely ``∓ζ``, which then cancels.
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

        The geometric mean of equal weights, as in the path divergence, and weights that make the noise equal.
        """
        return 1.0 / (self.target_square(pinned, sigma, direction).sqrt() * self.typical_size)

    def times(self, batch: int, direction: Direction, generator: torch.Generator) -> tuple[Tensor, Pinned]:
        """Stratified times and their pinned bridge, at least 10⁻³ T from the end where the target is infinite.

        With dense references the rows share 32 times, since every time requires matrix factorisations.
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


@dataclass(frozen=True)
class Matcher:
    """The training of two networks, on pairs that come from ``coupling`` first.

    Args:
        coupling: the pairs that the first regression uses.
        start: the known control to which the networks are added; ``None``: the default.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid on which solutions are simulated.
        updates: number of updates of either network in the whole run.
    """

    coupling: Coupling
    start: WarmStart | None
    network: NetworkRecipe
    optimisation: Optimisation
    grid: TimeGrid
    updates: Mapping[Direction, int]

    def measure(self, problem: BridgeProblem, direction: Direction, control: Control) -> PathMeasure:
        """The process with ``control``."""
        return PathMeasure(problem.reference, control, problem.near(direction), direction, self.grid)

    def bridge(self, problem: BridgeProblem, state: MatchingState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        forward, backward = (
            self.measure(problem, way, state.on_top(way, state.learners[way].solution())) for way in DIRECTIONS
        )
        return Bridge(forward, backward)


class MatchingSolver(Solver["MatchingState"]):
    """Base of the solvers by bridge matching, which define their steps and the number of steps.

    They require a linear reference and ends that can be sampled.
    """

    @property
    @abstractmethod
    def matcher(self) -> Matcher:
        """The training, with the total number of updates of either network."""

    @final
    def refusal(self, problem: BridgeProblem) -> str | None:
        """Explains that the reference has no closed-form transitions, or that an end cannot be sampled."""
        name = type(self).__name__
        unknown = not_plain(name, problem) or unknown_transition(name, problem.reference)
        return unknown or unsampled_end(name, problem)

    @final
    def init(self, problem: BridgeProblem, seed: int) -> MatchingState:
        """Networks with zero output, sized by draws of the first coupling.

        Raises:
            InvalidInputError: if the reference grows too fast for the grid.
        """
        matcher, reference = self.matcher, problem.reference
        for direction in DIRECTIONS:
            check_growth(reference, matcher.grid.times(reference.horizon), direction)
        draw = matcher.coupling(problem, generator_of(derive(seed, "start")))
        generator = generator_of(derive(seed, "training"))
        pairs = draw(_PROBE_ROWS, generator)
        regression = Regression.of(problem, pairs)
        options, size = (matcher.network, matcher.optimisation), regression.typical_size
        learners = {
            way: control_learner(problem, way, *options, updates=matcher.updates[way], size=size, seed=seed)
            for way in DIRECTIONS
        }
        starts = known_controls(matcher.start, problem)
        return MatchingState(seed, draw, regression, starts, pairs, learners, generator)

    @final
    def finish(self, problem: BridgeProblem, state: MatchingState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        return self.matcher.bridge(problem, state)


@dataclass(eq=False)
class MatchingState(State):
    """Networks under training, the current pairs and the generator.

    Attributes:
        draw: draws pairs from the first coupling.
        regression: with its sizes, measured once on the first coupling.
        starts: the known control of either direction, to which the network is added, or ``None``.
        pairs: the current training pairs of both networks.
        learners: the network of either direction.
        generator: of pairs, times and noise.
    """

    draw: Derived[PairSampler]
    regression: Derived[Regression]
    starts: Derived[dict[Direction, Control | None]]
    pairs: Pairs
    learners: dict[Direction, Learner]
    generator: torch.Generator

    def learn(self, direction: Direction) -> Tensor:
        """One update of a network on the current pairs; returns the loss."""
        learner = self.learners[direction]
        control = shared(self.on_top(direction, learner.module))
        return learner.update(
            self.regression.loss(control, self.pairs, direction, learner.options.batch, self.generator)
        )

    def on_top(self, direction: Direction, network: torch.nn.Module) -> Control:
        """The known control of a direction plus ``network``."""
        return on_top(self.starts[direction], network)


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """The mean of the losses of a step, in float64."""
    return torch.stack(tuple(losses)).double().mean()
