"""Iterative proportional fitting in path space, with a network for either direction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sbridge.controls import Control, NetworkRecipe, ScaledMLP, on_top
from sbridge.errors import InvalidInputError
from sbridge.laws import Density
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, ControlProblem, noiseless_coordinate, not_plain
from sbridge.processes import Chain, Direction, LinearProcess, Process, default_rule
from sbridge.random import derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.control.stability import check_steps
from sbridge.solvers.control.starts import WarmStart, known_controls
from sbridge.solvers.density_ratio import DensityRatio
from sbridge.solvers.half_bridges import (
    HalfBridge,
    HalfStepContext,
    MeanMatching,
    PinnedPaths,
    ReversalControl,
    differentiable,
    warn_if_slow,
)
from sbridge.solvers.learners import DIRECTIONS, control_learner, sampled_end
from sbridge.solvers.matching import MATCHING
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, Learner, Optimisation, State

_PROBE_ROWS = 512
_ROWS_A_COLUMN = 10  # below, the largest singular value of a sample covariance is mostly chance


@register
@dataclass(frozen=True)
class IPF(Solver["IPFState"]):
    """Iterative proportional fitting: alternating half-bridges (Fortet 1940; Sinkhorn 1964), in path space.

    Each half-step reverses the current path measure and starts it from the prescribed distribution at that end. In
    terms of the potentials of the Schrödinger system, ``û = σᵀ∇log φ̂`` and ``u = σᵀ∇log φ``::

        half-steps 1, 3, …    backward from the target:  φ(T) = p_T / (φ̂(0) carried forward)
        half-steps 2, 4, …    forward from the source:   φ̂(0) = p_0 / (φ(T) carried backward)

    The limit is the same from every start ``e^{f(X_0) + g(X_T)} R``. For a linear reference the iteration therefore
    begins with the bridge between Gaussians that have the means and covariances of the ends.

    A half-step must keep the conditional distribution of the path given both ends, which is that of the reference.
    :class:`~sbridge.solvers.PinnedPaths`, the default for linear references, draws from this distribution anew.
    :class:`~sbridge.solvers.DensityRatio`, the default for the forward control of other references, learns the control
    anew from the reference. Earlier errors are therefore forgotten. The other half-bridges take the distribution from
    the previous half-step: regression errors that change it remain in all later half-steps.

    A state cost that is a function is learned with the forward control, by ``DensityRatio``; the backward control is
    its reversal.

    Args:
        half_steps: number of half-steps. If it is even, the forward control is learned last, except with
            ``DensityRatio()``, whose result is reversed at the end.
        updates: number of updates per half-step.
        forward: how the forward control is learned. ``None``: ``PinnedPaths()`` for a linear reference, otherwise, and
            with a state cost, ``DensityRatio()`` if torch can differentiate the drift, and ``MeanMatching()`` if not.
        backward: how the backward control is learned. ``None``: ``PinnedPaths()`` for a linear reference,
            ``MeanMatching()`` for others, and with a state cost.
        start: the known control to which the networks are added. ``None``: ``GaussianStart()`` if the reference is
            linear and the moments of both ends are known, otherwise ``ZeroStart()``.
        refresh: number of updates between two simulations; ``None``: the default of the half-bridge.
        paths: number of paths per simulation; ``None``: the default of the half-bridge.
        network: recipe of either network.
        optimisation: how networks are trained. The learning rate decays over the whole run.
        grid: time grid on which paths and solutions are simulated.

    Works with any reference. Ends are samples, or closed-form distributions; either end may be an unnormalised density
    if the control that runs towards it is learned by :class:`~sbridge.solvers.AdjointHalfBridge`.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
    """

    half_steps: int = 20
    updates: int = 500
    forward: HalfBridge | None = None
    backward: HalfBridge | None = None
    start: WarmStart | None = None
    refresh: int | None = None
    paths: int | None = None
    network: NetworkRecipe = field(default_factory=ScaledMLP)
    optimisation: Optimisation = field(default_factory=lambda: MATCHING)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(100))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "refresh", "paths"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be positive, got {value}.")
        if self.half_steps < 2:
            raise InvalidInputError(f"half_steps must be at least 2, one for each direction; got {self.half_steps}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Explains which requirement of a half-bridge the problem does not meet."""
        if isinstance(problem.source, Density) and isinstance(problem.target, Density):
            return "IPF needs an end that can be sampled, and both are unnormalised densities: draw samples from one."
        ways = [self.half_bridge(problem, direction) for direction in Direction]
        if problem.running_cost is None or not (ways[0].independent and all(one.keeps_cost for one in ways)):
            cost = not_plain("With these half-bridges, IPF", problem)
            if cost is not None:
                return cost
        unfit = noiseless_coordinate("IPF", problem.reference)
        if unfit is not None:
            return unfit
        refusals = (way.refusal(problem, direction) for way, direction in zip(ways, Direction, strict=True))
        return next((reason for reason in refusals if reason is not None), None)

    def half_bridge(self, problem: BridgeProblem, direction: Direction) -> HalfBridge:
        """How the control of ``direction`` is learned."""
        chosen = self.forward if direction is Direction.FORWARD else self.backward
        if chosen is not None:
            return chosen
        sampled = not any(isinstance(end, Density) for end in (problem.source, problem.target))
        if sampled and problem.running_cost is None and isinstance(problem.reference, LinearProcess):
            return PinnedPaths()
        rebuilt = sampled and direction is Direction.FORWARD and differentiable(problem)
        return DensityRatio() if rebuilt else MeanMatching()

    def schedule(self, problem: BridgeProblem) -> tuple[Direction, ...]:
        """The direction that each half-step trains.

        The directions alternate, starting with the backward control. If the forward control is learned without the
        backward one, it is trained first, and the last quarter of the half-steps trains its reversal.
        """
        ways = (Direction.BACKWARD, Direction.FORWARD)
        if not self.half_bridge(problem, Direction.FORWARD).independent:
            return tuple(ways[half_step % 2] for half_step in range(self.half_steps))
        last = max(1, self.half_steps // 4)
        return (Direction.FORWARD,) * (self.half_steps - last) + (Direction.BACKWARD,) * last

    def max_steps(self, problem: BridgeProblem) -> int:
        """Updates of all half-steps."""
        return self.half_steps * self.updates

    def init(self, problem: BridgeProblem, seed: int) -> IPFState:
        """Networks with zero output, added to the start."""
        rule = default_rule(problem.reference)
        check_steps(ControlProblem(problem.reference, sampled_end(problem)), self.grid, rule)
        starts = known_controls(self.start, problem)
        size = self._size(problem, starts, seed)
        if starts[Direction.BACKWARD] is None:
            starts[Direction.BACKWARD] = ReversalControl(problem.reference)
        like = sampled_end(problem).sample(1, generator_of(0))
        times, schedule = self.grid.times(problem.reference.horizon), self.schedule(problem)
        chains = {way: Chain(problem.reference, times, way, rule, like) for way in DIRECTIONS}
        half_bridges = {way: self.half_bridge(problem, way) for way in DIRECTIONS}
        options, learners, helpers = (self.network, self.optimisation), {}, {}
        for way in DIRECTIONS:
            updates = self.updates * schedule.count(way)
            learners[way] = control_learner(problem, way, *options, updates=updates, size=size, seed=seed)
            half_bridge = half_bridges[way]
            simulations = schedule.count(way) * -(-self.updates // (self.refresh or half_bridge.refresh))
            own = half_bridge.helpers(problem, way, simulations, derive(seed, f"{way.name} helpers"))
            helpers |= {f"{way.name.lower()} {name}": learner for name, learner in own.items()}
        training = generator_of(derive(seed, "training"))
        return IPFState(seed, size, chains, starts, half_bridges, schedule, learners, helpers, training)

    def step(self, problem: BridgeProblem, state: IPFState) -> tuple[IPFState, Info]:
        """One update of the control that the half-step trains."""
        half_step, within = divmod(state.step, self.updates)
        trained = state.schedule[half_step]
        half_bridge, learning = state.half_bridges[trained], self._learning(problem, state, trained)
        if within % (self.refresh or half_bridge.refresh) == 0:
            state.kept = self._collect(problem, state, learning)
            learning = replace(learning, kept=state.kept)
        loss = half_bridge.loss(learning, self.optimisation.batch, state.generator)
        value = state.learners[trained].update(loss)
        state.step += 1
        return state, {"loss": value, "half-step": float(half_step + 1)}

    def finish(self, problem: BridgeProblem, state: IPFState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        forward, backward = (
            self._measure(problem, direction, state.on_top(direction, state.learners[direction].solution()))
            for direction in Direction
        )
        return Bridge(forward, backward)

    def _size(self, problem: BridgeProblem, starts: dict[Direction, Control | None], seed: int) -> float:
        """The expected size of controls; warns if half-steps will converge slowly."""
        if isinstance(problem.source, Density) or isinstance(problem.target, Density):
            return 1.0 / math.sqrt(problem.reference.horizon)
        probe = _Probe.of(self.grid, problem, derive(seed, "size"))
        steps = max(self.half_steps, IPF.half_steps)  # a shorter run is not meant to converge
        if starts[Direction.FORWARD] is None:
            warn_if_slow(
                "IPF",
                probe.spread(),
                steps,
                f"{steps} half-steps",
                lambda count: f"half_steps={2 * math.ceil(0.5 * count)}",
                "use MixtureBridge() or IMF() with a linear reference, which do not slow down in this way",
            )
        return probe.typical_control(problem.reference)

    def _measure(self, problem: BridgeProblem, direction: Direction, control: Control) -> PathMeasure:
        return PathMeasure(problem.reference, control, problem.near(direction), direction, self.grid)

    def _learning(self, problem: BridgeProblem, state: IPFState, trained: Direction) -> HalfStepContext:
        other, prefix = trained.opposite, f"{trained.name.lower()} "
        return HalfStepContext(
            problem=problem,
            trained=trained,
            network=state.learners[trained].module,
            base=state.bases[trained],
            other=state.on_top(other, state.learners[other].averaged),
            chain=state.chains[state.half_bridges[trained].simulated(trained)],
            size=state.size,
            progress=state.learners[trained].updates / state.learners[trained].length,
            helpers={name.removeprefix(prefix): own for name, own in state.helpers.items() if name.startswith(prefix)},
            kept=state.kept,
        )

    def _collect(self, problem: BridgeProblem, state: IPFState, learning: HalfStepContext) -> dict[str, Tensor]:
        """Simulates paths of the fixed control with averaged weights, or of the control under training."""
        trained, half_bridge = learning.trained, state.half_bridges[learning.trained]
        simulated = half_bridge.simulated(trained)
        control = learning.control if simulated is trained else learning.other
        count = self.paths or half_bridge.paths
        return half_bridge.collect(self._measure(problem, simulated, control), count, learning, state.generator)


@dataclass(eq=False)
class IPFState(State):
    """Networks under training, the current paths and the generator.

    Attributes:
        size: the expected size of controls.
        chains: the time-discrete reference in either direction.
        bases: the known control to which the network of either direction is added, or ``None``.
        half_bridges: how either direction is learned.
        schedule: the direction that each half-step trains.
        learners: the network of either direction.
        helpers: additional networks of the half-bridges.
        generator: of paths and batches.
        kept: tensors that the half-bridge keeps of the current paths.
    """

    size: Derived[float]
    chains: Derived[dict[Direction, Chain]]
    bases: Derived[dict[Direction, Control | None]]
    half_bridges: Derived[dict[Direction, HalfBridge]]
    schedule: Derived[tuple[Direction, ...]]
    learners: dict[Direction, Learner]
    helpers: dict[str, Learner]
    generator: torch.Generator
    kept: dict[str, Tensor] = field(default_factory=dict)

    def on_top(self, direction: Direction, network: torch.nn.Module) -> Control:
        """The known control of a direction plus ``network``."""
        return on_top(self.bases[direction], network)


@dataclass(frozen=True, eq=False)
class _Probe:
    """Samples of the source, two simulated ends of the reference for each, and samples of the target."""

    starts: Tensor
    reached: tuple[Tensor, Tensor]
    wanted: Tensor

    @classmethod
    def of(cls, grid: TimeGrid, problem: BridgeProblem, seed: int) -> _Probe:
        reference = PathMeasure(problem.reference, None, problem.source, grid=grid)
        starts = reference.starts(_PROBE_ROWS, seed=seed)
        wanted = problem.target.sample(_PROBE_ROWS, generator_of(derive(seed, "target")))
        reached = (reference.transport(starts, seed=one) for one in (seed, derive(seed, "again")))
        return cls(starts, (next(reached), next(reached)), wanted)

    def typical_control(self, process: Process) -> float:
        """A size for controls: ``1/√T``, and the constant control that takes ends of the reference to the target."""
        horizon = process.horizon
        lacking = process.inverse_scale(0.5 * horizon).to(self.wanted)(self.wanted - self.reached[0]) / horizon
        return math.sqrt(1.0 / horizon + float(lacking.double().square().mean()))

    def spread(self) -> float:
        """The largest singular value of ``L_Bᵀ L_A``, ``A`` and ``B`` covariances of transported source and target.

        Both are in units of the noise of the reference, half the covariance of the difference of two ends from one
        start. ``A`` is the covariance of the regression of ends on starts. 0 if there are too few samples.
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
