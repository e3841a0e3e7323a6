"""Checks before the first update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.problems import ControlProblem
from sbridge.processes import EulerMaruyama, Process, StepRule
from sbridge.random import generator
from sbridge.time import TimeGrid

_ROUNDS = 12


@torch.no_grad()
def check_steps(problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> None:
    """Raises InvalidInputError if explicit Euler steps are unstable: ``Δ λ > 2``, λ a contraction rate of ``b``.

    The rate is that of the fastest contracting direction of ``∂b/∂x``, by power iteration with difference quotients.
    """
    if not isinstance(rule, EulerMaruyama):
        return
    horizon = problem.process.horizon
    longest = float(grid.times(horizon).diff().max())
    rate = contraction_rate(problem.process, problem.probe)
    if longest * rate > 2.0:
        steps = math.ceil(rate * horizon * (1.0 - 1e-6))  # a difference quotient is that exact
        raise InvalidInputError(
            f"the drift contracts at rate {rate:.3g} near the start, and explicit Euler steps of {longest:.3g} are "
            f"unstable beyond a rate of {2.0 / longest:.3g}. TimeGrid.uniform({steps}) is fine enough; a linear "
            "process can take exact steps instead (rule=ExactTransition())."
        )


def contraction_rate(process: Process, x: Tensor) -> float:
    """The largest ``−eigenvalue`` of ``∂b/∂x`` at ``t = 0`` over the rows of ``x``, if it dominates; else about 0."""
    precise = x.double()
    base = process.drift(0.0, precise)
    v = torch.randn(precise.shape, generator=generator(0, x.device), dtype=precise.dtype, device=x.device)
    v, rate = v / v.norm(dim=1, keepdim=True), torch.zeros(len(x))
    step = 1e-6 * (1.0 + precise.norm(dim=1, keepdim=True))
    for _ in range(_ROUNDS):
        moved = (process.drift(0.0, precise + step * v) - base) / step
        rate = -(moved * v).sum(1)
        v = moved / moved.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return float(rate.max().clamp_min(0.0))
