"""Dynamic programming for a chain in one dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sbridge.benchmarks.quadrature.controls import TabulatedControl
from sbridge.benchmarks.quadrature.problem import LineProblem
from sbridge.errors import InvalidInputError, NotConvergedError
from sbridge.processes import Direction, EulerMaruyama, StepRule
from sbridge.time import TimeGrid

_PANEL = 2.5  # standard deviations of a step a panel
_NODES = 10
_PAD = 9.0  # standard deviations beyond the interval
_TABLE = 161
_NEWTON = 60
_SETTLED = 1e-6  # a change this small is followed by one of about its square
_LOST = 1e-8


@dataclass(frozen=True, eq=False)
class LineSolution:
    """Result of dynamic programming.

    Args:
        tilted: ``−log E[e^{−ΣΔf − g}]`` over the uncontrolled chain: what ``−log E α`` estimates.
        optimum: the least ``E[ΣΔ(f + ½u²) + g]`` over feedback controls: what objectives approach from above.
        energy: ``E ΣΔ u*²``.
        control: ``u*``, constant between knots.
        nodes: points of the line, shape ``(n,)``.
        masses: the optimal distribution of the states of paths that have not ended, as masses at the nodes,
            ``(N + 1, n)``. The first row, a point mass, is left zero.
    """

    tilted: float
    optimum: float
    energy: float
    control: TabulatedControl
    nodes: Tensor
    masses: Tensor


@dataclass(frozen=True, eq=False)
class ChainOnLine:
    """The chain of a :class:`LineProblem` on a grid with a step rule.

    ``φ_k = e^{−Δf} E φ_{k+1}`` gives the tilted value; ``V_k(x) = min_w Δf + ½w² + E V_{k+1}(m(x) + L(w + ξ))`` with
    ``w = √Δ u`` the optimum, by Newton's method. Expectations are Gauss–Legendre sums on panels of 2.5 standard
    deviations of a step, cut at the barrier: about ten digits where costs are smooth.

    Args:
        problem: on the line.
        grid: the knots.
        rule: how the process becomes a chain.
    """

    problem: LineProblem
    grid: TimeGrid
    rule: StepRule = field(default_factory=EulerMaruyama)

    def solve(self) -> LineSolution:
        """Computes the values backward, then the distribution forward.

        Raises:
            InvalidInputError: if the optimal distribution leaves the interval.
            NotConvergedError: if the Bellman minimisation has no unique solution, at steps that are far too long.
        """
        problem, times = self.problem, self.grid.times(self.problem.process.horizon)
        like = torch.zeros(1, 1, dtype=torch.float64)
        steps = self.rule.steps(problem.process, times, Direction.FORWARD, like)
        deviations = [float(steps.roots.at(k).expanded(1).abs()) for k in range(self.grid.steps)]
        nodes, weights = _panels(problem, min(deviations), max(deviations))
        end = problem.high if problem.barrier is None else problem.barrier.position
        table = torch.linspace(problem.low, end, _TABLE, dtype=torch.float64)
        places = torch.cat([nodes.clamp(problem.low, end), table, torch.tensor([problem.start], dtype=torch.float64)])
        bellman = _Bellman(problem, nodes, weights, places)
        count, spans = len(nodes), times.diff()
        value, ended = bellman.stop, (-bellman.stop).exp()
        phi = ended
        w, plan = torch.zeros_like(places), []
        tilted = best = w
        for k in reversed(range(self.grid.steps)):
            mean = places + steps.move(k, places.unsqueeze(1)).squeeze(1)
            cost = spans[k] * problem.running_at(float(times[k]), places)
            here = _Step(bellman, mean, deviations[k])
            tilted = (-cost).exp() * here.expect(mean, phi, ended)
            w = here.steer(value, w)
            best = cost + 0.5 * w.square() + here.expect(mean + deviations[k] * w, value, bellman.stop)
            plan.append((w, mean + deviations[k] * w))
            phi, value = bellman.ending(tilted[:count], ended), bellman.ending(best[:count], bellman.stop)
        plan.reverse()
        masses = self._forward(bellman, plan, deviations)
        shifts = torch.stack([w for w, _ in plan])
        spent = shifts[0, -1].square() + (masses[1:-1] * shifts[1:, :count].square()).sum()
        controls = shifts[:, count:-1] / spans.sqrt().unsqueeze(1)
        control = TabulatedControl(times[:-1], problem.low, float(table[1] - table[0]), controls)
        return LineSolution(-math.log(float(tilted[-1])), float(best[-1]), float(spent), control, nodes, masses)

    def _forward(self, bellman: _Bellman, plan: list[tuple[Tensor, Tensor]], deviations: list[float]) -> Tensor:
        nodes, count = bellman.nodes, len(bellman.nodes)
        masses = torch.zeros(len(plan) + 1, count, dtype=torch.float64)
        kept = torch.ones_like(bellman.places[-1:])
        from_where = slice(-1, None)
        for k, (_, aim) in enumerate(plan):
            flow = bellman.kernel(aim[from_where], deviations[k])
            flow = flow * (1.0 - bellman.crossing(bellman.places[from_where], deviations[k]))
            masses[k + 1] = torch.where(bellman.problem.stopped(nodes), 0.0, kept @ flow)
            kept, from_where = masses[k + 1], slice(0, count)
        beyond = (nodes < bellman.problem.low) | (nodes > bellman.problem.high)
        if float(masses[:, beyond].sum(1).max()) > _LOST:
            raise InvalidInputError(
                f"the optimal distribution has mass {float(masses[:, beyond].sum(1).max()):.2g} outside "
                f"[{bellman.problem.low:g}, {bellman.problem.high:g}]; choose a wider interval."
            )
        return masses


@dataclass(frozen=True, eq=False)
class _Bellman:
    """Nodes and weights of integrals over the next state, and the points at which values are needed."""

    problem: LineProblem
    nodes: Tensor
    weights: Tensor
    places: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", self.problem.terminal_at(self.nodes))

    stop: Tensor = field(init=False)

    def ending(self, values: Tensor, ended: Tensor) -> Tensor:
        """Returns values at the nodes, with those of ended paths inserted."""
        return torch.where(self.problem.stopped(self.nodes), ended, values)

    def kernel(self, aim: Tensor, deviation: float) -> Tensor:
        """Computes ``w_j N(y_j; aim_i, L²)``, shape ``(len(aim), nodes)``."""
        z = (self.nodes - aim.unsqueeze(1)) / deviation
        return (-0.5 * z.square()).exp() * (self.weights / (deviation * math.sqrt(2.0 * math.pi)))

    def crossing(self, x: Tensor, deviation: float) -> Tensor:
        """Computes the probability that a path ends between its steps, of shape ``(len(x), nodes)`` or a zero."""
        barrier = self.problem.barrier
        if barrier is None or not barrier.between_knots:
            return torch.zeros((), dtype=torch.float64)
        here, there = (barrier.position - y for y in (x.unsqueeze(1), self.nodes))
        return torch.exp(-2.0 * (here * there).clamp_min(0.0) / deviation**2)


class _Step:
    """One step of the recursion."""

    def __init__(self, bellman: _Bellman, mean: Tensor, deviation: float) -> None:
        self.bellman, self.mean, self.deviation = bellman, mean, deviation
        self.crossing = bellman.crossing(bellman.places, deviation)

    def expect(self, aim: Tensor, values: Tensor, ended: Tensor) -> Tensor:
        """Computes ``E[value]`` after the step, for a mean ``aim`` at each point."""
        return (self.bellman.kernel(aim, self.deviation) * self._mixed(values, ended)).sum(1)

    def steer(self, value: Tensor, w: Tensor) -> Tensor:
        """Computes the minimising ``w``, from a guess."""
        mixed = self._mixed(value, self.bellman.stop)
        for _ in range(_NEWTON):
            aim = self.mean + self.deviation * w
            weighted = self.bellman.kernel(aim, self.deviation) * mixed
            z = (self.bellman.nodes - aim.unsqueeze(1)) / self.deviation
            slope = w + (weighted * z).sum(1)
            curvature = 1.0 + (weighted * (z.square() - 1.0)).sum(1)
            change = (slope / curvature.clamp_min(0.2)).clamp(-2.0, 2.0)
            w = w - change
            if float(change.abs().max()) < _SETTLED:
                return w
        raise NotConvergedError(
            "the minimisation in Bellman's equation did not converge: the value bends more within a step than the "
            "control's cost. Use more steps."
        )

    def _mixed(self, values: Tensor, ended: Tensor) -> Tensor:
        return values + self.crossing * (ended - values)


def _panels(problem: LineProblem, narrowest: float, widest: float) -> tuple[Tensor, Tensor]:
    """Returns Gauss–Legendre nodes and weights on the padded interval."""
    cuts = [problem.low - _PAD * widest, problem.high + _PAD * widest]
    if problem.barrier is not None:
        cuts.insert(1, problem.barrier.position)
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes, found = [], []
    for a, b in pairwise(cuts):
        panels = max(1, math.ceil((b - a) / (_PANEL * narrowest)))
        edges = np.linspace(a, b, panels + 1)
        half = 0.5 * np.diff(edges)[:, None]
        nodes.append((edges[:-1, None] + half * (1.0 + points)).ravel())
        found.append((half * weights).ravel())
    return torch.from_numpy(np.concatenate(nodes)), torch.from_numpy(np.concatenate(found))
