"""Iterative Markovian fitting (bridge matching), with a network for either direction."""

from __future__ import annotations

from dataclasses import dataclass, field

from sbridge.controls import NetworkRecipe, ScaledMLP
from sbridge.couplings import Coupling, EntropicCoupling
from sbridge.couplings.simple import Pairs
from sbridge.errors import InvalidInputError, check_at_least
from sbridge.problems import BridgeProblem
from sbridge.processes import Direction
from sbridge.solvers.control.starts import WarmStart
from sbridge.solvers.learners import DIRECTIONS
from sbridge.solvers.matching import MATCHING, Matcher, MatchingSolver, MatchingState, mean_loss
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, Optimisation


@register
@dataclass(frozen=True)
class IMF(MatchingSolver):
    """Iterative Markovian fitting: alternating Markovian and reciprocal projections (Shi et al. 2023; Peluchetti 2023).

    Pairs ``(X_0, X_T)`` of the current coupling are joined by the reference's pinned bridges (the reciprocal
    projection); regression on the gradients of the log transition density makes the mixture Markov again
    (``sbridge.solvers.matching``).

    Both networks are first trained on ``coupling``. Then stages alternate: the backward network simulates pairs from
    samples of the target, and the forward network is trained on them; in the next stage the roles are exchanged. One
    end of every pair is simulated, so no training sample is paired with another.

    Args:
        coupling: the pairs that the first regression uses.
        pretraining: number of updates of each network on ``coupling``.
        stages: number of Markovian projections after that; an even number treats both directions equally.
        updates: number of updates per stage.
        refresh: number of updates between two simulations of pairs.
        pairs: number of pairs per simulation.
        start: the known control to which the networks are added. ``None``: ``GaussianStart()`` if the moments of
            both ends are known, otherwise ``ZeroStart()``.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid on which pairs and solutions are simulated; by default finer towards both ends, where
            controls change fastest and the last step's noise would blur the data.

    Works with any linear reference and any ends that can be sampled.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
    """

    coupling: Coupling = field(default_factory=EntropicCoupling)
    pretraining: int = 2000
    stages: int = 28
    updates: int = 400
    refresh: int = 200
    pairs: int = 8192
    start: WarmStart | None = None
    network: NetworkRecipe = field(default_factory=ScaledMLP)
    optimisation: Optimisation = field(default_factory=lambda: MATCHING)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(50))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "pretraining", "updates", "refresh", "pairs")
        if self.stages < 0:
            raise InvalidInputError(f"stages must not be negative, got {self.stages}.")

    def max_steps(self, problem: BridgeProblem) -> int:
        """Pretraining and all stages."""
        return self.pretraining + self.stages * self.updates

    def step(self, problem: BridgeProblem, state: MatchingState) -> tuple[MatchingState, Info]:
        """One update: of both networks while pretraining, of the stage's own network afterwards."""
        stage, within = self.stage(state.step)
        directions = DIRECTIONS if stage < 0 else (self.trained(stage),)
        if within % self.refresh == 0:
            state.pairs = self._new_pairs(problem, state, stage)
        losses = [state.learn(direction) for direction in directions]
        state.step += 1
        return state, {"loss": mean_loss(losses), "stage": float(stage + 1)}

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

    @property
    def matcher(self) -> Matcher:
        """The training, with the total number of updates of either network."""
        trained = [self.trained(stage) for stage in range(self.stages)]
        updates = {direction: self.pretraining + self.updates * trained.count(direction) for direction in DIRECTIONS}
        return Matcher(self.coupling, self.start, self.network, self.optimisation, self.grid, updates)

    def _new_pairs(self, problem: BridgeProblem, state: MatchingState, stage: int) -> Pairs:
        if stage < 0:
            return state.draw(self.pairs, state.generator)
        # Shi et al. 2023, Alg. 1: the coupling comes from the direction trained last.
        other = self.trained(stage).opposite
        control = state.on_top(other, state.learners[other].averaged)
        measure = self.matcher.measure(problem, other, control)
        near = measure.start.sample(self.pairs, state.generator)
        far = measure.transport(near, seed=state.generator)
        return (near, far) if other is Direction.FORWARD else (far, near)
