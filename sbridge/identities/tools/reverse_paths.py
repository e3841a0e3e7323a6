"""Paths of the reverse process, which several identities share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.diffusion.conversions import ScoreControl
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.identities.settings import Setting
from sbridge.measures import Direction, PathMeasure
from sbridge.processes.chain import Chain
from sbridge.random import generator
from sbridge.simulation.ode import RungeKutta4, flow
from sbridge.time import TimeGrid

_FRACTIONS = (1.0, 0.5, 0.1)  # of the horizon; s_min is added
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Reversal:
    """States of a reversed process, and integrals along its paths.

    Args:
        times: decreasing, down to ``s_min``.
        states: shape ``(len(times), batch, dim)``.
        work: ``∫ (½|û|² + ∇·b) ds + ∫ û·dB`` down to ``s_min``, shape ``(batch,)``; ``∫ ∇·b = log|det Φ|``.
    """

    times: tuple[float, ...]
    states: Tensor
    work: Tensor


def observed_times(setting: Setting) -> tuple[float, ...]:
    """Returns the observed times in decreasing order, from ``T`` to ``s_min``."""
    fractions = (*(f for f in _FRACTIONS if f > setting.start_time), setting.start_time)
    return tuple(f * setting.horizon for f in fractions)


def noised(setting: Setting, t: float, stream: str, multiple: int = 1) -> Tensor:
    """Draws ``multiple · samples`` independent exact states ``X_t``, float64."""
    g = generator(setting.seed_of("noised", stream))
    start = setting.data.sample(multiple * setting.samples, g).double()
    step = setting.process.transition(0.0, t)
    return step.mean(start) + step.root(torch.randn(start.shape, generator=g, dtype=start.dtype))


def run_back(
    setting: Setting, control: Control | None, start: Tensor, stream: str, *, first: int = 0
) -> tuple[Reversal, Reversal]:
    """Runs the process with the backward control ``control`` from ``start``, on a grid and with halved steps.

    The same Brownian motion drives both, so their difference is the error of the time step. Paths are simulated in
    blocks.

    Args:
        setting: process and grid.
        control: ``û``; ``None`` for zero.
        start: states at ``observed_times(setting)[first]``.
        stream: names the noise.
        first: index of the first observed time.
    """
    times = observed_times(setting)[first:]
    coarse = setting.grid().including([t / setting.horizon for t in times])
    fine = coarse.including(0.5 * (a + b) for a, b in pairwise(coarse.fractions))
    chains = [
        PathMeasure(setting.process, control, setting.data, Direction.BACKWARD, grid).chain(start)
        for grid in (coarse, fine)
    ]
    begin, end = (coarse.steps - coarse.index(t / setting.horizon) for t in (times[0], times[-1]))
    places = {coarse.steps - coarse.index(t / setting.horizon) for t in times[:-1]}
    runs = [_Run(chain, control, start) for chain in chains]
    for block, rows in enumerate(torch.arange(len(start)).split(_BLOCK)):
        g = generator(setting.seed_of("reversed", stream, block))
        for run in runs:
            run.begin(rows)
        for j in range(begin, end):
            if j in places:
                for run in runs:
                    run.see()
            halves = torch.randn(2, len(rows), setting.dim, generator=g, dtype=start.dtype)
            widths = chains[1].root_durations[2 * j : 2 * j + 2]
            runs[0].step(j, (widths[0] * halves[0] + widths[1] * halves[1]) / chains[0].root_durations[j])
            runs[1].step(2 * j, halves[0])
            runs[1].step(2 * j + 1, halves[1])
        for run in runs:
            run.finish()
    divergence = float(setting.process.transition(times[-1], times[0]).map.log_abs_det(setting.dim))
    return runs[0].reversal(times, divergence), runs[1].reversal(times, divergence)


class _Run:
    """One chain, simulated block by block."""

    def __init__(self, chain: Chain, control: Control | None, start: Tensor) -> None:
        self.chain, self.control, self.start = chain, control, start
        self.x, self.work, self.seen = start, start[:, 0], list[Tensor]()
        self.states, self.works = list[Tensor](), list[Tensor]()
        self.at, self.span = 0, 0.0

    def begin(self, rows: Tensor) -> None:
        self.x, self.seen, self.span = self.start[rows], [], 0.0
        self.work = torch.zeros(len(rows), dtype=torch.float64)

    def see(self) -> None:
        self.seen.append(self.x)

    def step(self, j: int, noise: Tensor) -> None:
        """Performs a step; the trapezoidal rule sums the energy, left ends the Itô integral."""
        u, width = self._control(j), self.chain.root_durations[j]
        self.work = self.work + 0.25 * (self.span + width**2) * u.square().sum(1) + width * (u * noise).sum(1)
        self.x = self.chain.push(j, self.x, width * u + noise)
        self.at, self.span = j + 1, width**2

    def finish(self) -> None:
        self.states.append(torch.stack([*self.seen, self.x]))
        self.works.append(self.work + 0.25 * self.span * self._control(self.at).square().sum(1))

    def reversal(self, times: tuple[float, ...], divergence: float) -> Reversal:
        return Reversal(times, torch.cat(self.states, 1), torch.cat(self.works) + divergence)

    def _control(self, j: int) -> Tensor:
        return torch.zeros_like(self.x) if self.control is None else self.control(self.chain.step_times[j], self.x)


@lru_cache(maxsize=2)
def exactly_reversed(setting: Setting) -> tuple[Reversal, Reversal]:
    """Simulates the reverse SDE with the true score, from exact draws of ``X_T``."""
    control = ScoreControl(setting.process, setting.exact)
    return run_back(setting, control, noised(setting, setting.horizon, "start"), "exact")


@lru_cache(maxsize=2)
def flowed(setting: Setting) -> tuple[Reversal, Reversal]:
    """Solves the probability-flow ODE with the true score from exact draws of ``X_T``, in steps/4 and steps/2 steps."""
    return _flow(setting, 4), _flow(setting, 2)


def _flow(setting: Setting, stride: int) -> Reversal:
    x, seen = noised(setting, setting.horizon, "start"), observed_times(setting)
    velocity = reverse_diffusion(setting.process, setting.data, setting.exact).current_velocity
    inner = setting.grid().fractions[1:-1:stride]
    grid = TimeGrid((0.0, *inner, 1.0)).including(t / setting.horizon for t in seen)
    times = grid.times(setting.horizon)
    stops = [grid.index(t / setting.horizon) for t in seen]
    states = [x]
    for above, below in pairwise(stops):
        x = flow(velocity, x, times[below : above + 1].flip(0), RungeKutta4()).x
        states.append(x)
    return Reversal(seen, torch.stack(states), x.new_zeros(len(x)))
