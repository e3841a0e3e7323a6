"""Control problems with precisely known optimum, in continuous time and for the chain of their grid.

The problems are those of Nüsken & Richter 2021 (arXiv:2005.05409) and Domingo-Enrich et al. 2023 (arXiv:2312.02027),
with ``σ = 1`` and ``T = 1``, stepped by Euler–Maruyama.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbridge.benchmarks.quadrature import Barrier, ChainOnLine, CoordinateControl, LimitOnLine, LineProblem
from sbridge.controls import Control
from sbridge.exact.riccati import ChainRiccati, Riccati
from sbridge.laws import Point
from sbridge.problems import BridgeCorrection, ControlProblem, Quadratic, StoppingSet
from sbridge.processes import DriftProcess, EulerMaruyama, LinearProcess, OrnsteinUhlenbeck, StepRule
from sbridge.processes.base import Time
from sbridge.storage.registry import register
from sbridge.time import TimeGrid


@dataclass(frozen=True, eq=False)
class Truth:
    """Known values of a control problem.

    Args:
        limit: the minimum cost in continuous time.
        tilted: ``−log E[e^{−ΣΔf − g}]`` over the uncontrolled chain, which ``−log E α`` estimates.
        optimum: the minimum cost over feedback controls of the chain, a lower bound on every objective.
        control: ``u*`` of the chain.
        limit_control: ``u*`` in continuous time.
    """

    limit: float
    tilted: float
    optimum: float
    control: Control
    limit_control: Control


@dataclass(frozen=True, eq=False)
class ControlBenchmark:
    """A problem, the chain on which it is to be solved, and the solution.

    Args:
        name: in tables.
        problem: in the dtype in which it is to be solved.
        grid, rule: the chain.
        truth: the answer, in float64.
        positive: the probability that a coordinate ends above zero, where the problem is about that.
    """

    name: str
    problem: ControlProblem
    grid: TimeGrid
    truth: Truth
    rule: StepRule = field(default_factory=EulerMaruyama)
    positive: float | None = None


@register
@dataclass(frozen=True, eq=False)
class WellDrift:
    """The drift ``b = −∇ Σ_i κ_i (x_i² − 1)²``; ``strengths`` κ is of shape ``(dim,)``."""

    strengths: Tensor

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``−4 κ x (x² − 1)``."""
        return -4.0 * self.strengths.to(x) * x * (x.square() - 1.0)


def quadratic_ou_easy(steps: int = 50, dim: int = 20, dtype: torch.dtype = torch.float32) -> ControlBenchmark:
    """The problem ``b = 0.2 x``, ``f = 0.2|x|²``, ``g = 0.1|x|²``, started at ``|x|² = 5``."""
    return _quadratic("quadratic_ou_easy", (0.2, 0.2, 0.1), steps, dim, dtype)


def quadratic_ou_hard(steps: int = 50, dim: int = 20, dtype: torch.dtype = torch.float32) -> ControlBenchmark:
    """The problem ``b = x``, ``f = |x|²``, ``g = ½|x|²``, started at ``|x|² = 5``."""
    return _quadratic("quadratic_ou_hard", (1.0, 1.0, 0.5), steps, dim, dtype)


def linear_ou(steps: int = 100, dim: int = 10, dtype: torch.dtype = torch.float32) -> ControlBenchmark:
    """Gives ``b = −x``, ``f = 0``, ``g = Σ x_i``, started at zero; ``u*(t, x) = −e^{−(T − t)}`` in every coordinate."""
    cost = Quadratic.linear(torch.ones(dim, dtype=torch.float64))
    start = torch.zeros(dim, dtype=torch.float64)
    return _linear_quadratic("linear_ou", OrnsteinUhlenbeck(1.0, 1.0), (None, cost), start, steps, dtype)


def double_well(steps: int = 200, dtype: torch.dtype = torch.float32) -> ControlBenchmark:
    """Ten double wells from their saddle: ``b = −∇Σκ_i(x_i² − 1)²``, ``g = Σν_i(x_i² − 1)²``; κ = 5, ν = 3 in three.

    κ = ν = 1 in the other seven. By symmetry half of the optimal distribution ends in either well of every coordinate.
    """
    kinds, columns = ((5.0, 3.0, 1.9), (1.0, 1.0, 2.5)), (0,) * 3 + (1,) * 7
    kappa, nu = (torch.tensor([kinds[c][i] for c in columns], dtype=torch.float64) for i in (0, 1))
    grid = TimeGrid.uniform(steps)
    chains, limits = [], []
    for strength, weight, half in kinds:
        line = LineProblem(_well(strength), 0.0, -half, half, terminal=_WellCost(torch.tensor([weight])))
        chains.append(ChainOnLine(line, grid).solve())
        limits.append(LimitOnLine(line, 250))

    def total(values: list[float]) -> float:
        return sum(values[c] for c in columns)

    truth = Truth(
        total([limit.value for limit in limits]),
        total([chain.tilted for chain in chains]),
        total([chain.optimum for chain in chains]),
        CoordinateControl(tuple(chain.control for chain in chains), columns),
        CoordinateControl(tuple(limits), columns),
    )
    process = DriftProcess(WellDrift(kappa), 1.0, dimension=len(columns))
    start = Point(torch.zeros(len(columns), dtype=dtype))
    problem = ControlProblem(process, start, terminal_cost=_WellCost(nu))
    return ControlBenchmark("double_well", problem, grid, truth, positive=0.5)


def killed_well(
    steps: int = 150, correction: BridgeCorrection | None = None, dtype: torch.dtype = torch.float32
) -> ControlBenchmark:
    """The problem ``b = −4x(x² − 1)`` from −1, ``f = 1`` until ``x ≥ 0``: the optimal control leaves the well soon.

    The stopping time is seen at grid points, which makes it late by ``O(√Δ)``, or corrected for crossings between.
    """
    grid = TimeGrid.uniform(steps)
    line = LineProblem(_well(1.0), -1.0, -2.8, 0.01, _until_stopped, None, Barrier(0.0, correction is not None))
    chain, limit = ChainOnLine(line, grid).solve(), LimitOnLine(line)
    truth = Truth(limit.value, chain.tilted, chain.optimum, chain.control, limit)
    problem = ControlProblem(
        _well(1.0),
        Point(torch.full((1,), -1.0, dtype=dtype)),
        running_cost=_until_stopped,
        stopping=StoppingSet(_position, correction),
    )
    return ControlBenchmark("killed_well", problem, grid, truth)


@dataclass(frozen=True, eq=False)
class _WellCost:
    """The cost ``Σ_i ν_i (x_i² − 1)²``."""

    weights: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.square() - 1.0).square() @ self.weights.to(x)


def _well(strength: float) -> DriftProcess:
    return DriftProcess(WellDrift(torch.tensor([strength], dtype=torch.float64)), 1.0, dimension=1)


def _until_stopped(t: Time, x: Tensor) -> Tensor:
    return torch.ones_like(x[:, 0])


def _position(x: Tensor) -> Tensor:
    return x[:, 0]


def _quadratic(
    name: str, factors: tuple[float, float, float], steps: int, dim: int, dtype: torch.dtype
) -> ControlBenchmark:
    drift, f, g = factors
    costs = Quadratic.isotropic(f, dim), Quadratic.isotropic(g, dim)
    start = torch.full((dim,), (5.0 / dim) ** 0.5, dtype=torch.float64)
    return _linear_quadratic(name, OrnsteinUhlenbeck(-drift, 1.0), costs, start, steps, dtype)


def _linear_quadratic(
    name: str,
    process: LinearProcess,
    costs: tuple[Quadratic | None, Quadratic],
    start: Tensor,
    steps: int,
    dtype: torch.dtype,
) -> ControlBenchmark:
    grid, (running, terminal) = TimeGrid.uniform(steps), costs
    known = Quadratic.isotropic(0.0, len(start)) if running is None else running
    limit, chain = Riccati(process, known, terminal), ChainRiccati(process, known, terminal, grid)
    x = start.unsqueeze(0)
    truth = Truth(
        float(limit.value_function(x)),
        float(chain.tilted_value_function(x)),
        float(chain.value_function(x)),
        chain.control,
        limit.control,
    )
    cost = None if running is None else running.running
    problem = ControlProblem(process, Point(start.to(dtype)), cost, terminal)
    return ControlBenchmark(name, problem, grid, truth)
