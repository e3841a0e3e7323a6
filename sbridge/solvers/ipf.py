"""Iterative proportional fitting in path space, with a network for either direction."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sbridge.controls import MLP, Control, NetworkRecipe, SumControl
from sbridge.errors import InvalidInputError
from sbridge.laws import Density
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, ControlProblem
from sbridge.processes import Chain, Direction, Process, default_rule
from sbridge.random import derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.control.stability import check_steps
from sbridge.solvers.half_bridges import (
    HalfBridge,
    HalfStepContext,
    MeanMatching,
    ReversalControl,
    warn_if_slow,
)
from sbridge.solvers.learners import DIRECTIONS, control_learner, sampled_end
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, Learner, Optimisation, State

_PROBE_ROWS = 512
_ROWS_A_COLUMN = 10  # below, the largest singular value of a sample covariance is mostly chance


@register
@dataclass(frozen=True)
class IPF(Solver["IPFState"]):
    """Iterative proportional fitting: half-bridges in turn, as Fortet (1940) and Sinkhorn (1964) in path space.

    From the reference started in the source, each half-step gives the law at hand its right end: it is reversed, and
    started in the law of the other end. In terms of the potentials of the Schrödinger system, ``û = σᵀ∇log φ̂`` and
    ``u = σᵀ∇log φ``::

        half-steps 1, 3, …    backward from the target:  φ(T) = p_T / (φ̂(0) carried forward)
        half-steps 2, 4, …    forward from the source:   φ̂(0) = p_0 / (φ(T) carried backward)

    Paths are simulated, so any reference will do. Each half-step changes the distribution of one end and keeps the
    conditional distribution of the path given both ends. Regression errors therefore have two fates. What a half-step
    does to the potentials at the two ends is corrected by later ones, at the rate at which the iteration converges.
    What it does to the conditional distribution given both ends (which should stay that of the reference) is inherited
    by all later half-steps, and adds up: a rotation that enters the paths stays there. More half-steps do not remove
    such an error; more ``updates`` and a finer ``grid`` make it smaller.

    Convergence is slow where the noise is small, and a :class:`~sbridge.errors.ConvergenceWarning` says so. For a
    linear reference :class:`~sbridge.solvers.IMF` needs fewer stages.

    Args:
        half_steps: how many; an even number leaves the forward control as the last that was learned.
        updates: updates of one half-step.
        forward: how the forward control is learned.
        backward: how the backward control is learned.
        refresh: updates between simulations of new paths.
        paths: paths simulated at a time.
        network: recipe of either network.
        optimisation: how networks are trained; ``batch`` counts single steps of paths. The learning rate falls within
            each half-step.
        grid: time grid on which paths and solutions are simulated.

    Works with any reference. Ends are samples, or closed-form laws; either end may be an unnormalised density if the
    control that runs towards it is learned by :class:`~sbridge.solvers.AdjointHalfBridge`.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
    """

    half_steps: int = 20
    updates: int = 500
    forward: HalfBridge = field(default_factory=MeanMatching)
    backward: HalfBridge = field(default_factory=MeanMatching)
    refresh: int = 50
    paths: int = 512
    network: NetworkRecipe = field(default_factory=MLP)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=3e-3, batch=1024, ema_decay=0.99, warm_up=50)
    )
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "refresh", "paths"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.half_steps < 2:
            raise InvalidInputError(f"half_steps must be at least 2, one for each direction; got {self.half_steps}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs of each end what its half-bridge needs."""
        if isinstance(problem.source, Density) and isinstance(problem.target, Density):
            return "IPF needs an end that can be sampled, and both are unnormalised densities: draw samples from one."
        refusals = (self.half_bridge(direction).refusal(problem, direction) for direction in Direction)
        return next((reason for reason in refusals if reason is not None), None)

    def half_bridge(self, direction: Direction) -> HalfBridge:
        """How the control of ``direction`` is learned."""
        return self.forward if direction is Direction.FORWARD else self.backward

    def max_steps(self, problem: BridgeProblem) -> int:
        """Updates of all half-steps."""
        return self.half_steps * self.updates

    def init(self, problem: BridgeProblem, seed: int) -> IPFState:
        """Networks at zero output: the reference itself."""
        check_steps(ControlProblem(problem.reference, sampled_end(problem)), self.grid, default_rule(problem.reference))
        size = self._size(problem, seed)
        like = sampled_end(problem).sample(1, generator_of(0))
        times, rule = self.grid.times(problem.reference.horizon), default_rule(problem.reference)
        chains = {way: Chain(problem.reference, times, way, rule, like) for way in DIRECTIONS}
        options = (self.network, self.optimisation)
        learners = {
            way: control_learner(problem, way, *options, updates=self.updates, size=size, seed=seed)
            for way in DIRECTIONS
        }
        return IPFState(seed, size, chains, learners, generator_of(derive(seed, "training")))

    def step(self, problem: BridgeProblem, state: IPFState) -> tuple[IPFState, Info]:
        """One update of the control that the half-step trains."""
        half_step, within = divmod(state.step, self.updates)
        trained = self.trained(half_step)
        if within == 0:
            network = copy.deepcopy(state.learners[trained].averaged)  # with a new optimiser and a new average
            state.learners[trained] = Learner(network, self.optimisation, self.updates)
        learning = self._learning(problem, state, trained)
        if within % self.refresh == 0:
            state.kept = self._simulate(problem, state, learning)
            learning = replace(learning, kept=state.kept)
        loss = self._loss(state, learning)
        # Networks work in units of output_scale; in nats the clipping of gradients would depend on σ.
        state.learners[trained].update(loss / (state.size**2 * problem.reference.horizon))
        state.step += 1
        return state, {"loss": float(loss.detach()), "half-step": float(half_step + 1)}

    @staticmethod
    def trained(half_step: int) -> Direction:
        """Half-step 0 trains the backward control, on the reference; then they alternate."""
        return Direction.BACKWARD if half_step % 2 == 0 else Direction.FORWARD

    def finish(self, problem: BridgeProblem, state: IPFState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        forward, backward = (
            self._measure(problem, direction, state.learners[direction].solution()) for direction in Direction
        )
        return Bridge(forward, backward)

    def _size(self, problem: BridgeProblem, seed: int) -> float:
        """The size that controls are expected to have; warns if half-steps will converge slowly."""
        if isinstance(problem.source, Density) or isinstance(problem.target, Density):
            return 1.0 / math.sqrt(problem.reference.horizon)
        probe = _Probe.of(self, problem, derive(seed, "size"))
        steps = max(self.half_steps, IPF.half_steps)  # who takes fewer does not ask for the limit
        warn_if_slow(
            "IPF",
            probe.spread(),
            steps,
            f"{steps} half-steps",
            lambda count: f"half_steps={2 * math.ceil(0.5 * count)}",
            "under a linear reference MixtureBridge() and IMF() do not slow down so",
        )
        return probe.typical_control(problem.reference)

    def _measure(self, problem: BridgeProblem, direction: Direction, network: torch.nn.Module) -> PathMeasure:
        control = _control(problem, direction, network)
        return PathMeasure(problem.reference, control, problem.near(direction), direction, self.grid)

    def _learning(self, problem: BridgeProblem, state: IPFState, trained: Direction) -> HalfStepContext:
        other = _control(problem, trained.opposite, state.learners[trained.opposite].averaged)
        chain = state.chains[self.half_bridge(trained).simulated(trained)]
        network = state.learners[trained].module
        return HalfStepContext(problem, trained, network, _base(problem, trained), other, chain, state.kept)

    def _simulate(self, problem: BridgeProblem, state: IPFState, learning: HalfStepContext) -> dict[str, Tensor]:
        """What is kept of new paths: of the fixed control with averaged weights, or of the one that learns as it is."""
        half_bridge = self.half_bridge(learning.trained)
        simulated = half_bridge.simulated(learning.trained)
        learner = state.learners[simulated]
        network = learner.module if simulated is learning.trained else learner.averaged
        measure = self._measure(problem, simulated, network)
        with torch.no_grad():
            starts = measure.start.sample(self.paths, state.generator)
        paths = measure.simulate(starts, seed=state.generator)
        return half_bridge.keep(paths, learning)

    def _loss(self, state: IPFState, learning: HalfStepContext) -> Tensor:
        """Sum over the steps of their loss times their length, estimated from a batch; nats, up to a constant."""
        batch, steps = self.optimisation.batch, learning.chain.length
        # Every step is used alike, and weighted by its length.
        shifts = torch.rand(batch, generator=state.generator, dtype=torch.float64)
        which = ((torch.arange(batch) + shifts) * (steps / batch)).long().clamp_max(steps - 1)
        rows = torch.randint(self.paths, (batch,), generator=state.generator)
        values = self.half_bridge(learning.trained).loss(learning, which, rows, state.generator)
        spans = learning.chain.visited.diff().abs()[which]
        return steps * (spans.to(values) * values).mean()


@dataclass(eq=False)
class IPFState(State):
    """Networks under training, the paths at hand and the generator.

    Attributes:
        size: the size that controls are expected to have.
        chains: the time-discrete reference in either direction.
        learners: the network of either direction.
        generator: of paths and batches.
        kept: what the half-bridge keeps of the paths at hand.
    """

    size: Derived[float]
    chains: Derived[dict[Direction, Chain]]
    learners: dict[Direction, Learner]
    generator: torch.Generator
    kept: dict[str, Tensor] = field(default_factory=dict)


def _control(problem: BridgeProblem, direction: Direction, network: torch.nn.Module) -> Control:
    base = _base(problem, direction)
    return network if base is None else SumControl((base, network))


def _base(problem: BridgeProblem, direction: Direction) -> Control | None:
    """What the network of a direction is added to."""
    return None if direction is Direction.FORWARD else ReversalControl(problem.reference)


@dataclass(frozen=True, eq=False)
class _Probe:
    """Draws of the source, where the reference takes them twice, and draws of the target."""

    starts: Tensor
    reached: tuple[Tensor, Tensor]
    wanted: Tensor

    @classmethod
    def of(cls, solver: IPF, problem: BridgeProblem, seed: int) -> _Probe:
        reference = PathMeasure(problem.reference, None, problem.source, grid=solver.grid)
        starts = reference.starts(_PROBE_ROWS, seed=seed)
        wanted = problem.target.sample(_PROBE_ROWS, generator_of(derive(seed, "target")))
        reached = (reference.transport(starts, seed=one) for one in (seed, derive(seed, "again")))
        return cls(starts, (next(reached), next(reached)), wanted)

    def typical_control(self, process: Process) -> float:
        """A size for controls: ``1/√T``, and what takes an end of the reference to an end of the target in time."""
        horizon = process.horizon
        lacking = process.scale(0.5 * horizon).inverse().to(self.wanted)(self.wanted - self.reached[0]) / horizon
        return math.sqrt(1.0 / horizon + float(lacking.double().square().mean()))

    def spread(self) -> float:
        """The largest singular value of ``L_Bᵀ L_A``, of what the reference makes of the source and of the target.

        Their covariances ``A`` and ``B`` are in units of the noise that the reference adds: half the covariance of two
        ends from one start. ``A`` is that of the regression of ends on starts. 0 if there are too few draws to say.
        """
        x, one, two, y = (
            rows.double().cpu() - rows.double().cpu().mean(0) for rows in (self.starts, *self.reached, self.wanted)
        )
        count, dim = x.shape
        if count < _ROWS_A_COLUMN * dim:
            return 0.0
        moved = x @ (torch.linalg.pinv(x) @ (0.5 * (one + two)))
        noise = 0.5 * (one - two).mT.cov().reshape(dim, dim)
        white = LinearMap(noise, dense=True).cholesky().inverse()
        return float(torch.linalg.matrix_norm(white(y) @ white(moved).mT, 2)) / count
