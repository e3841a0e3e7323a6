"""Half-bridges of iterative proportional fitting: how the control of one direction is learned from the other."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sbridge.controls import Control, Divergence, ExactTrace, on_top
from sbridge.errors import ConvergenceWarning, UnsupportedError
from sbridge.laws import Density, HasDensity, Law
from sbridge.measures import PathMeasure, Paths
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint
from sbridge.objectives.half_bridge import StepTimes, Transitions, likelihood, mean_matching, terminal_adjoint
from sbridge.objectives.score_matching import divergence
from sbridge.problems import BridgeProblem, unknown_transition
from sbridge.problems.costs import Costs
from sbridge.processes import Chain, Direction, LinearProcess, Process
from sbridge.processes.base import Time
from sbridge.random import generator as generator_of
from sbridge.solvers.learners import sampled_end
from sbridge.solvers.matching import Regression
from sbridge.storage.registry import register
from sbridge.training import Learner, shared

_PROBE_ROWS = 8
_LEFT = 0.1  # a larger remaining share of the error along the widest direction gives a warning
_BEARABLE = 100.0  # the warning suggests at most this many times as many half-steps


@register
@dataclass(frozen=True, eq=False)
class ReversalControl:
    """``û = 2 σ⁻¹ b``: the backward process then has the drift ``−b + σû = b`` of the reference itself.

    A reference in equilibrium is its own reversal. The network is added to this control, so that backward paths stay
    where forward paths are. With the drift ``−b``, a drift ``b`` that pulls inwards and grows faster than any network
    would drive them to infinity.
    """

    process: Process

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at time ``t`` and states ``x``."""
        return 2.0 * self.process.inverse_scale(t).to(x)(self.process.drift(t, x))


@dataclass(frozen=True, eq=False)
class HalfStepContext:
    """The data of a half-step that a half-bridge uses.

    Attributes:
        problem: in the units of the training.
        trained: the direction whose control is learned.
        network: the network under training.
        base: the known control to which the network is added, or ``None``.
        other: the complete control of the other direction, which is fixed.
        chain: of the paths that were simulated.
        size: the expected size of controls.
        progress: the completed share of the run, in ``[0, 1]``.
        helpers: additional networks of the half-bridge, see :meth:`HalfBridge.helpers`.
        kept: tensors computed from simulated paths, see :meth:`HalfBridge.collect`.
    """

    problem: BridgeProblem
    trained: Direction
    network: nn.Module
    base: Control | None
    other: Control
    chain: Chain
    size: float
    progress: float
    helpers: dict[str, Learner]
    kept: dict[str, Tensor]

    @property
    def control(self) -> Control:
        """The control under training."""
        return shared(on_top(self.base, self.network))


class HalfBridge(ABC):
    """How the control of one direction is learned from that of the other.

    Attributes:
        paths: the default number of paths per simulation.
        refresh: the default number of updates between two simulations.
        independent: whether the control is learned without that of the other direction.
        keeps_cost: whether a state cost that is a function becomes part of the control, or stays in it.
    """

    paths: ClassVar[int] = 512
    refresh: ClassVar[int] = 50
    independent: ClassVar[bool] = False
    keeps_cost: ClassVar[bool] = False

    @abstractmethod
    def simulated(self, trained: Direction) -> Direction:
        """The direction of the paths from which the control of ``trained`` is learned."""

    @abstractmethod
    def refusal(self, problem: BridgeProblem, trained: Direction) -> str | None:
        """Explains why ``trained`` cannot be learned in this way, and what to use instead; ``None`` if it can."""

    def helpers(self, problem: BridgeProblem, trained: Direction, simulations: int, seed: int) -> dict[str, Learner]:
        """Additional networks, given the number of simulations in the run; none by default."""
        return {}

    @abstractmethod
    def collect(
        self, measure: PathMeasure, count: int, learning: HalfStepContext, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Simulates ``count`` paths of ``measure`` and returns the tensors to keep."""

    @abstractmethod
    def loss(self, learning: HalfStepContext, batch: int, generator: torch.Generator) -> Tensor:
        """The loss of a batch, in units of the expected size of controls."""


@register
@dataclass(frozen=True)
class PinnedPaths(HalfBridge):
    """Regression on pinned paths of the reference between simulated ends, for linear references.

    Pairs ``(X_0, X_T)`` are simulated with the control of the other direction. States between them are drawn from the
    reference given both ends, and the control is regressed on ``σᵀ∇_x log R(X_T | X_t)`` (backward:
    ``σᵀ∇_x log R(X_t | X_0)``), as in :class:`~sbridge.solvers.IMF` (Shi et al. 2023, arXiv:2303.16852; started from
    the coupling of the reference, it is their Alg. 1 with the start of IPF). In every half-step the conditional
    distribution of the path given both ends is that of the reference. An error in this distribution, such as a rotation
    in a control, therefore does not enter the next half-step.
    """

    paths: ClassVar[int] = 4096
    refresh: ClassVar[int] = 200

    def simulated(self, trained: Direction) -> Direction:
        """The other direction."""
        return trained.opposite

    def refusal(self, problem: BridgeProblem, trained: Direction) -> str | None:
        """The reference needs closed-form transitions; the other direction needs a start that can be sampled."""
        unknown = unknown_transition("PinnedPaths", problem.reference, f"IPF({trained.name.lower()}=MeanMatching())")
        return unknown or _unsampled(self, problem, trained)

    def collect(
        self, measure: PathMeasure, count: int, learning: HalfStepContext, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Pairs, and the two sizes of :class:`~sbridge.solvers.matching.Regression`."""
        with torch.no_grad():
            near = measure.start.sample(count, generator)
        far = measure.transport(near, seed=generator)
        x0, xT = (near, far) if measure.direction is Direction.FORWARD else (far, near)
        regression = Regression.of(learning.problem, (x0, xT))
        sizes = torch.tensor([regression.residual_square, regression.typical_size], dtype=torch.float64)
        return {"x0": x0, "xT": xT, "sizes": sizes}

    def loss(self, learning: HalfStepContext, batch: int, generator: torch.Generator) -> Tensor:
        """The weighted mean square error of :class:`~sbridge.solvers.matching.Regression`."""
        kept, problem = learning.kept, learning.problem
        regression = Regression(problem.linear_reference, problem.dim, *kept["sizes"].tolist())
        return regression.loss(learning.control, (kept["x0"], kept["xT"]), learning.trained, batch, generator)


class PathHalfBridge(HalfBridge):
    """Base of half-bridges whose loss is a sum over the steps of simulated paths."""

    @abstractmethod
    def keep(self, paths: Paths, learning: HalfStepContext, generator: torch.Generator) -> dict[str, Tensor]:
        """Computes the tensors to keep from simulated paths; the first has shape ``(N, paths, …)``."""

    @abstractmethod
    def step_loss(self, learning: HalfStepContext, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The loss per unit of time of step ``steps[i]`` of path ``rows[i]``, shape ``(batch,)``."""

    def collect(
        self, measure: PathMeasure, count: int, learning: HalfStepContext, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Simulates paths and returns the result of :meth:`keep`."""
        with torch.no_grad():
            starts = measure.start.sample(count, generator)
        return self.keep(measure.simulate(starts, seed=generator), learning, generator)

    def loss(self, learning: HalfStepContext, batch: int, generator: torch.Generator) -> Tensor:
        """Estimates from a batch the sum over the steps of loss times duration, up to a constant.

        The sum, in nats, is divided by ``size² T``. Otherwise the clipping of gradients would depend on σ.
        """
        length, paths = learning.chain.length, next(iter(learning.kept.values())).shape[1]
        # Every step is used equally often and weighted by its duration.
        shifts = torch.rand(batch, generator=generator, dtype=torch.float64)
        steps = ((torch.arange(batch) + shifts) * (length / batch)).long().clamp_max(length - 1)
        rows = self.rows(learning, paths, batch, generator)
        values = self.step_loss(learning, steps, rows, generator)
        spans = learning.chain.visited.diff().abs()[steps].to(values)
        return length * (spans * values).mean() / (learning.size**2 * learning.problem.reference.horizon)

    def rows(self, learning: HalfStepContext, paths: int, batch: int, generator: torch.Generator) -> Tensor:
        """Draws indices of paths uniformly, shape ``(batch,)``."""
        return torch.randint(paths, (batch,), generator=generator)


@dataclass(frozen=True)
class _Reversal(PathHalfBridge):
    """Half-bridges that reverse paths of the other direction."""

    keeps_cost: ClassVar[bool] = True

    def simulated(self, trained: Direction) -> Direction:
        return trained.opposite

    def refusal(self, problem: BridgeProblem, trained: Direction) -> str | None:
        return _unsampled(self, problem, trained)

    def keep(self, paths: Paths, learning: HalfStepContext, generator: torch.Generator) -> dict[str, Tensor]:
        return dict(vars(Transitions.of(paths, learning.base)))

    @staticmethod
    def taken(learning: HalfStepContext, steps: Tensor, rows: Tensor) -> tuple[Transitions, StepTimes]:
        return Transitions(**learning.kept).rows(steps, rows), StepTimes.of(learning.chain, steps)


@register
@dataclass(frozen=True)
class MeanMatching(_Reversal):
    """Regression on the steps of the other direction (De Bortoli et al. 2021, arXiv:2106.01357, Prop. 3).

    ``û(t_{k+1}, x_{k+1})`` is regressed on the shift that takes ``x_{k+1}`` back to ``x_k``: for exact steps
    ``−ξ_k/√Δ_k − u(t_k, x_k)``. The conditional mean gives the backward chain nearest to the simulated one. Every step
    is used with ``ξ`` and with ``−ξ``, which cancels the noise of the target that grows as the steps shrink. The drift
    may be any function, since its derivative is not needed.
    """

    def step_loss(self, learning: HalfStepContext, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """``½|û + h|² + û·ξ/√Δ``, mirrored."""
        return mean_matching(*self.taken(learning, steps, rows), learning.network)


@register
@dataclass(frozen=True)
class MaximumLikelihood(_Reversal):
    """Likelihood of simulated paths, in the divergence form (Vargas et al. 2021; Chen, Liu & Theodorou 2022).

    For a step to ``x`` whose other direction has the control ``h``, the loss is ``½|û + h|² + ∇·(L û)/√Δ`` at ``x``,
    with ``L`` the root of the step noise. It is the mean of the loss of :class:`MeanMatching` over that noise, so the
    minimiser is the same. It requires a derivative of the network.

    Args:
        divergence: :class:`~sbridge.controls.ExactTrace`, a derivative for each coordinate, or
            :class:`~sbridge.controls.Hutchinson` with random probes.
    """

    divergence: Divergence = field(default_factory=ExactTrace)

    def step_loss(self, learning: HalfStepContext, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """``½|û + h|² + ∇·(L û)/√Δ``."""
        taken, when = self.taken(learning, steps, rows)
        return likelihood(taken, when, learning.network, self.divergence.probes(taken.x, generator))


class AdjointRegression(PathHalfBridge):
    """Half-bridges that learn from adjoints along paths of the direction that is trained."""

    def simulated(self, trained: Direction) -> Direction:
        """The direction that is trained."""
        return trained

    def opaque_drift(self, problem: BridgeProblem, name: str) -> str | None:
        """Why the adjoint cannot be computed, or ``None``; ``name`` is the option of IPF."""
        if isinstance(problem.reference, LinearProcess) or differentiable(problem):
            return None
        return (
            f"{type(self).__name__} differentiates the drift of the reference, and torch cannot: write the drift in "
            f"torch functions of x, or use IPF({name}=MeanMatching()), which takes no derivative of it."
        )

    @staticmethod
    def targets(paths: Paths, adjoint: Tensor, base: Control | None) -> Tensor:
        """``−L_kᵀ a_{k+1}/√Δ_k`` less ``base``, which is what the network learns, shape ``(N, paths, dim)``."""
        targets = adjoint_targets(paths.chain, adjoint)
        if base is None:
            return targets
        with torch.no_grad():
            return targets - torch.stack([base(t, paths.x[k]) for k, t in enumerate(paths.chain.step_times)])

    def step_loss(self, learning: HalfStepContext, steps: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """``½|u + Lᵀa/√Δ|²``."""
        x, target = learning.kept["x"], learning.kept["target"]
        here, paths = steps.to(x.device), rows.to(x.device)
        times = learning.chain.visited[steps].to(x.device)
        return 0.5 * (learning.network(times, x[here, paths]) - target[here, paths]).square().sum(1)


@register
@dataclass(frozen=True)
class AdjointHalfBridge(AdjointRegression):
    """Minimises ``KL(P^u ‖ P^û)`` over ``u``, a control problem, by adjoint matching (arXiv:2409.08861).

    The reference is the uncontrolled process. With ``p`` the distribution at the end, the terminal cost is
    ``−log p + log φ̂``; the running cost is ``∇·b`` backward in time and zero forward. The paths are those of the
    direction that is trained. Of ``p`` only the log density is needed, up to a constant; it is not sampled.
    """

    def refusal(self, problem: BridgeProblem, trained: Direction) -> str | None:
        """The start must be sampled, the end must have a density, and the drift must be differentiable."""
        name, far = trained.name.lower(), problem.far(trained)
        if isinstance(problem.near(trained), Density):
            return (
                f"AdjointHalfBridge learns the {name} control on paths of that direction, whose start cannot be "
                f"sampled: use IPF({name}=MeanMatching())."
            )
        if not isinstance(far, HasDensity):
            return (
                f"AdjointHalfBridge needs the log density of the {end_name(trained)}, which {type(far).__name__} "
                f"does not have: use IPF({name}=MeanMatching()) or IPF({name}=MaximumLikelihood())."
            )
        return self.opaque_drift(problem, name)

    def keep(self, paths: Paths, learning: HalfStepContext, generator: torch.Generator) -> dict[str, Tensor]:
        """The visited states and the regression targets there."""
        chain, process = paths.chain, learning.problem.reference
        log_density = _density(learning.problem.far(learning.trained)).log_density
        end = terminal_adjoint(chain, paths.x[-1], log_density, learning.other)
        curved = learning.trained is Direction.BACKWARD and not isinstance(process, LinearProcess)
        adjoint = lean_adjoint(paths, Costs(_Expansion(process) if curved else None), end, learning.base)
        return {"x": paths.x[:-1], "target": self.targets(paths, adjoint, learning.base)}


@dataclass(frozen=True, eq=False)
class _Expansion:
    """``∇·b``, the running cost of the reference backward in time."""

    process: Process

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        return divergence(lambda y: self.process.drift(t, y), x)[1]


def _unsampled(half_bridge: HalfBridge, problem: BridgeProblem, trained: Direction) -> str | None:
    """Explains why paths of the other direction cannot be simulated; ``None`` if they can."""
    if not isinstance(problem.far(trained), Density):
        return None
    name, known = trained.name.lower(), type(half_bridge).__name__
    return (
        f"{known} learns the {name} control from paths that start at the {end_name(trained)}, an unnormalised density "
        f"that cannot be sampled: use IPF({name}=AdjointHalfBridge()), or draw samples first."
    )


def end_name(direction: Direction) -> str:
    """The name of the end at which a direction stops."""
    return "target" if direction is Direction.FORWARD else "source"


def warn_if_slow(
    name: str, spread: float, half_steps: float, worth: str, enough: Callable[[float], str], otherwise: str
) -> None:
    """Warns if alternating half-steps converge slowly, because the noise of the reference is small for the ends.

    Between Gaussians a half-step multiplies the error in a direction by the correlation of the ends of the bridge in
    that direction, ``ρ = 2n / (1 + √(1 + 4n²)) = exp(−asinh(1/2n))`` (Janati et al. 2020, arXiv:2006.02572).

    Args:
        name: of the solver.
        spread: the largest ``n``: root mean product of the variances of the ends, in units of the reference's noise.
        half_steps: number of half-steps of the solver, or the number that its updates correspond to.
        worth: description of that number.
        enough: returns the option that sets a larger number.
        otherwise: another remedy.
    """
    if spread <= 0.0:
        return
    fall, enough_falls = math.asinh(0.5 / spread), -math.log(_LEFT)
    if half_steps * fall >= enough_falls:
        return
    wanted = enough_falls / fall
    more = f"{enough(wanted)}, or " if wanted <= _BEARABLE * half_steps else ""
    factor = 1.01 * math.sqrt(2.0 * spread * math.sinh(enough_falls / half_steps))
    warnings.warn(
        f"the noise of the reference is small for {name}: for Gaussian ends, {worth} leave "
        f"{math.exp(-half_steps * fall):.0%} of the error along the widest direction. To reduce it to {_LEFT:.0%}, use "
        f"{more}σ {factor:.3g} times as large; or {otherwise}.",
        ConvergenceWarning,
        stacklevel=2,
    )


def _density(law: Law) -> HasDensity:
    if not isinstance(law, HasDensity):
        raise UnsupportedError(f"a distribution with a log density is needed, got {type(law).__name__}.")
    return law


def differentiable(problem: BridgeProblem) -> bool:
    """Whether torch can differentiate the drift, or the drift does not depend on the state."""
    x = sampled_end(problem).sample(_PROBE_ROWS, generator_of(0))
    with torch.enable_grad():
        value = problem.reference.drift(0.0, x.detach().requires_grad_())
    return value.requires_grad or bool((value == value[:1]).all())
