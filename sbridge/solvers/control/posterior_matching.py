"""Sampling by posterior matching: mean and variance of the end given the state, from weighted ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.measures import ControlledKernel, MatchedKernel
from sbridge.objectives.adjoint import terminal_gradient
from sbridge.objectives.control import kernel_ends
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import LinearProcess
from sbridge.random import as_seed, derive, generator as generator_of, seeded
from sbridge.solvers.control.adjoint import Replay, keep_rows
from sbridge.solvers.control.base import ControlState
from sbridge.solvers.control.posterior import Posterior, PosteriorControl, PosteriorNetwork, dense_coefficients
from sbridge.solvers.control.reciprocal import ReciprocalAdjointMatching, ReciprocalState
from sbridge.solvers.control.stability import check_steps
from sbridge.solvers.control.starts import WarmStart, ZeroStart
from sbridge.solvers.control.trust_region import TrustRegion, record_power, without_start
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, Learner, Optimisation

_FACTORS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 1e6)
_VARIANCE_LOSS = 0.5  # weight of the loss of the variance beside that of the mean


@register
@dataclass(frozen=True)
class PosteriorMatching(ReciprocalAdjointMatching):
    """Learns a sampler by posterior means and variances of the end ``X_T`` given the state ``X_t``.

    Weighted ends and states on pinned bridges are those of :class:`ReciprocalAdjointMatching`. Three things differ.
    The control is a :class:`~sbridge.solvers.control.posterior.PosteriorControl`, whose inputs are gradient and second
    derivatives of the cost. Targets of the mean mix lean adjoint and bridge score with a variance for each row and
    coordinate, ``v = 1/max(h, 1/v_0)``, ``h`` the diagonal of ``∇²g(m)``::

        (X_T − m − v ∇g(X_T))/(v + Q)      for (E[X_T | X_t] − m)/Q,      m = ΦX_t + k

    with weights ``Q``: up to constants the loss is the KL divergence of the steps, if the knots are equidistant in the
    log signal-to-noise ratio. And a variance ``V Q`` of the end is learned by maximum likelihood of the residuals
    ``X_T − E[X_T | X_t]``. With :class:`~sbridge.measures.MatchedKernel` the chain then steps with mean and variance of
    the optimal step; training weighs its paths with these steps.

    The process must be linear with a scalar or diagonal rate and σ, and the terminal cost twice differentiable. Take a
    process that forgets its start, or starts at a point, with an end that is as wide as the density, and
    ``grid=log_snr_grid(process, steps, resolution)``.

    Args:
        network: recipe of the network.
        start: only ``ZeroStart()``.
    """

    updates: int = 1000
    network: PosteriorNetwork = field(default_factory=PosteriorNetwork)  # type: ignore[assignment]
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=5e-3, batch=1024, ema_decay=0.99, warm_up=50)
    )
    start: WarmStart = field(default_factory=ZeroStart)
    replay: Replay = field(default_factory=lambda: Replay(paths=1024, updates=50, kept=3))
    trust_region: TrustRegion = field(default_factory=lambda: TrustRegion(max_kl=0.5))
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.refined(60, 3.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.start, ZeroStart):
            raise InvalidInputError(
                "PosteriorMatching learns from no control: leave start=ZeroStart(), or use ReciprocalAdjointMatching."
            )

    def refusal(self, problem: ControlProblem) -> str | None:
        """Explains which requirement the problem does not meet."""
        found = super().refusal(problem)
        if found is not None:
            return found
        process = problem.process
        return dense_coefficients(process) if isinstance(process, LinearProcess) else None

    def init(self, problem: ControlProblem, seed: int) -> ControlState:
        """A network without output: the uncontrolled process, with its variance."""
        check_steps(problem, self.grid, self.step_rule(problem))
        state = self.begun(problem, seed, None, generator_of(derive(seed, "training")))
        control = seeded(lambda: PosteriorControl(problem, self.grid, self.network), derive(seed, "weights"))
        state.learner = Learner(control.to(problem.probe), self.optimisation, self.updates)
        return state

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error of the mean in units of the noise ahead, and the negative log likelihood of residuals."""
        kept = state.memory
        if state.step % self.replay.updates == 0:
            self.simulate_ends(problem, costs, state, state.network(averaged=True))
        found, ends, gradients = self.posterior_rows(state)
        targets = _targets(found, ends, gradients, kept["precision"].to(ends))
        mean = (found.spread * (found.slope - targets).square()).mean()
        squares = (ends - found.middle - found.spread * found.slope.detach()).square() / found.spread
        logs = found.log_variance
        variance = 0.5 * (logs + squares * torch.exp(-logs.clamp_min(-10.0))).mean()
        info = {name: kept[name] for name in ("objective", "power")}
        return mean + _VARIANCE_LOSS * variance, {**info, "mean": mean.detach()}

    def simulate_ends(
        self, problem: ControlProblem, costs: Costs, state: ControlState, control: Control | None
    ) -> None:
        """Ends of new paths, stepped with matched variances, with gradients of the cost and tempered weights there."""
        measure, seed, kept = self.measure(problem, control), as_seed(state.generator), state.memory
        kernel = ControlledKernel() if control is None else MatchedKernel()
        starts = measure.starts(self.replay.paths, seed=seed)
        ends, logs = kernel_ends(measure, costs, starts, kernel, seed=seed)
        weights, power = self.trust_region.weights(without_start(logs, starts, problem.start))
        gradients = terminal_gradient(ends, costs)
        keep_rows(kept, {"start": starts, "end": ends, "gradient": gradients, "w": weights}, self.replay.kept)
        record_power(kept, power)
        kept["objective"] = -logs.mean()
        kept["precision"] = self.best_precision(state)

    @torch.no_grad()
    def best_precision(self, state: ControlState) -> Tensor:
        """The ``1/v_0`` with the smallest targets on a batch of rows: they have the least noise."""
        kept = state.memory
        squares = kept["gradient"].double().square().mean(1)
        usual = (kept["w"] * squares).sum() / kept["w"].sum()
        found, ends, gradients = self.posterior_rows(state)
        candidates = [(usual / factor).clamp(1e-12, 1e12) for factor in _FACTORS]

        def size(precision: Tensor) -> float:
            targets = _targets(found, ends, gradients, precision.to(ends))
            return float((found.spread * targets.square()).double().mean())

        return min(candidates, key=size)

    def posterior_rows(self, state: ControlState) -> tuple[Posterior, Tensor, Tensor]:
        """What the network says at a batch of states on pinned bridges, with their ends and the gradients there."""
        if not isinstance(state, ReciprocalState):
            raise InvalidInputError(f"a ReciprocalState is needed, got a {type(state).__name__}.")
        control = state.network(averaged=False)
        if not isinstance(control, PosteriorControl):
            raise InvalidInputError(f"a PosteriorControl is trained here, found {type(control).__name__}.")
        k, x, index = self.states(state)
        return control.posterior(state.table.t[k], x), state.memory["end"][index], state.memory["gradient"][index]


def _targets(found: Posterior, ends: Tensor, gradients: Tensor, precision: Tensor) -> Tensor:
    """``(X_T − m − v∇g(X_T))/(v + Q)`` with ``v = 1/max(h, 1/v_0)``, shape ``(batch, dim)``."""
    variance = 1.0 / torch.maximum(found.curvature, precision)
    return (ends - found.middle - variance * gradients) / (variance + found.spread)
