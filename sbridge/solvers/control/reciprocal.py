"""Reciprocal adjoint matching: ends are simulated and weighted, states between them drawn from pinned bridges."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.linear import LinearMap
from sbridge.objectives.adjoint import terminal_gradient
from sbridge.objectives.control import control_objective, log_weight
from sbridge.objectives.control_rows import ReciprocalRows
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import ExactTransition, LinearProcess
from sbridge.solvers.control.adjoint import Replay, keep_rows
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.solvers.control.starts import GaussianStart, WarmStart
from sbridge.solvers.control.trust_region import TrustRegion, record_power, without_start
from sbridge.storage.registry import register
from sbridge.training import Derived, Info, Optimisation

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 16.0, 64.0, 1e9)


@register
@dataclass(frozen=True)
class ReciprocalAdjointMatching(ControlSolver):
    """Adjoint matching on pinned bridges between weighted ends, for linear processes and a terminal cost.

    Every ``replay.updates`` updates, paths of the current control are simulated, and their ends ``(X_0, X_T)`` get
    weights of the optimal path measure, tempered by the trust region. Each update then draws ends by weight and states
    ``X_t`` at knots of the grid from bridges of the uncontrolled process between them, and regresses the control on ::

        σᵀ Φᵀ (v + Q)⁻¹ (X_T − m(T | t, X_t) − v ∇g(X_T)),      Φ, Q of (T, t),   v = dim/E|∇g(X_T)|²

    which mixes the lean adjoint ``−σᵀΦᵀ∇g`` and the bridge score ``σᵀ∇_x log R(X_T | x)``; see
    :class:`~sbridge.objectives.control_rows.ReciprocalRows`. Their mean given ``X_t`` under the optimal path measure is
    the optimal control; for a Gaussian ``e^{−g}`` of variance ``v`` they have no noise. Bridges are used as in adjoint
    sampling (Havens et al. 2025, arXiv:2504.11713). With the weights the optimum is the only fixed point, for any
    start. The trust region (Blessing et al. 2025, arXiv:2508.12511) keeps the modes.

    The process must be linear with exact steps, and there must be no running cost. A
    :class:`~sbridge.errors.ConvergenceWarning` is issued if a share of the terminal cost is still missing at the end.

    Args:
        optimisation: ``batch`` is the number of rows ``(t_k, X_{t_k})`` per update.
        replay: how many paths are simulated and how often; the ends of ``kept`` simulations are used together.
        trust_region: bounds the step from one simulation to the next. It replaces ``annealing``.
        start: the known control to which the network is added.
    """

    updates: int = 800
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(learning_rate=1e-2, batch=1024, ema_decay=0.99)
    )
    start: WarmStart = field(default_factory=GaussianStart)
    replay: Replay = field(default_factory=lambda: Replay(paths=1024, updates=40, kept=3))
    trust_region: TrustRegion = field(default_factory=lambda: TrustRegion(max_kl=0.3))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.annealing is not None:
            raise InvalidInputError(
                "ReciprocalAdjointMatching increases the terminal cost by its trust region, so annealing must be None; "
                "a smaller TrustRegion(max_kl) is slower and safer."
            )

    def refusal(self, problem: ControlProblem) -> str | None:
        """Explains which requirement the problem does not meet."""
        name = type(self).__name__
        if not isinstance(problem.process, LinearProcess) or not isinstance(self.step_rule(problem), ExactTransition):
            return (
                f"{name} needs pinned bridges in closed form: use a LinearProcess such as "
                "BrownianMotion with exact steps, or AdjointMatching for any process."
            )
        if problem.running_cost is not None:
            return (
                f"{name} draws states between the ends from the uncontrolled process, which a "
                "running cost changes: use AdjointMatching."
            )
        return problem.costs.refusal(problem.probe, (0.0, problem.process.horizon))

    def begun(
        self, problem: ControlProblem, seed: int, base: Control | None, generator: torch.Generator
    ) -> ReciprocalState:
        """The state, with bridges and targets tabulated at all knots of the grid but the last."""
        process = problem.process
        if not isinstance(process, LinearProcess):
            raise UnsupportedError(f"a LinearProcess is needed, got {type(process).__name__}.")
        knots = self.grid.times(process.horizon)[:-1]
        return ReciprocalState(seed, base, generator, table=ReciprocalRows.of(process, knots, problem.probe))

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """The output is of the size of the first targets minus the known control."""
        self.simulate_ends(problem, problem.costs, state, state.base)
        t, x, targets = self.rows(state)
        missing = targets if state.base is None else targets - state.base(t, x)
        size = float(missing.double().square().mean().sqrt())
        state.memory.clear()
        return super().scales(problem, state) | ({"output": size} if size > 0 else {})

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """Mean square error on fresh rows."""
        if state.step % self.replay.updates == 0:
            self.simulate_ends(problem, costs, state, state.control)
        t, x, targets = self.rows(state)
        kept = state.memory
        loss = (state.control(t, x) - targets).square().mean()
        return loss, {"objective": kept["objective"], "power": kept["power"]}

    def simulate_ends(
        self, problem: ControlProblem, costs: Costs, state: ControlState, control: Control | None
    ) -> None:
        """Ends of new paths of ``control``, with the gradients of the cost and tempered weights there."""
        paths, _ = self.sample(problem, state, control, self.replay.paths)
        kept, end = state.memory, paths.x[-1].clone()
        weights, power = self.trust_region.weights(without_start(log_weight(paths, costs), paths.x[0], problem.start))
        new = {"start": paths.x[0].clone(), "end": end, "gradient": terminal_gradient(end, costs), "w": weights}
        keep_rows(kept, new, self.replay.kept)
        variance, maps = self.best_mixture(state)
        record_power(kept, power)
        kept |= {
            "objective": control_objective(paths, problem.costs).mean(),
            "variance": variance,
            "maps": maps.values,
        }

    def best_mixture(self, state: ControlState) -> tuple[Tensor, LinearMap]:
        """The variance ``v`` with the smallest targets on a batch of rows, and the maps of the targets.

        At the fixed point all ``v`` have the same conditional means, so the smallest mean square has the least noise.
        Candidates are multiples of ``dim/E|∇g|²``, which is exact for a Gaussian, up to infinity, which is exact for a
        linear cost.
        """
        kept, table = state.memory, _tabulated(state)
        squares = kept["gradient"].double().square().mean(1)
        usual = (kept["w"].sum() / (kept["w"] * squares).sum()).clamp(1e-12, 1e12)
        k, x, index = self.states(state)
        found: list[tuple[float, Tensor, LinearMap]] = []
        for factor in _FACTORS:
            maps, variance = table.target_maps(factor * usual), (factor * usual).to(x)
            targets = table.targets(k, x, kept["end"][index], kept["gradient"][index], maps, variance)
            found.append((float(targets.double().square().mean()), variance, maps))
        return min(found, key=lambda one: one[0])[1:]

    def rows(self, state: ControlState) -> tuple[Tensor, Tensor, Tensor]:
        """Times ``(batch,)``, states and targets ``(batch, dim)``."""
        kept, table = state.memory, _tabulated(state)
        k, x, index = self.states(state)
        maps = LinearMap(kept["maps"], table.pull.dense or table.spread.dense)
        return table.t[k], x, table.targets(k, x, kept["end"][index], kept["gradient"][index], maps, kept["variance"])

    def states(self, state: ControlState) -> tuple[Tensor, Tensor, Tensor]:
        """Knots stratified over time, states ``(batch, dim)`` there, and the indices of their ends."""
        kept, table, batch = state.memory, _tabulated(state), self.optimisation.batch
        device, draws = kept["end"].device, state.generator
        index = torch.multinomial(kept["w"].cpu(), batch, replacement=True, generator=draws).to(device)
        uniform = torch.rand(batch, generator=draws, dtype=torch.float64)
        places = (torch.arange(batch, dtype=torch.float64) + uniform) * (len(table.t) / batch)
        k = places.long().clamp_max(len(table.t) - 1).to(device)
        noise = torch.randn((batch, kept["end"].shape[1]), generator=draws, dtype=kept["end"].dtype).to(device)
        return k, table.states(k, kept["start"][index], kept["end"][index], noise), index


@dataclass(eq=False)
class ReciprocalState(ControlState):
    """A :class:`ControlState` with the tables of its rows.

    Attributes:
        table: bridges and targets at the knots.
    """

    table: Derived[ReciprocalRows] = field(kw_only=True)


def _tabulated(state: ControlState) -> ReciprocalRows:
    if not isinstance(state, ReciprocalState):
        raise InvalidInputError(f"a ReciprocalState is needed, got a {type(state).__name__}.")
    return state.table
