"""Losses that need likelihood ratios only: no gradient of a cost, and paths may stop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sbridge.controls import NetworkControl
from sbridge.errors import InvalidInputError
from sbridge.measures import Paths, effective_sample_size
from sbridge.objectives.control import (
    control_objective,
    control_values,
    cross_entropy,
    log_variance,
    log_weight,
    moment,
    residual,
)
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.solvers.control.adjoint import Replay, keep_rows
from sbridge.solvers.control.base import ControlSolver, ControlState
from sbridge.solvers.control.trust_region import TrustRegion, check_one_pace, record_power, without_start
from sbridge.storage.registry import register
from sbridge.training import Info


@register
@dataclass(frozen=True)
class LogVariance(ControlSolver):
    """Log-variance loss (Nüsken & Richter 2021, arXiv:2005.05409) on paths of the current control, as constants.

    ``Var Ỹ`` of the log density of the optimal path law against the controlled one. Its gradient vanishes path by path
    at the optimum, so accuracy is not limited by Monte Carlo noise there.

    With a trust region (Blessing et al. 2025, arXiv:2508.12511) paths of the control ``u_n`` serve for several updates,
    whose target is ``P_{n+1} ∝ P_n α^b``, tempered so that it is within ``max_kl`` nats of the measure ``P_n`` of the
    paths. The loss is the variance of ``log dP_{n+1}/dP^u = Ỹ − (1 − b) log α``, less what the start alone decides.

    Args:
        optimisation: ``batch`` is the number of paths of an update.
        trust_region: ``None``: fresh paths for every update, and the whole terminal cost at once. It takes the place of
            ``annealing``.
        replay: with a trust region, how many paths are simulated and how often; all of the kept ones are drawn from.
    """

    trust_region: TrustRegion | None = None
    replay: Replay = field(default_factory=lambda: Replay(paths=512, updates=10, kept=2))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_pace(self.trust_region, self.annealing)

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The variance over a batch of paths."""
        if self.trust_region is not None:
            return self.bounded_loss(problem, costs, state, self.trust_region)
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        loss = log_variance(paths, costs, control_values(state.control, paths), alive)
        return loss, {"objective": _objective(paths, problem, alive)}

    def bounded_loss(
        self, problem: ControlProblem, costs: Costs, state: ControlState, region: TrustRegion
    ) -> tuple[Tensor, Info]:
        """The variance of the tempered log density over a batch of the paths that are kept."""
        kept = state.memory
        if state.step % self.replay.updates == 0:
            self.simulate(problem, costs, state, region)
        rows = torch.randint(len(kept["shift"]), (self.optimisation.batch,), generator=state.generator)
        rows = rows.to(kept["shift"].device)
        x, noise, v = (kept[name][rows].transpose(0, 1) for name in ("x", "noise", "v"))
        alive = kept["alive"][rows].transpose(0, 1) if "alive" in kept else None
        paths = Paths(x, noise, v, self.measure(problem, None).chain(x))
        u = control_values(state.network(averaged=False), paths)
        if "base" in kept:
            u = u + kept["base"][rows].transpose(0, 1)
        found = residual(paths, costs, u, alive) - kept["shift"][rows]
        return found.var(), {"objective": kept["objective"], "power": kept["power"]}

    def simulate(self, problem: ControlProblem, costs: Costs, state: ControlState, region: TrustRegion) -> None:
        """New paths of the current control, by rows, with what is subtracted from their residuals."""
        paths, alive = self.sample(problem, state, state.control, self.replay.paths)
        logs, kept = log_weight(paths, costs, alive), state.memory
        centred = without_start(logs, paths.x[0], problem.start)
        power = region.weights(centred)[1]
        new = {name: getattr(paths, name).transpose(0, 1) for name in ("x", "noise", "v")}
        new["shift"] = (1.0 - power) * logs + power * (logs - centred)
        if state.base is not None:
            with torch.no_grad():
                new["base"] = control_values(state.base, paths).transpose(0, 1)
        keep_rows(kept, new if alive is None else new | {"alive": alive.transpose(0, 1)}, self.replay.kept)
        kept["objective"] = control_objective(paths, problem.costs, alive).mean()
        record_power(kept, power)


@register
@dataclass(frozen=True)
class CrossEntropy(ControlSolver):
    """Cross-entropy ``KL(P* ‖ P^u)`` (Zhang et al. 2014; Nüsken & Richter 2021), weighted paths of the current control.

    Convex in the control, but only as good as the importance weights: watch the effective sample size that it reports.

    Args:
        optimisation: ``batch`` is the number of paths of an update.
    """

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The weighted likelihood over a batch of paths."""
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        loss = cross_entropy(paths, costs, control_values(state.control, paths), alive)
        size = effective_sample_size(log_weight(paths, costs, alive))
        return loss, {"objective": _objective(paths, problem, alive), "effective sample size": size}


@register
@dataclass(frozen=True)
class Moment(ControlSolver):
    """Moment loss ``E (Ỹ + y_0)²`` with a learned ``y_0``, which estimates the value (Nüsken & Richter 2021).

    Args:
        optimisation: ``batch`` is the number of paths of an update.
    """

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """Also mean and standard deviation of ``Ỹ`` at first: ``y_0`` starts at one, in units of the other."""
        paths, alive = self.sample(problem, state, state.base, self.optimisation.batch)
        first = residual(paths, problem.costs, paths.v, alive)
        spread = {"centre": -float(first.mean()), "spread": max(float(first.std()), 1e-6)}
        return super().scales(problem, state) | spread

    def module(self, network: NetworkControl, scales: dict[str, float]) -> nn.Module:
        """The network and ``y_0``."""
        return _WithOffset(network, scales["centre"], scales["spread"])

    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The second moment over a batch of paths."""
        paths, alive = self.sample(problem, state, state.control, self.optimisation.batch)
        module = state.learner.module
        if not isinstance(module, _WithOffset):
            raise InvalidInputError(f"a control with its offset is trained here, found {type(module).__name__}.")
        offset = module.offset
        loss = moment(paths, costs, control_values(state.control, paths), offset, alive)
        return loss, {"objective": _objective(paths, problem, alive), "y0": offset.detach()}


class _WithOffset(nn.Module):
    """A control and the number ``y_0 = centre + spread · θ``."""

    def __init__(self, control: NetworkControl, centre: float, spread: float) -> None:
        super().__init__()
        self.control = control
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.centre, self.spread = centre, spread

    @property
    def offset(self) -> Tensor:
        """``y_0``."""
        return self.centre + self.spread * self.theta


def _objective(paths: Paths, problem: ControlProblem, alive: Tensor | None) -> Tensor:
    return control_objective(paths, problem.costs, alive).detach().mean()
