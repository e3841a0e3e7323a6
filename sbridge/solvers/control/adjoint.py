"""Adjoint matching: the control is regressed on adjoint states of paths that it made itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.measures import Paths
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint
from sbridge.objectives.control import action
from sbridge.objectives.costs import Costs
from sbridge.problems import ControlProblem
from sbridge.processes import Chain
from sbridge.registry import register
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.training import Info, Optimisation

_FLOOR = 1e-6


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
        for name in ("paths", "updates", "kept"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True)
class MatchingSolver(ControlSolver):
    """Regression of the control on targets at rows ``(t_k, x_k)`` that are kept for several updates.

    Args:
        replay: how often and how many paths are simulated.
        optimisation: ``batch`` is the number of rows ``(t_k, x_k)`` that an update uses.
    """

    updates: int = 4000
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(batch=1024))
    replay: Replay = field(default_factory=Replay)

    def refusal(self, problem: ControlProblem) -> str | None:
        """Needs gradients of the costs, and no stopping set."""
        return problem.costs.refusal(problem.probe, (0.0, problem.process.horizon))

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """The size of the first targets, which measures the output of the network: the median over the steps."""
        paths, _ = self.sample(problem, state, state.base, self.replay.paths)
        _, targets = self.regression(problem, problem.costs, paths, state)
        size = float(_mean_squares(targets).median().sqrt())
        return {"output": size if size > 0 else 1.0 / math.sqrt(problem.process.horizon)}

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error on a batch of rows, at each step in units of the targets' mean square there."""
        self.refresh(problem, costs, state)
        memory = state.memory
        loss = row_loss(state.control, memory, self.optimisation.batch, state.generator)
        return loss, {"objective": float(memory["objective"])}

    def refresh(self, problem: ControlProblem, costs: Costs, state: ControlState) -> None:
        """New paths of the current control and their rows, if it is time."""
        if state.step % self.replay.updates == 0:
            paths, _ = self.sample(problem, state, state.control, self.replay.paths)
            state.memory["objective"] = action(paths, problem.costs).mean()
            self.remember(state, paths.chain, *self.regression(problem, costs, paths, state))

    @abstractmethod
    def regression(
        self, problem: ControlProblem, costs: Costs, paths: Paths, state: ControlState
    ) -> tuple[Tensor, Tensor]:
        """States at which the control is regressed, and targets there, both ``(N, batch, dim)``."""

    def remember(self, state: ControlState, chain: Chain, x: Tensor, targets: Tensor) -> None:
        """Rows with their weights; the oldest make room."""
        keep_rows(state.memory, regression_rows(chain, x, targets), self.replay.kept)


@register
@dataclass(frozen=True)
class AdjointMatching(MatchingSolver):
    """Lean adjoint matching (Domingo-Enrich et al. 2024, arXiv:2409.08861), with the exact adjoint of the chain.

    Paths of the current control are simulated, their adjoint states found by one vector–Jacobian product a step of the
    uncontrolled step map, and the control is regressed on ``−L_kᵀ a_{k+1}/√Δ_k`` at their own states. The fixed
    point is the optimal control of the chain. Needs differentiable costs and drift; memory is that of stored states and
    targets.
    """

    def regression(
        self, problem: ControlProblem, costs: Costs, paths: Paths, state: ControlState
    ) -> tuple[Tensor, Tensor]:
        """The states visited and their lean adjoints."""
        return paths.x[:-1], adjoint_targets(paths.chain, lean_adjoint(paths, costs))


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
