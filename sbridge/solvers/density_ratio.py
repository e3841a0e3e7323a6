"""A half-bridge that learns the control anew from the reference: adjoint matching of a potential from a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbridge.errors import InvalidInputError, check_at_least
from sbridge.laws import Density
from sbridge.measures import Paths
from sbridge.objectives.adjoint import gradient, lean_adjoint
from sbridge.objectives.control import log_weight
from sbridge.problems import BridgeProblem
from sbridge.problems.costs import Costs
from sbridge.processes import Direction
from sbridge.random import derive, generator as generator_of, seeded
from sbridge.solvers.control.trust_region import TrustRegion
from sbridge.solvers.half_bridges import AdjointRegression, HalfStepContext, end_name
from sbridge.storage.registry import check_kinds, register
from sbridge.training import Learner, Optimisation

_PROBE_ROWS = 4096
_COST_ROWS = 8
_HELPERS = Optimisation(learning_rate=2e-3, batch=1024, ema_decay=0.98, warm_up=10)
_POTENTIAL, _VALUE = "potential", "value"


@register
@dataclass(frozen=True)
class DensityRatio(AdjointRegression):
    """Adjoint matching of a potential ``s ≈ log h_T``, which a classifier fits to samples of the end.

    The bridge from the source is the reference tilted by ``h_T(X_T)``. With ``q`` the distribution of the ends under
    the present tilt and ``p`` that of the samples, each iteration of Fortet, two half-steps in one, is::

        log h_T ← log h_T + η log(p/q)

    For every simulation of paths under the current control:

    1. The log ratio is learned by logistic regression of samples against ends, with the logit ``(s − s_old)/η``
       (Sugiyama, Suzuki & Kanamori 2012). ``η`` falls geometrically from ``first`` to ``last``.
    2. The control is regressed on ``−L_kᵀ a_{k+1}/√Δ_k``, with the lean adjoint ``a`` of the terminal cost ``−s``
       (arXiv:2409.08861), on paths drawn with weights ``α ∝ e^{s(X_T)} dR/dP`` tempered by ``trust_region``. Under
       these weights the mean of the targets is the control of the reference tilted by ``e^s``, for any control of the
       paths. A second network learns the mean of ``log α`` given ``X_0``, which is subtracted.

    The control depends on the past of the run only through ``s``, so errors of earlier controls are forgotten. A state
    cost ``V`` is the running cost of the same control problem: ``α ∝ e^{s(X_T) − ∫V dt} dR/dP``, and the adjoint has
    its gradient.

    Args:
        first: ``η`` at the beginning.
        last: ``η`` at the end.
        classifier_updates: number of updates of the classifier per simulation; twenty times as many for the first.
        trust_region: bounds the divergence of weighted paths from simulated ones.

    Raises:
        InvalidInputError: for options out of range.
    """

    first: float = 0.8
    last: float = 0.2
    classifier_updates: int = 40
    trust_region: TrustRegion = field(default_factory=lambda: TrustRegion(max_kl=0.2))

    paths: ClassVar[int] = 2048
    refresh: ClassVar[int] = 75
    independent: ClassVar[bool] = True
    keeps_cost: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0.0 < self.last <= self.first <= 1.0:
            raise InvalidInputError(f"0 < last ≤ first ≤ 1 is needed, got first={self.first}, last={self.last}.")
        check_at_least(self, 1, "classifier_updates")

    def refusal(self, problem: BridgeProblem, trained: Direction) -> str | None:
        """The direction must be forward, both ends must be sampled, and the drift must be differentiable."""
        if trained is Direction.BACKWARD:
            return "DensityRatio learns the forward control: pass it as forward=, and backward=MeanMatching()."
        for direction in Direction:
            if isinstance(problem.far(direction), Density):
                return (
                    f"DensityRatio needs samples of both ends, and the {end_name(direction)} is an unnormalised "
                    "density: use IPF(forward=AdjointHalfBridge()), or draw samples first."
                )
        if problem.running_cost is not None:
            x = problem.source.sample(_COST_ROWS, generator_of(0))
            told = Costs(problem.running_cost).refusal(x, (0.0, 0.5 * problem.reference.horizon))
            if told is not None:
                return told
        return self.opaque_drift(problem, "forward")

    def helpers(self, problem: BridgeProblem, trained: Direction, simulations: int, seed: int) -> dict[str, Learner]:
        """Networks for the potential of the far end and for the mean log weight given the start."""
        found, updates = {}, self.classifier_updates * (simulations + _LONGER)
        for name, law in ((_POTENTIAL, problem.far(trained)), (_VALUE, problem.near(trained))):
            rows = law.sample(_PROBE_ROWS, generator_of(derive(seed, f"{name} rows")))
            module = seeded(partial(_Scalar, rows), derive(seed, name))
            found[name] = Learner(module.to(rows), _HELPERS, updates)
        return found

    def keep(self, paths: Paths, learning: HalfStepContext, generator: torch.Generator) -> dict[str, Tensor]:
        """States, regression targets and tempered weights, of these paths and of the previous ones."""
        potential = self._classify(paths.x[-1], learning, generator)
        running = learning.problem.running_cost
        cost = Costs(running, lambda x: -potential(x))
        end = -gradient(paths.x[-1], potential)
        with torch.no_grad():
            targets = self.targets(paths, lean_adjoint(paths, Costs(running), end), learning.base)
            excess = self._excess(paths.x[0], log_weight(paths, cost).to(paths.x), learning, generator)
        weights, _ = self.trust_region.weights(excess)
        new = {"x": paths.x[:-1], "target": targets, "weight": weights.to(paths.x)}
        before = learning.kept if "weight" in learning.kept else None
        if before is not None:
            n = paths.x.shape[1]
            for name, value in new.items():
                dim = 0 if name == "weight" else 1
                old = before[name]
                new[name] = torch.cat([old.narrow(dim, old.shape[dim] - n, n), value], dim)
        return new

    def rows(self, learning: HalfStepContext, paths: int, batch: int, generator: torch.Generator) -> Tensor:
        """Draws indices of paths by weight."""
        return torch.multinomial(learning.kept["weight"].cpu(), batch, replacement=True, generator=generator)

    def _classify(self, ends: Tensor, learning: HalfStepContext, generator: torch.Generator) -> nn.Module:
        """Adds ``η`` times the log ratio of samples to ends to the potential; returns the averaged network."""
        learner = learning.helpers[_POTENTIAL]
        first = learner.updates == 0
        rate = self.first * (self.last / self.first) ** learning.progress
        ends = ends.detach()
        with torch.no_grad():
            wanted = learning.problem.far(learning.trained).sample(len(ends), generator)
            before = [torch.zeros_like(x[:, 0]) if first else learner.averaged(x) for x in (ends, wanted)]
        for _ in range(self.classifier_updates * (_LONGER if first else 1)):
            here, there = (
                torch.randint(len(ends), (_HELPERS.batch,), generator=generator).to(ends.device) for _ in "01"
            )
            made = (learner.module(ends[here]) - before[0][here]) / rate
            real = (learner.module(wanted[there]) - before[1][there]) / rate
            learner.update(softplus(made).mean() + softplus(-real).mean())
        return learner.averaged

    def _excess(self, x0: Tensor, logs: Tensor, learning: HalfStepContext, generator: torch.Generator) -> Tensor:
        """``log α`` minus its mean given the start, which does not affect the control."""
        learner = learning.helpers[_VALUE]
        scale = max(float(logs.std()), 1.0)
        with torch.enable_grad():
            for _ in range(self.classifier_updates * (_LONGER // 4 if learner.updates == 0 else 1)):
                index = torch.randint(len(x0), (_HELPERS.batch // 2,), generator=generator).to(x0.device)
                learner.update(((learner.module(x0[index]) - logs[index]) / scale).square().mean())
        return logs - learner.module(x0)


_LONGER = 20
"""How many times as many updates the first fit of a helper has. If the ends have the moments of the samples, a short
fit stops on a plateau where the classifier cannot distinguish them."""


class _Scalar(nn.Module):
    """A function of the state: a perceptron on standardised coordinates whose last layer is not zero at first."""

    centre: Tensor
    scale: Tensor

    def __init__(self, rows: Tensor, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("centre", rows.mean(0))
        self.register_buffer("scale", rows.std(0, correction=0).clamp_min(1e-6 * max(float(rows.abs().max()), 1e-30)))
        self.layers = nn.Sequential(
            nn.Linear(rows.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.centre) / self.scale)[:, 0]
