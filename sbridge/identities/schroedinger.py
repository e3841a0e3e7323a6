"""Schrödinger's question: the most probable transport of particles, and the static and dynamic value of the problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.special import gammaln, ndtr
from torch import Tensor

from sbridge.fitting import solve
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.identities.tools.components import Components
from sbridge.identities.tools.derivatives import gradient
from sbridge.identities.tools.line import line_grid, shifted_target
from sbridge.identities.tools.noising import POINTS, noising_states
from sbridge.laws import Law, Samples
from sbridge.measures.ratios import control_value
from sbridge.pde import Grid, half_steps, log_density_on, solve_schroedinger
from sbridge.pde.kernels import resolved_kernel
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess
from sbridge.solvers import SinkhornBridge
from sbridge.time import TimeGrid
from sbridge.transport import EntropicProblem, Sinkhorn, entropic_plan, log_transport_probability, sinkhorn

schroedinger_identity = partial(identity, group="Schrödinger")
_CELLS = 4
_SMALL = 1e-6
_KNOTS = (20, 40)
_FINENESS = 2.4  # cells in the narrowest deviation


@dataclass(frozen=True, eq=False)
class Urn:
    """Particles that move from a few cells to a few other cells.

    Attributes:
        start, end: whitened positions of the cells, shape ``(cells, dim)``; the cost is half their squared distance.
    """

    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, setting: Setting) -> Urn:
        """Takes a few data points as start cells, and states that they reach at ``T`` as end cells."""
        x, y = (states[:_CELLS] for states in noising_states(setting, (setting.horizon,), "urn"))
        law = setting.process.transition(0.0, setting.horizon)
        whiten = law.root.inverse()
        return cls(whiten(law.mean(x)), whiten(y))

    @property
    def kernel(self) -> np.ndarray:
        """``g_kl ∝ R(y_l | x_k)``."""
        return torch.softmax(-0.5 * torch.cdist(self.start, self.end).square(), 1).numpy()

    def log_probability(self, counts: np.ndarray) -> float:
        """Computes ``log Π_k N_k! Π_l g_kl^{c_kl}/c_kl!``."""
        return float(log_transport_probability(counts, self.kernel))

    def most_probable(self, particles: int) -> np.ndarray:
        """Finds the integers ``c_kl`` of largest probability among those with equal row and column sums.

        Particles are exchanged between four cells as long as the probability grows; its logarithm is concave along
        every exchange. Steps are halved from a quarter of a cell to one particle.
        """
        counts = np.full((_CELLS, _CELLS), particles // _CELLS**2, dtype=np.int64)
        step, log_kernel = max(1, particles // (4 * _CELLS**2)), np.log(self.kernel)
        while step:
            moved = True
            while moved:
                moved = False
                for k, other, m, n in _SQUARES:
                    change = np.zeros_like(counts)
                    change[k, m] = change[other, n] = step
                    change[k, n] = change[other, m] = -step
                    after = counts + change
                    if after.min() < 0:
                        continue
                    gain = (change * log_kernel).sum() - (gammaln(after + 1.0) - gammaln(counts + 1.0)).sum()
                    if gain > 1e-9:
                        counts, moved = after, True
            step //= 2
        return counts


_SQUARES = [  # rows k < l, columns m ≠ n
    (k, other, m, n)
    for k in range(_CELLS)
    for other in range(_CELLS)
    for m in range(_CELLS)
    for n in range(_CELLS)
    if k < other and m != n
]


@schroedinger_identity(
    statement="log P = −N·KL(c ‖ p_0 g) + ½Σ log 2πN_k − ½Σ log 2πc_kl + O(1/N)",
    equation="Premkumar 2023, eq. (3.7)–(3.13); Schrödinger 1931",
    kind=Kind.ORDER,
    left="order in 1/N of the remainder, for the multinomial probability of a transport plan",
    right="1",
)
def urn_probability_is_exponential_in_the_divergence(setting: Setting) -> Outcome:
    """Checks a transport plan that is not the most probable one."""
    urn = Urn.of(setting)
    shape = np.arange(1, _CELLS**2 + 1).reshape(_CELLS, _CELLS)
    sizes, left = (1, 4, 16), []
    for factor in sizes:
        counts = (10 * factor * shape).astype(np.float64)
        rows = counts.sum(1, keepdims=True)
        divergence = float((counts * np.log(counts / rows / urn.kernel)).sum())
        roots = 0.5 * np.log(2 * np.pi * rows).sum() - 0.5 * np.log(2 * np.pi * counts).sum()
        left.append(abs(urn.log_probability(counts) + divergence - float(roots)))
    slope = -float(np.polyfit(np.log(sizes), np.log(left), 1)[0])
    return Outcome(slope, 1.0, allowance=0.1, note=f"{10 * shape.sum()} to {160 * shape.sum()} particles")


@schroedinger_identity(
    statement="the most probable transport plan between given occupation numbers is Sinkhorn's plan",
    equation="Premkumar 2023, eq. (3.14); Schrödinger 1931",
    kind=Kind.EQUALITY,
    left="mean cost of the integer plan of largest multinomial probability, found by exchanges",
    right="mean cost of the entropic plan, by sbridge and by POT",
)
def most_probable_transport_is_sinkhorns(setting: Setting) -> Iterator[Outcome]:
    """Checks equal occupation numbers; the allowance is the change with a quarter of the particles, plus rounding."""
    urn = Urn.of(setting)
    cost = 0.5 * torch.cdist(urn.start, urn.end).square().numpy()
    few, many = (float((urn.most_probable(n) * cost).sum()) / n for n in (2**16, 2**18))
    allowance = abs(many - few) + float(cost.sum()) / 2**18
    plans = {
        "sbridge.transport.sinkhorn": sinkhorn(
            EntropicProblem(urn.start, urn.end, 1.0), Sinkhorn(tolerance=1e-9)
        ).plan(),
        "POT": entropic_plan(urn.start, urn.end, 1.0, tolerance=1e-9),
    }
    for note, plan in plans.items():
        yield Outcome(many, float((plan.numpy() * cost).sum()), allowance=allowance, note=note)


@schroedinger_identity(
    statement="min_π {E_π ½|r|²_Q⁻¹ + KL(π ‖ p_0 ⊗ p_T)} + ½ log det 2πQ − H(p_T) = ½ E ∫|u*|² dt",
    equation="Léonard 2014; Premkumar 2023, eq. (3.15)–(3.18)",
    kind=Kind.EQUALITY,
    left="POT's plan between quantiles of both ends, extrapolated in their number",
    right="energy of the control of the Schrödinger system solved on a grid, Simpson's rule in time",
    applies=Setting.has_density_on_line,
)
def static_value_is_dynamic_value(setting: Setting) -> Outcome:
    """Solves from the data to :func:`shifted_target`."""
    target, law = shifted_target(setting), setting.process.transition(0.0, setting.horizon)
    grid = line_grid(setting, _FINENESS)
    energies = [
        solve_schroedinger(setting.process, setting.data, target, grid, times=TimeGrid.cosine(n)).energy for n in _KNOTS
    ]
    variance = float(law.covariance.values)
    entropy = 0.5 * math.log(2 * math.pi * math.e * float(target.covariance))
    constant = 0.5 * math.log(2 * math.pi * variance) - entropy
    values = []
    for count in (50, 100, 200):
        x, y = (_quantiles(end, grid, count) for end in (setting.data, target))
        near, far = law.root.inverse()(law.mean(x)), law.root.inverse()(y)
        plan = entropic_plan(near, far, 1.0, tolerance=1e-9)
        cost = float((plan * 0.5 * torch.cdist(near, far).square()).sum())
        values.append(cost + float(torch.special.xlogy(plan, plan * count**2).sum()) + constant)
    coarse, fine = (2.0 * b - a for a, b in pairwise(values))
    allowance = abs(fine - coarse) + abs(energies[1] - energies[0])
    return Outcome(fine, energies[1], allowance=allowance, note="quantiles by POT")


@schroedinger_identity(
    statement="the end distributions of iterative proportional fitting of path measures are Sinkhorn's iterates",
    equation="Fortet 1940; Rüschendorf 1995; De Bortoli et al. 2021",
    kind=Kind.RESIDUAL,
    left="L1 distance of the ends after each half-step: chains reversed by Bayes' formula against scaled potentials",
    applies=Setting.has_density_on_line,
)
def path_fitting_is_sinkhorns_iteration(setting: Setting) -> Iterator[Outcome]:
    """Computes four half-steps on three time steps, independently by chains and by potentials."""
    target, grid = shifted_target(setting), line_grid(setting, 1.6)
    kernel = resolved_kernel(setting.process.transition(0.0, setting.horizon), grid)
    start, end = (log_density_on(law, grid) for law in (setting.data, target))
    knots = [k / 3 * setting.horizon for k in range(4)]
    forward = [_table(setting.process, grid, s, t) for s, t in pairwise(knots)]
    whole, volume = np.exp(kernel.table()) * grid.volume, grid.volume
    p0, p1 = np.exp(start) * volume, np.exp(end) * volume
    steps = half_steps(kernel, start, end)
    for number in range(2):
        backward = _reversed_chain(forward, p0)
        step = next(steps)
        reached = _run(backward, p1)
        wanted = np.exp(step.log_phi_hat_start) * (whole @ np.exp(step.log_phi_end)) * volume
        yield Outcome(float(np.abs(reached - wanted).sum()), allowance=_SMALL, note=f"half-step {2 * number + 1}")
        forward = _reversed_chain(backward, p1)
        step = next(steps)
        reached = _run(forward, p0)
        wanted = (np.exp(step.log_phi_hat_start) @ whole) * np.exp(step.log_phi_end) * volume
        yield Outcome(float(np.abs(reached - wanted).sum()), allowance=_SMALL, note=f"half-step {2 * number + 2}")


@schroedinger_identity(
    statement="the bridge of two sets of points has the control σᵀ∇log Σ_j w_j R(y_j | X_t = x)",
    equation="Léonard 2014; Premkumar 2023, eq. (3.26)",
    kind=Kind.RESIDUAL,
    left="largest relative difference between the control of SinkhornBridge and that of POT's plan, differentiated",
)
def sinkhorn_bridge_is_the_plan(setting: Setting) -> Iterator[Outcome]:
    """Solves between data points and whitened states of other paths, 40 each; weights ``w`` follow from the plan."""
    process, horizon = setting.process, setting.horizon
    x, other = noising_states(setting, (horizon,), "points")[0][:40], noising_states(setting, (horizon,), "ends")
    y = other[1][:40]
    solver = SinkhornBridge(sinkhorn=Sinkhorn(tolerance=1e-9))
    bridge = solve(BridgeProblem(Samples(x), Samples(y), process), solver, seed=setting.seed_of("sinkhorn"))
    law = process.transition(0.0, horizon)
    whiten = law.root.inverse()
    plan = entropic_plan(whiten(law.mean(x)), whiten(y), 1.0, tolerance=1e-9)
    log_weights = plan[:1].log() - process.log_transition(0.0, x[:1].expand_as(y), horizon, y)
    for share in (0.0, 0.5):
        t = share * horizon
        points = (x if share == 0.0 else noising_states(setting, (t,), "between")[1])[:POINTS].requires_grad_()
        rows = len(points)
        logs = process.log_transition(t, points.repeat_interleave(len(y), 0), horizon, y.repeat(rows, 1))
        value = torch.logsumexp(logs.reshape(rows, -1) + log_weights, 1)
        wanted = process.scale(t).T(gradient(value, points)).detach()
        with torch.no_grad():
            found = control_value(bridge.forward.control, t, points)
        yield Outcome(
            float((found - wanted).abs().max() / wanted.abs().mean()), allowance=1e-5, note=f"t = {share:g} T"
        )


def _quantiles(law: Law, grid: Grid, count: int) -> Tensor:
    """Returns the quantiles ``(i + ½)/count`` of a mixture, shape ``(count, 1)``."""
    parts = Components.of(law)
    line = np.linspace(grid.low[0], grid.high[0], 100_001)
    below = np.zeros_like(line)
    for weight, mean, variance in zip(parts.weights, parts.means[:, 0], parts.covariances[:, 0, 0], strict=True):
        below += float(weight) * ndtr((line - float(mean)) / math.sqrt(float(variance)))
    return torch.from_numpy(np.interp((np.arange(count) + 0.5) / count, below, line))[:, None]


def _table(process: LinearProcess, grid: Grid, s: float, t: float) -> np.ndarray:
    """Computes ``R(y | x)`` times the cell volume for all pairs of cells, a row for each ``x``."""
    points = grid.points
    pairs = process.log_transition(s, points.repeat_interleave(grid.size, 0), t, points.repeat(grid.size, 1))
    return pairs.exp().reshape(grid.size, grid.size).numpy() * grid.volume


def _reversed_chain(kernels: list[np.ndarray], start: np.ndarray) -> list[np.ndarray]:
    """Returns the kernels of the reversed chain: ``B(x | y) = K(y | x) m(x)/m'(y)``."""
    found = []
    for kernel in kernels:
        joint = start[:, None] * kernel
        start = joint.sum(0)
        found.append((joint / np.maximum(start, 1e-300)).T)
    return found[::-1]


def _run(kernels: list[np.ndarray], start: np.ndarray) -> np.ndarray:
    for kernel in kernels:
        start = start @ kernel
    return start
