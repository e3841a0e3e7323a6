"""Adjoint matching: the control is regressed on adjoint states of paths that it made itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls import Control, FourierMLP, NetworkRecipe
from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.measures import Paths
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint, mixed_targets
from sbridge.objectives.control import control_objective, log_weight
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import Chain
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.solvers.control.starts import GaussianStart, WarmStart
from sbridge.solvers.control.trust_region import TrustRegion, check_one_pace, record_power, without_start
from sbridge.storage.registry import check_kinds, register
from sbridge.training import Info, Optimisation

_FLOOR = 1e-6
_LEAST_PATHS = 1024  # weights of fewer paths move modes
_DIVERGED = 100.0  # in units of the first paths' spread or mean, or one nat, whichever is largest


@register
@dataclass(frozen=True)
class Replay:
    """Paths are used for several updates.

    Args:
        paths: simulated at a time.
        updates: between two simulations.
        kept: simulations that are kept; the oldest is replaced.
    """

    paths: int = 256
    updates: int = 10
    kept: int = 1

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("paths", "updates", "kept"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")


@register
@dataclass(frozen=True)
class AdjointMatching(ControlSolver):
    """Adjoint matching: the control is regressed on adjoint states of paths that it made.

    Paths of the current control are simulated, and the adjoint state is found by one vector–Jacobian product of the
    uncontrolled step a step. The paths get importance weights ``α^b`` within a trust region (Blessing et al. 2025,
    arXiv:2508.12511), which keeps modes, and targets mix adjoint state and noise so that most of either cancels:
    :func:`sbridge.objectives.mixed_targets`.

    Without a trust region, paths have equal weights, and targets are the lean adjoint ``−L_kᵀ a_{k+1}/√Δ_k``
    (Domingo-Enrich et al. 2024, arXiv:2409.08861). Where the uncontrolled process spreads, or costs are steep, lean
    adjoint states are far larger than the control, and learning may run away.

    Either way the optimal control of the chain is a fixed point. Costs and drift must be differentiable.

    Args:
        optimisation: ``batch`` is the number of rows ``(t_k, x_k)`` that an update uses.
        start: a known control below the network; ``GaussianStart()`` is none unless the terminal cost names its end.
        replay: how many paths are simulated and how often; rows of ``kept`` simulations are used together.
        trust_region: bounds the KL divergence of one simulation's target from the measure that made its paths; it needs
            1024 or more paths at a time. It takes the place of ``annealing``. ``None``: lean adjoint matching.
    """

    updates: int = 1000
    network: NetworkRecipe = field(default_factory=FourierMLP)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=1e-2, batch=1024, ema_decay=0.99)
    )
    start: WarmStart = field(default_factory=GaussianStart)
    replay: Replay = field(default_factory=lambda: Replay(paths=2048, updates=30, kept=3))
    trust_region: TrustRegion | None = field(default_factory=TrustRegion)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_pace(self.trust_region, self.annealing)
        if self.trust_region is not None and self.replay.paths < _LEAST_PATHS:
            raise InvalidInputError(
                f"AdjointMatching with a trust region weighs its paths and needs {_LEAST_PATHS} or more at a time, got "
                f"{self.replay.paths}: leave replay as it is, or give trust_region=None."
            )

    def refusal(self, problem: ControlProblem) -> str | None:
        """Needs gradients of the costs, and no stopping set."""
        return problem.costs.refusal(problem.probe, (0.0, problem.process.horizon))

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """The output is measured by what the first targets have beyond the start: the median over the steps."""
        paths, _ = self.sample(problem, state, state.base, self.replay.paths)
        missing = self.targets(problem, problem.costs, paths)[0] - paths.v
        size = float(_mean_squares(missing).median().sqrt())
        return super().scales(problem, state) | ({"output": size} if size > 0 else {})

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error on a batch of rows, at each step in units of the targets' mean square there."""
        memory = state.memory
        if state.step % self.replay.updates == 0:
            self.simulate(problem, costs, state)
        loss = row_loss(state.control, memory, self.optimisation.batch, state.generator)
        return loss, {name: memory[name] for name in ("objective", "power") if name in memory}

    def simulate(self, problem: ControlProblem, costs: Costs, state: ControlState) -> None:
        """New paths of the current control and their rows, each with the weight of its path."""
        paths, _ = self.sample(problem, state, state.control, self.replay.paths)
        state.memory["objective"] = self.checked_objective(control_objective(paths, problem.costs), state)
        targets, weights, power = self.targets(problem, costs, paths)
        rows = regression_rows(paths.chain, paths.x[:-1], targets)
        rows["weight"] = rows["weight"] * (len(weights) * weights).to(targets).repeat(len(targets))
        keep_rows(state.memory, rows, self.replay.kept)
        if self.trust_region is not None:
            record_power(state.memory, power)

    def targets(self, problem: ControlProblem, costs: Costs, paths: Paths) -> tuple[Tensor, Tensor, float]:
        """Targets at the states before each step ``(N, batch, dim)``, weights of the paths, and the power of these."""
        if self.trust_region is None:
            uniform = torch.full(paths.x.shape[1:2], 1.0 / paths.x.shape[1], dtype=torch.float64)
            return adjoint_targets(paths.chain, lean_adjoint(paths, costs)), uniform.to(paths.x.device), 1.0
        logs = without_start(log_weight(paths, costs), paths.x[0], problem.start)
        weights, power = self.trust_region.weights(logs)
        return mixed_targets(paths, costs, weights), weights, power

    @property
    def _steadier(self) -> str:
        """Options that would help learning that ran away."""
        if self.trust_region is None:
            return "a trust region, trust_region=TrustRegion()"
        smaller = f"TrustRegion(max_kl={0.3 * self.trust_region.max_kl:.2g})"
        return f"a smaller trust region, {smaller}, and a lower learning rate"

    def checked_objective(self, actions: Tensor, state: ControlState) -> Tensor:
        """The mean of the paths' actions; NotConvergedError if learning has made them far worse than they were.

        Where costs are steep, targets at far states can throw paths still farther from one simulation to the next. The
        regression itself does not see that: its errors are measured in units of the targets.
        """
        mean, first = actions.mean(), state.memory.setdefault("first", _mean_and_spread(actions))
        if not float(mean) <= float(first[0]) + _DIVERGED * float(first[1]):
            raise NotConvergedError(
                f"AdjointMatching diverged: the objective is {float(mean):.3g} at update {state.step}, and was "
                f"{float(first[0]):.3g} at first. The costs are too steep for paths that are far from the optimum. Use "
                f"LogVariance, which does not follow gradients of the costs; or AdjointMatching with {self._steadier}."
            )
        return mean


def _mean_and_spread(actions: Tensor) -> Tensor:
    """The mean of the paths' actions, and the largest of its size, their standard deviation and 1, shape ``(2,)``."""
    mean = actions.mean()
    return torch.stack([mean, torch.maximum(actions.std(correction=0), mean.abs()).clamp_min(1.0)])


def regression_rows(chain: Chain, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The rows ``(t_k, x_k)`` of a chain of either direction, their targets, and their weights.

    The regression at one step knows nothing of the others, so any weight of a step has the same fixed point. That of
    step ``k`` is ``Δ_k`` over the targets' mean square there: where the uncontrolled process spreads, adjoint states of
    early steps can be so large that nothing else would be learned.

    Args:
        chain: whose control is regressed.
        x: states before each step, shape ``(N, batch, dim)``.
        targets: likewise.
    """
    spans = chain.visited.diff().abs().to(x)
    squares = _mean_squares(targets)
    weight = spans / spans.mean() / (squares + _FLOOR * squares.mean()).clamp_min(torch.finfo(x.dtype).tiny).to(x)
    batch, dim = x.shape[1:]
    return {
        "x": x.reshape(-1, dim),
        "t": chain.visited[:-1].to(x.device).repeat_interleave(batch),
        "target": targets.reshape(-1, dim),
        "weight": weight.repeat_interleave(batch),
    }


def keep_rows(memory: dict[str, Tensor], new: dict[str, Tensor], kept: int) -> None:
    """Puts ``new`` into the memory, where ``kept`` times as many rows have room; the oldest go."""
    for key, value in new.items():
        old = memory.get(key)
        memory[key] = value.clone() if old is None else torch.cat([old, value])[-kept * len(value) :].clone()


def row_loss(control: Control, memory: dict[str, Tensor], batch: int, generator: torch.Generator) -> Tensor:
    """Weighted mean square error on ``batch`` of the rows."""
    index = torch.randint(len(memory["x"]), (batch,), generator=generator).to(memory["x"].device)
    error = control(memory["t"][index], memory["x"][index]) - memory["target"][index]
    return (memory["weight"][index] * error.square().mean(1)).mean()


def _mean_squares(targets: Tensor) -> Tensor:
    """The mean square per coordinate of the targets of each step, shape ``(N,)``."""
    return targets.double().square().mean((1, 2))
