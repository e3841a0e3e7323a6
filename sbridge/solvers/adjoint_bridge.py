"""The bridge to an unnormalised density, or between two: adjoint matching one way, corrector matching the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sbridge.controls import MLP, NetworkRecipe
from sbridge.couplings.simple import Pairs
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.laws import Density, Samples
from sbridge.laws.scaling import NoScaling, ScalingRecipe
from sbridge.measures import PathMeasure, Paths
from sbridge.objectives.adjoint import adjoint_targets, gradient, lean_adjoint
from sbridge.problems import BridgeProblem, not_plain, unknown_transition
from sbridge.problems.costs import Costs, checked, hides_gradient
from sbridge.processes import Direction
from sbridge.random import derive, generator as generator_of
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.solvers.control import Annealing, Replay
from sbridge.solvers.control.adjoint import keep_rows, regression_rows, row_loss
from sbridge.solvers.density_sampler import DensitySampler
from sbridge.solvers.half_bridges import warn_if_slow
from sbridge.solvers.learners import DIRECTIONS, control_learner
from sbridge.solvers.matching import Regression
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, Learner, Optimisation, State

_PROBE_ROWS, _FEW_ROWS = 512, 8
_ENDS = ("source", "end")
_HALF_STEP = 30  # updates that correspond to a half-step: 20 to 55 were measured, for Gaussians at two levels of noise
_SHIFT = 1e-2  # of a difference quotient, in mean standard deviations of the rows
_KEPT = 0.02
"""The smallest share of its start that a reference may keep if uncontrolled paths are to be simulated backward."""
_WHERE = "the ends of simulated paths"


@register
@dataclass(frozen=True)
class AdjointBridge(Solver["AdjointBridgeState"]):
    """The Schrödinger bridge to ``e^{−E}``, which cannot be sampled (Liu et al. 2025, arXiv:2506.22565).

    With ``φ, φ̂`` the potentials of the Schrödinger system, ``φ(T) φ̂(T) = e^{−E}`` up to a constant. Two regressions
    share the paths that the forward control simulates from the source::

        adjoint      u(t_k, X_k) ← −L_kᵀ Φ(T, t_{k+1})ᵀ (∇E + h)(X_T)/√Δ_k         h = ∇log φ̂(T, ·) = σ⁻ᵀ û(T, ·)
        corrector    û(t, X_t)   ← σᵀ ∇_x log R(X_t | X_0)                         at t = T and between the ends

    For a given ``h`` the first regression solves the control problem with terminal cost ``E + log φ̂(T)``. For given
    paths the second one finds the score of the reference given where they started. Each is a half-step of iterative
    proportional fitting. The corrector is the backward control at ``T``, so the second network gives ``h`` and, by
    pinned bridges between the ends of the paths, also the backward process. Its output is zero at first. The adjoint
    regression uses the states of the paths. States drawn from pinned bridges would admit other fixed points if the
    reference remembers its start.

    For a density at ``t = 0`` the directions are exchanged: ``û`` is regressed on ``−σᵀ Φ(t, 0)⁻ᵀ (∇E + h)(X_0)``, and
    ``h = ∇log φ(0, ·) = σ⁻ᵀ u(0, ·)``.

    If both ends are densities, ``sampler`` first learns to draw the source. The bridge is then fitted from its weighted
    draws, and its forward direction starts in them: ``Samples`` with weights, the effective sample size of which is
    reported as ``source effective sample size``. A resumed run makes the draws again.

    The reference must be linear, and densities must have a gradient. Gradients do not depend on the weights of modes
    that no path connects: choose a reference that reaches from one mode to the other, and increase the cost gradually
    by ``annealing``.

    Args:
        updates: number of updates of either network.
        replay: how many paths are simulated, and how often.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid of paths and solution; the control towards the density is optimal for its steps.
        annealing: increases the terminal cost ``E + log φ̂(T)`` gradually; ``None``: the full cost from the start.
        sampler: draws the source if both ends are densities.
    """

    updates: int = 4000
    replay: Replay = field(default_factory=lambda: Replay(paths=512))
    network: NetworkRecipe = field(default_factory=MLP)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=5e-3, batch=512, ema_decay=0.99, clip=10.0)
    )
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(50))
    annealing: Annealing | None = None
    sampler: DensitySampler = field(default_factory=DensitySampler)

    scaling: ClassVar[ScalingRecipe] = NoScaling()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1:
            raise InvalidInputError(f"updates must be positive, got {self.updates}.")

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Explains which requirement the problem does not meet."""
        densities = sum(isinstance(end, Density) for end in (problem.source, problem.target))
        if densities == 0:
            return (
                "AdjointBridge is for an end of which only the density is known, and both of these can be sampled: use "
                "IMF(), or GaussianBridge() for Gaussian distributions."
            )
        towards = "forward" if outward(problem) is Direction.FORWARD else "backward"
        instead = f"IPF({towards}=AdjointHalfBridge())"
        unknown = not_plain("AdjointBridge", problem)
        unknown = unknown or unknown_transition("AdjointBridge", problem.reference, instead)
        if unknown is not None:
            return unknown
        return _spreading_back(problem) or _without_gradient(problem, self.sampler.like)

    def max_steps(self, problem: BridgeProblem) -> int:
        """The number of updates."""
        return self.updates

    def init(self, problem: BridgeProblem, seed: int) -> AdjointBridgeState:
        """Networks with zero output, sized by the first targets and by the reference.

        Raises:
            NonFiniteError: if the log density or its gradient is NaN or infinite where the reference ends.
        """
        problem = self.with_draws(problem, seed)
        out = outward(problem)
        paths = self.measure(problem, out, None).sample(_PROBE_ROWS, seed=derive(seed, "probe"))
        targets = adjoint_targets(paths.chain, lean_adjoint(paths, Costs(), energy_gradient(problem, paths.x[-1])))
        updates = max(self.updates, AdjointBridge.updates)  # a shorter run is not meant to converge
        warn_if_slow(
            "AdjointBridge",
            _spread(problem, paths),
            updates / _HALF_STEP,
            f"{updates} updates",
            lambda count: f"updates={_HALF_STEP * math.ceil(count)} or more",
            "sample the density by other means for MixtureBridge() or IMF(), which do not slow down in this way",
        )
        size = float(targets.double().square().mean((1, 2)).median().sqrt())
        usual = Regression.of(problem, _pairs(paths)).typical_size
        sizes = {out: size or usual, out.opposite: usual}
        options, updates = (self.network, self.optimisation), self.updates
        learners = {
            way: control_learner(problem, way, *options, updates=updates, size=sizes[way], seed=seed)
            for way in DIRECTIONS
        }
        return AdjointBridgeState(seed, learners, generator_of(derive(seed, "training")), problem)

    def with_draws(self, problem: BridgeProblem, seed: int) -> BridgeProblem:
        """The problem itself, or with weighted draws in place of the source if both ends are densities."""
        source = problem.source
        if not (isinstance(source, Density) and isinstance(problem.target, Density)):
            return problem
        draws = self.sampler.sample(source, _reach(problem), derive(seed, "source"))
        return BridgeProblem(draws, problem.target, problem.reference)

    def step(self, problem: BridgeProblem, state: AdjointBridgeState) -> tuple[AdjointBridgeState, Info]:
        """One update of either network; simulates new paths if they are due."""
        if state.step % self.replay.updates == 0:
            self.refresh(state.problem, state)
        out, batch = outward(problem), self.optimisation.batch
        towards, back = state.learners[out], state.learners[out.opposite]
        adjoint = towards.update(row_loss(towards.module, state.memory, batch, state.generator))
        corrector = back.update(self.corrector_loss(state.problem, state))
        state.step += 1
        info: dict[str, float | Tensor] = {"adjoint loss": adjoint, "corrector loss": corrector}
        if isinstance(problem.source, Density) and isinstance(state.problem.source, Samples):
            info["source effective sample size"] = state.problem.source.effective_size
        return state, info

    def finish(self, problem: BridgeProblem, state: AdjointBridgeState) -> Bridge:
        """The averaged networks; copies, so that the state can be trained on."""
        problem = state.problem
        forward, backward = (self.measure(problem, way, state.learners[way].solution()) for way in DIRECTIONS)
        return Bridge(forward, backward)

    def measure(self, problem: BridgeProblem, direction: Direction, network: nn.Module | None) -> PathMeasure:
        """The process that ``network`` controls."""
        return PathMeasure(problem.reference, network, problem.near(direction), direction, self.grid)

    def refresh(self, problem: BridgeProblem, state: AdjointBridgeState) -> None:
        """Simulates paths with the averaged control towards the density, and stores the rows of both regressions."""
        out = outward(problem)
        measure = self.measure(problem, out, state.learners[out].averaged)
        paths = measure.sample(self.replay.paths, seed=state.generator)
        end = paths.x[-1]
        slope = energy_gradient(problem, end) + corrector(problem, state.learners[out.opposite].averaged, end)
        if self.annealing is not None:
            slope = self.annealing.factor(state.step / self.updates) * slope
        targets = adjoint_targets(paths.chain, lean_adjoint(paths, Costs(), slope))
        keep_rows(state.memory, regression_rows(paths.chain, paths.x[:-1], targets), self.replay.kept)
        keep_rows(state.memory, dict(zip(_ENDS, _pairs(paths), strict=True)), self.replay.kept)

    def corrector_loss(self, problem: BridgeProblem, state: AdjointBridgeState) -> Tensor:
        """Loss of the control from the density: the mean of two errors, at its start and on pinned bridges."""
        direction, batch = outward(problem).opposite, self.optimisation.batch
        module, pairs = state.learners[direction].module, state.pairs
        between = Regression.of(problem, pairs).loss(module, pairs, direction, batch, state.generator)
        index = torch.randint(len(pairs[0]), (batch,), generator=state.generator)
        x0, xT = (side[index.to(side.device)] for side in pairs)
        t, x = _start(problem, direction), x0 if direction is Direction.FORWARD else xT
        target = problem.reference.scale(t).T.to(x)(transition_gradient(problem, x0, xT))
        error = (module(t, x) - target).square().mean()
        return 0.5 * (between + error / target.square().mean())


@dataclass(eq=False)
class AdjointBridgeState(State):
    """Networks under training, the generator, and the rows that both regressions draw from.

    Attributes:
        learners: the network of either direction.
        generator: of paths and batches.
        problem: what is solved: the problem of the run, with draws of the source if both ends are densities.
        memory: rows of the adjoint regression, and both ends of the paths.
    """

    learners: dict[Direction, Learner]
    generator: torch.Generator
    problem: Derived[BridgeProblem]
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pairs(self) -> Pairs:
        """``(X_0, X_T)`` of the stored paths."""
        source, end = (self.memory[name] for name in _ENDS)
        return source, end


def outward(problem: BridgeProblem) -> Direction:
    """The direction that runs from the end that can be sampled to the density."""
    return Direction.FORWARD if isinstance(problem.target, Density) else Direction.BACKWARD


def energy_gradient(problem: BridgeProblem, x: Tensor) -> Tensor:
    """``∇E(x)`` for the end with log density ``−E``, shape ``(batch, dim)``.

    Raises:
        InvalidInputError: if the log density is not one number per row.
        NonFiniteError: if it, or its gradient, is NaN or infinite.
    """
    density = _density(problem)

    def energy(y: Tensor) -> Tensor:
        return -checked(density.log_density(y), y, "log density", _WHERE)

    found = gradient(x, energy)
    bad = int((~torch.isfinite(found)).any(1).sum())
    if bad:
        raise NonFiniteError(
            f"the log density is finite at {_WHERE} but its gradient is not, in {bad} of {len(x)} rows, as for "
            "the square root of zero. Write it so that torch can differentiate it there."
        )
    return found


def corrector(problem: BridgeProblem, network: nn.Module, x: Tensor) -> Tensor:
    """``h = σ⁻ᵀ û`` at the density's end, ``û`` the control that leaves it."""
    t = _start(problem, outward(problem).opposite)
    with torch.no_grad():
        return problem.reference.inverse_scale(t).T.to(x)(network(t, x))


def transition_gradient(problem: BridgeProblem, x0: Tensor, xT: Tensor) -> Tensor:
    """``∇log R(X_T | X_0)`` with respect to the state at the density's end, shape ``(batch, dim)``."""
    reference = problem.linear_reference
    if outward(problem) is Direction.FORWARD:
        return reference.conditional_score(reference.horizon, xT, x0)
    return reference.guiding_term(0.0, x0, xT)


def _spreading_back(problem: BridgeProblem) -> str | None:
    reference = problem.linear_reference
    whole = reference.transition(0.0, reference.horizon).map.expanded(problem.dim)
    kept = float(torch.linalg.svdvals(whole).min())
    if outward(problem) is Direction.FORWARD or kept > _KEPT:
        return None
    return (
        f"AdjointBridge simulates the reference back to a density at t = 0, and {type(reference).__name__} keeps only "
        f"{kept:.2g} of its start: uncontrolled backward paths spread by the inverse of that. Use a reference that "
        "reverts less (a smaller rate or β, a shorter horizon), or put the density at the target."
    )


def _without_gradient(problem: BridgeProblem, like: Tensor) -> str | None:
    ends = problem.source, problem.target
    sampled = next((end for end in ends if not isinstance(end, Density)), None)
    with torch.no_grad():
        if sampled is None:
            x = _reach(problem) * torch.randn(_FEW_ROWS, problem.dim, generator=generator_of(0)).to(like)
        else:
            x = sampled.sample(_FEW_ROWS, generator_of(0))
    if not any(isinstance(end, Density) and hides_gradient(end.log_density, x) for end in ends):
        return None
    return (
        "AdjointBridge follows the gradient of the log density, which depends on x here but has none (is it computed "
        "outside torch, detached, or a step function?). Write it in differentiable torch functions, or draw samples of "
        "it and use IMF()."
    )


def _reach(problem: BridgeProblem) -> float:
    """The standard deviation of the noise of the reference, ``σ√T`` for Brownian motion."""
    reference = problem.linear_reference
    return float(reference.transition(0.0, reference.horizon).root.mean_square(problem.dim)) ** 0.5


def _spread(problem: BridgeProblem, paths: Paths) -> float:
    """The ``n`` of :func:`warn_if_slow`; for the density, a Gaussian of its mean curvature along ``paths``."""
    reference = problem.linear_reference
    whole = reference.transition(0.0, reference.horizon)
    start, end = (x.double() for x in (paths.x[0], paths.x[-1]))
    step = _SHIFT * float(end.var(0).mean().sqrt()) * torch.randn(end.shape, generator=generator_of(0)).to(end).sign()
    slopes = [energy_gradient(problem, (end + sign * step).to(paths.x)).double() for sign in (1, -1)]
    curvature = float(((slopes[0] - slopes[1]) / (2.0 * step)).mean())
    if curvature <= 0.0:
        return 0.0
    wide = float(torch.linalg.matrix_norm(start - start.mean(0), 2)) ** 2 / len(start)
    kept, noise = (float(part.mean_square(problem.dim)) for part in (whole.map, whole.root))
    return math.sqrt(wide / curvature * kept) / noise


def _density(problem: BridgeProblem) -> Density:
    for end in (problem.target, problem.source):
        if isinstance(end, Density):
            return end
    raise UnsupportedError("AdjointBridge needs an end that is a Density; use IMF() for ends that can be sampled.")


def _pairs(paths: Paths) -> Pairs:
    first, last = paths.x[0], paths.x[-1]
    return (first, last) if paths.chain.direction is Direction.FORWARD else (last, first)


def _start(problem: BridgeProblem, direction: Direction) -> float:
    """The time at which ``direction`` begins."""
    return 0.0 if direction is Direction.FORWARD else problem.reference.horizon
