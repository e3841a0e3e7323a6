"""Adjoint matching: the control is regressed on adjoint states of paths that it made itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls import MLP, NetworkRecipe
from sbridge.errors import InvalidInputError
from sbridge.objectives.adjoint import adjoint_targets, lean_adjoint
from sbridge.objectives.control import action
from sbridge.objectives.costs import Costs
from sbridge.problems import ControlProblem
from sbridge.registry import register
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.training import Info, Optimisation


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


@register
@dataclass(frozen=True)
class AdjointMatching(ControlSolver):
    """Lean adjoint matching (Domingo-Enrich et al. 2024, arXiv:2409.08861), with the exact adjoint of the chain.

    Paths of the current control are simulated, their adjoint states found by one vector–Jacobian product a step of the
    uncontrolled step map, and the control is regressed on ``−L_kᵀ a_{k+1}/√Δ_k`` at rows ``(t_k, x_k)`` drawn from
    them. The fixed point is the optimal control of the chain. Needs differentiable costs and drift; memory is that of
    the stored states and targets.

    Args:
        replay: how often and how many paths are simulated.
        optimisation: ``batch`` is the number of rows ``(t_k, x_k)`` an update uses.
    """

    updates: int = 5000
    network: NetworkRecipe = field(default_factory=MLP)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(batch=1024))
    replay: Replay = field(default_factory=Replay)

    def refusal(self, problem: ControlProblem) -> str | None:
        """Needs gradients of the costs, and no stopping set."""
        return problem.costs.refusal(problem.probe, (0.0, problem.process.horizon))

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """The root mean square of the first targets."""
        paths, _ = self.sample(problem, state, state.base, self.replay.paths)
        targets = adjoint_targets(paths, lean_adjoint(paths, problem.costs))
        size = float(targets.double().square().mean().sqrt())
        return {"output": size if size > 0 else 1.0 / math.sqrt(problem.process.horizon)}

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error on a batch of rows, in units of the first targets."""
        if state.step % self.replay.updates == 0:
            self._simulate(problem, costs, state)
        memory = state.memory
        count, batch = len(memory["x"]), self.optimisation.batch
        index = torch.randint(count, (batch,), generator=state.generator).to(memory["x"].device)
        u = state.control(memory["t"][index], memory["x"][index])
        error = (u - memory["target"][index]).square().mean(1)
        weight = memory["weight"][index] / state.scales["output"] ** 2
        return (weight * error).mean(), {"objective": float(memory["objective"])}

    def _simulate(self, problem: ControlProblem, costs: Costs, state: ControlState) -> None:
        paths, _ = self.sample(problem, state, state.control, self.replay.paths)
        targets = adjoint_targets(paths, lean_adjoint(paths, costs))
        spans = paths.t.diff().to(paths.x)
        weight = spans * len(spans) / spans.sum()
        batch, dim = paths.x.shape[1:]
        new = {
            "x": paths.x[:-1].reshape(-1, dim),
            "t": paths.t[:-1].repeat_interleave(batch),
            "target": targets.reshape(-1, dim),
            "weight": weight.repeat_interleave(batch),
        }
        limit = self.replay.kept * len(new["x"])
        for key, value in new.items():
            old = state.memory.get(key)
            state.memory[key] = value.clone() if old is None else torch.cat([old, value])[-limit:].clone()
        state.memory["objective"] = action(paths, problem.costs).mean()
