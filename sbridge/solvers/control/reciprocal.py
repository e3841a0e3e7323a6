"""Reciprocal adjoint matching: ends are simulated, what lies between is drawn from pinned bridges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Point
from sbridge.measures import Paths
from sbridge.objectives.adjoint import adjoint_targets, terminal_gradient
from sbridge.objectives.control import control_objective, log_weight
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import ExactTransition, LinearProcess
from sbridge.processes.coefficients import identity
from sbridge.random import generator
from sbridge.solvers.control.adjoint import AdjointRegressionSolver, keep_rows
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.solvers.control.trust_region import TrustRegion
from sbridge.storage.registry import register
from sbridge.training import Info

_MEMORY = 1e-3
_PROBE_ROWS = 1024


@register
@dataclass(frozen=True)
class ReciprocalAdjointMatching(AdjointRegressionSolver):
    """Adjoint matching on pinned bridges (adjoint sampling, Havens et al. 2025, arXiv:2504.11713), for a terminal cost.

    From ends ``(X_0, X_T)`` of the current control, states ``X_t`` are drawn from bridges of the uncontrolled process
    and the control is regressed on ``−σᵀ Φ(T, t)ᵀ ∇g(X_T)``, with ``L_k/√Δ_k`` and ``Φ(T, t_{k+1})`` of the chain. One
    simulation serves many draws, and costs are differentiated at ends only.

    Needs a linear process with exact steps, no running cost, and a start that is a point or forgotten by the end: only
    then is the optimum the only fixed point.

    With a ``trust_region`` ends are weighted, any start will do, and every update draws fresh rows. With ``X_0, X_T``
    of the paths of the current control, drawn by tempered weights, and ``X_t`` from bridges of the uncontrolled
    process, the control is regressed on ::

        σᵀ Φᵀ (v + Q)⁻¹ (X_T − m(T | t, X_t) − v ∇g(X_T)),      Φ, Q of (T, t),   v = dim/E|∇g(X_T)|²

    which is ``c (−σᵀΦᵀ∇g) + (1 − c) σᵀ∇_x log R(X_T | x)`` with ``c = v (v + Q)⁻¹``. Both terms have the optimal
    control as their mean given ``X_t`` under the optimal path measure, and for a Gaussian ``e^{−g}`` of variance ``v``
    their noise cancels.

    Args:
        draws: bridges drawn from the ends of one simulation, one every ``replay.updates`` updates.
        trust_region: bounds the step from one simulation to the next; ``None``: no weights.
    """

    draws: int = 2
    trust_region: TrustRegion | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InvalidInputError(f"draws must be positive, got {self.draws}.")

    def refusal(self, problem: ControlProblem) -> str | None:
        """Needs what the class says."""
        process = problem.process
        if not isinstance(process, LinearProcess) or not isinstance(self.step_rule(problem), ExactTransition):
            return (
                "ReciprocalAdjointMatching needs pinned bridges in closed form: take a LinearProcess such as "
                "BrownianMotion with exact steps, or AdjointMatching for any process."
            )
        if problem.running_cost is not None:
            return (
                "ReciprocalAdjointMatching draws states between the ends from the uncontrolled process, which a "
                "running cost changes: use AdjointMatching."
            )
        weighted = self.trust_region is not None
        if not weighted and not isinstance(problem.start, Point) and remembered(problem, process) > _MEMORY:
            return (
                "ReciprocalAdjointMatching needs a start that is a Point, or that the process forgets by its end: use "
                "trust_region=TrustRegion(), which weights the ends, or AdjointMatching."
            )
        return super().refusal(problem)

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """With a trust region the output is measured by the first weighted targets."""
        if self.trust_region is None:
            return super().scales(problem, state)
        self.simulate_ends(problem, problem.costs, state, state.base)
        _, _, targets = self.weighted_rows(problem, state)
        state.memory.clear()
        return ControlSolver.scales(self, problem, state) | {"output": float(targets.double().square().mean().sqrt())}

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error on rows of pinned bridges; with a trust region, between weighted ends."""
        if self.trust_region is None:
            return super().loss(problem, costs, state)
        if state.step % self.replay.updates == 0:
            self.simulate_ends(problem, costs, state, state.control)
        t, x, targets = self.weighted_rows(problem, state)
        return (state.control(t, x) - targets).square().mean(), {
            "objective": float(state.memory["objective"]),
            "power": float(state.memory["power"]),
        }

    def simulate_ends(
        self, problem: ControlProblem, costs: Costs, state: ControlState, control: Control | None
    ) -> None:
        """Ends of new paths of ``control``, with the gradients of the cost and tempered weights there."""
        paths, _ = self.sample(problem, state, control, self.replay.paths)
        kept = state.memory
        kept["objective"] = self.checked_objective(control_objective(paths, problem.costs), state)
        weights, power = cast(TrustRegion, self.trust_region).weights(log_weight(paths, costs))
        end = paths.x[-1].clone()
        new = {"start": paths.x[0].clone(), "end": end, "gradient": terminal_gradient(end, costs), "w": weights}
        keep_rows(kept, new, self.replay.kept)
        squares = kept["gradient"].double().square().mean(1)
        kept["variance"] = (kept["w"].sum() / (kept["w"] * squares).sum()).clamp(1e-12, 1e12)
        kept["power"] = torch.tensor(power)

    def weighted_rows(self, problem: ControlProblem, state: ControlState) -> tuple[Tensor, Tensor, Tensor]:
        """Times ``(batch,)``, states and targets ``(batch, dim)``."""
        process, kept, batch = _linear(problem), state.memory, self.optimisation.batch
        device = kept["end"].device
        index = torch.multinomial(kept["w"].cpu(), batch, replacement=True, generator=state.generator).to(device)
        knots = self.grid.times(process.horizon)[:-1]
        t = knots[torch.randint(len(knots), (batch,), generator=state.generator)]
        start, end = kept["start"][index], kept["end"][index]
        noise = torch.randn(end.shape, generator=state.generator, dtype=end.dtype).to(device)
        x = process.pinned(t).sample(start, end, noise)
        ahead, v = process.transition(t, process.horizon), kept["variance"].cpu()
        smoothing = (ahead.covariance + identity(t.shape) * v).inverse()
        gap = (end - ahead.mean(x) - v.to(end) * kept["gradient"][index]).double()
        pulled = (process.scale(t).T @ ahead.map.T @ smoothing).to(gap)(gap)
        return t.to(x), x, pulled.to(x)

    def refresh(self, problem: ControlProblem, costs: Costs, state: ControlState) -> None:
        """New bridges if it is time, between new ends if they have served."""
        round_, within = divmod(state.step, self.replay.updates)
        if within:
            return
        if round_ % self.draws == 0:
            super().refresh(problem, costs, state)
            return
        kept = state.memory
        x, targets = self.bridges(problem, state, kept["start"], kept["end"], kept["gradient"])
        self.remember(state, self.measure(problem, None).chain(x), x, targets)

    def regression(
        self, problem: ControlProblem, costs: Costs, paths: Paths, state: ControlState
    ) -> tuple[Tensor, Tensor]:
        """Bridges between the ends of the paths, which are kept."""
        start, end = paths.x[0].clone(), paths.x[-1].clone()
        gradient = terminal_gradient(end, costs)
        state.memory |= {"start": start, "end": end, "gradient": gradient}
        return self.bridges(problem, state, start, end, gradient)

    def bridges(
        self, problem: ControlProblem, state: ControlState, start: Tensor, end: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States on bridges at the knots of the grid, independent of each other given their ends, and targets there."""
        process = _linear(problem)
        chain = self.measure(problem, None).chain(start)
        noise = generator(state.generator, start.device)
        states, adjoint = [], [gradient]
        for t in chain.times[:-1]:
            xi = torch.randn(start.shape, generator=noise, dtype=start.dtype, device=start.device)
            states.append(process.pinned(t).sample(start, end, xi))
            adjoint.append(process.transition(t, process.horizon).map.T.to(start)(gradient))
        # a_k = Φ(T, t_k)ᵀ ∇g for k = 0 … N, the last with Φ = 1.
        return torch.stack(states), adjoint_targets(chain, torch.stack([*adjoint[1:], adjoint[0]]))


def remembered(problem: ControlProblem, process: LinearProcess) -> float:
    """``tr(Φ Cov(X_0) Φᵀ)/tr Q_T``: the share of the uncontrolled end that comes from the start."""
    with torch.no_grad():
        rows = problem.start.sample(_PROBE_ROWS, generator(0)).double()
    law = process.transition(0.0, process.horizon)
    carried = law.map.to(rows)(rows - rows.mean(0)).square().sum(1).mean()
    return float(carried / (law.root.mean_square(problem.dim) * problem.dim).to(carried))


def _linear(problem: ControlProblem) -> LinearProcess:
    if not isinstance(problem.process, LinearProcess):
        raise UnsupportedError(f"a LinearProcess is needed, got {type(problem.process).__name__}.")
    return problem.process
