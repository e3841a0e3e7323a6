"""The Riccati equation of the linear–quadratic problem in continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import NotConvergedError
from sbridge.exact.riccati.base import LinearQuadratic, unbounded
from sbridge.problems import Quadratic
from sbridge.processes.base import Time, as_time, check_time
from sbridge.storage.registry import register

_TOLERANCE = 1e-11  # relative, of the value function between two step sizes
_MOST_STEPS = 2**14
_GROWTH = 4.0


@register
@dataclass(frozen=True, eq=False)
class Riccati(LinearQuadratic):
    """The linear–quadratic problem in continuous time.

    ``F = W U⁻¹`` with ``(U, W)`` the flow of the Hamiltonian matrix ``[[A, −2a], [−P, −Aᵀ]]`` (Davison & Maki 1973),
    exponentiated exactly if the coefficients are constant, by Magnus' series of sixth order (Blanes, Casas & Ros 2000)
    if they are not; ``∫tr(aF) = ½(∫tr A + log det U)`` over a step. Errors grow at most as fast as the flow itself, so
    the method also works for stiff problems. Steps are halved until the value has 11 digits.

    Raises:
        NonFiniteError: if the value is infinite, because a cost is not bounded below and exceeds the cost of the
            control.
        NotConvergedError: if coefficients vary too fast in time.
    """

    _gains: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    def gain(self, t: Time) -> Tensor:
        """Computes ``−2 σᵀ F(t)``."""
        times = as_time(check_time(t, self.process.horizon))[..., 0]
        if times.ndim == 0:
            return self._gain_at(float(times))
        moments, index = times.unique(return_inverse=True)
        return torch.stack([self._gain_at(float(moment)) for moment in moments])[index.cpu()]

    def value_at(self, t: float) -> Quadratic:
        """Computes ``V(t, ·)``."""
        return Quadratic.of(*self._value_at(t))

    def _gain_at(self, t: float) -> Tensor:
        if t not in self._gains:
            sigma = self.process.scale(t).expanded(self.dim)
            self._gains[t] = -2.0 * sigma.mT @ self._value_at(t)[0][:-1]
        return self._gains[t]

    def _value_at(self, t: float) -> tuple[Tensor, Tensor]:
        """Computes ``F`` and ``κ`` at any time: one step from the next knot."""
        knots, values, constants = self._table
        k = min(int(torch.searchsorted(knots, t, right=True)), len(knots) - 1)
        here = torch.tensor([t, float(knots[k])], dtype=torch.float64, device="cpu")
        flow, trace = self._flow(here, self.running.homogeneous)
        value, gained = _pull_back(flow[0], trace[0], values[k])
        return value, constants[k] + gained

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Knots with ``F`` and ``κ`` at each."""
        running, terminal = self.running.homogeneous, self.terminal.homogeneous
        steps, before = self._first_steps, None
        while steps <= _MOST_STEPS:
            table = self._integrate(steps, running, terminal)
            first = torch.cat([table[1][0].reshape(-1), table[2][:1]])
            if before is not None and bool((first - before).abs().max() <= _TOLERANCE * first.abs().max()):
                return table
            steps, before = 2 * steps, first
        raise NotConvergedError(
            f"the Riccati equation did not converge with {_MOST_STEPS} steps: its coefficients vary too fast in time."
        )

    @property
    def _first_steps(self) -> int:
        """Number of steps over which the flow grows by at most about ``e^4``: then ``U`` is well conditioned."""
        times = torch.linspace(0.0, self.process.horizon, 33, dtype=torch.float64, device="cpu")
        size = torch.linalg.matrix_norm(self._hamiltonian(times, self.running.homogeneous)).max()
        return 2 ** max(3, math.ceil(math.log2(1.0 + float(size) * self.process.horizon / _GROWTH)))

    @cached_property
    def _unit(self) -> float:
        """The unit of ``W`` in which both off-diagonal blocks of the Hamiltonian matrix have the same size."""
        sigma = self.process.scale(0.5 * self.process.horizon).expanded(self.dim)
        cost = float(torch.linalg.matrix_norm(self.running.homogeneous))
        return math.sqrt(cost / (2.0 * float(torch.linalg.matrix_norm(sigma @ sigma.mT)))) if cost > 0 else 1.0

    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        _, values, constants = self._integrate(len(self._table[0]) - 1, running, terminal)
        return values[0], constants[0]

    def _integrate(self, steps: int, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = torch.linspace(0.0, self.process.horizon, steps + 1, dtype=torch.float64, device="cpu")
        flows, traces = self._flow(knots, running)
        values, constants = [terminal], [terminal.new_zeros(())]
        for flow, trace in zip(reversed(flows.unbind(0)), reversed(traces.unbind(0)), strict=True):
            value, gained = _pull_back(flow, trace, values[-1])
            values.append(value)
            constants.append(constants[-1] + gained)
        return knots, torch.stack(values[::-1]), torch.stack(constants[::-1])

    def _flow(self, knots: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the Hamiltonian flow back over every interval, and ``∫tr A``."""
        left, span = knots[:-1], knots.diff()
        nodes = [left + span * (0.5 + shift * math.sqrt(0.15)) for shift in (-1.0, 0.0, 1.0)]
        one, two, three = (self._hamiltonian(node, running) for node in nodes)
        h = span.reshape(-1, 1, 1)
        # the method of sixth order of Blanes et al. 2000 on the three Gauss–Legendre nodes
        first, slope, bend = (
            h * two,
            h * (three - one) * (math.sqrt(15.0) / 3.0),
            h * (three - 2.0 * two + one) * (10 / 3),
        )
        c1 = _commutator(first, slope)
        c2 = -_commutator(first, 2.0 * bend + c1) / 60.0
        exponent = first + bend / 12.0 + _commutator(-20.0 * first - bend + c1, slope + c2) / 240.0
        size = self.dim + 1
        traces = [m[:, :size, :size].diagonal(dim1=1, dim2=2).sum(1) for m in (one, two, three)]
        flow = torch.linalg.matrix_exp(-exponent)
        unit = torch.cat(
            [
                torch.ones(size, dtype=torch.float64, device="cpu"),
                torch.full((size,), self._unit, dtype=torch.float64, device="cpu"),
            ]
        )
        return flow * unit.unsqueeze(1) / unit, span * (5.0 * traces[0] + 8.0 * traces[1] + 5.0 * traces[2]) / 18.0

    def _hamiltonian(self, times: Tensor, running: Tensor) -> Tensor:
        """Computes ``[[A, −2a], [−P, −Aᵀ]]`` with ``W`` in its unit, shape ``(n, 2 dim + 2, 2 dim + 2)``."""
        n, dim = len(times), self.dim
        a = torch.zeros(n, dim + 1, dim + 1, dtype=torch.float64, device="cpu")
        a[:, :-1, :-1] = self.process.linear(times).expanded(dim)
        a[:, :-1, -1] = self.process.offset(times).expand(n, dim)
        sigma = self.process.scale(times).expanded(dim)
        noise = torch.zeros_like(a)
        noise[:, :-1, :-1] = sigma @ sigma.mT
        upper = torch.cat([a, -2.0 * self._unit * noise], 2)
        lower = torch.cat([-running.expand_as(a) / self._unit, -a.mT], 2)
        return torch.cat([upper, lower], 1)


def _pull_back(flow: Tensor, trace: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Moves ``F`` one step back, and returns the increase of ``κ``."""
    size = len(value)
    u = flow[:size, :size] + flow[:size, size:] @ value
    w = flow[size:, :size] + flow[size:, size:] @ value
    sign, volume = torch.linalg.slogdet(u)
    if not bool(sign > 0):
        raise unbounded()
    earlier = torch.linalg.solve(u.mT, w.mT)
    return 0.5 * (earlier + earlier.mT), 0.5 * (trace + volume)


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a
