"""Relative entropy: gradients through the simulation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.measures.measure import noise_for
from sbridge.objectives.control import relative_entropy
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes.base import Time
from sbridge.random import as_seed
from sbridge.simulation import Backprop, Detached, GradientMethod, ReversibleAdjoint, endpoint
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.storage.registry import register
from sbridge.training import Info


@register
@dataclass(frozen=True)
class RelativeEntropy(ControlSolver):
    """The objective ``E[Σ Δ (f + ½|u|²) + g]``, differentiated through the simulation.

    Args:
        optimisation: ``batch`` is the number of paths per update.
        gradient: ``Backprop()`` through the chain, or ``ReversibleAdjoint()``, whose memory does not grow with the
            number of steps. The adjoint uses the reversible Heun scheme, of weak order 2, so its optimum is closer to
            the optimum in continuous time than to that of the chain.
    """

    gradient: GradientMethod = field(default_factory=Backprop)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.gradient, Detached):
            raise InvalidInputError("RelativeEntropy needs a gradient: Backprop() or ReversibleAdjoint().")

    def refusal(self, problem: ControlProblem) -> str | None:
        """Explains that a cost has no gradient, or that there is a stopping set."""
        return problem.costs.refusal(problem.probe, (0.0, problem.process.horizon))

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The mean over a batch of paths."""
        batch = self.optimisation.batch
        if not isinstance(self.gradient, ReversibleAdjoint):
            paths, _ = self.sample(problem, state, state.control, batch, self.gradient)
            loss = relative_entropy(paths, costs)
        else:
            loss = self._by_adjoint(problem, costs, state, self.gradient)
        return loss, {"objective": loss.detach()} if costs.terminal is problem.terminal_cost else {}

    def _by_adjoint(
        self, problem: ControlProblem, costs: Costs, state: ControlState, gradient: ReversibleAdjoint
    ) -> Tensor:
        measure, seed = self.measure(problem, state.control), as_seed(state.generator)
        x0 = measure.starts(self.optimisation.batch, seed=seed)
        times = self.grid.times(problem.process.horizon)
        noise = noise_for(x0, self.grid.steps, seed)
        control: Control = state.control
        end, cost = endpoint(problem.process, control, x0, times, noise, gradient, energy_rate(costs))
        return (cost + costs.end(end)).mean()


def energy_rate(costs: Costs) -> _EnergyRate:
    """``f(t, x) + ½|u|²`` as the running cost of :func:`~sbridge.simulation.endpoint`."""
    return _EnergyRate(costs)


@dataclass(frozen=True, eq=False)
class _EnergyRate:
    costs: Costs

    def __call__(self, t: Time, x: Tensor, u: Tensor) -> Tensor:
        return self.costs.rate(t, x) + 0.5 * u.square().sum(1)
