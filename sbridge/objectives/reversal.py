"""The action of a reversal on simulated paths: the distance of a backward measure from the reversed forward one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.measures import Paths
from sbridge.measures.ratios import half_square_gap
from sbridge.processes import Direction
from sbridge.simulation.engine import check_control


def reversal_action(paths: Paths, control: Control, first: int = 0) -> Tensor:
    """Computes ``Σ_k ½|ξ'_k|² − ½|ξ_k|²`` for each path, shape ``(batch,)``: the path KL of the backward control.

    ``ξ'_k`` is the noise with which the backward chain, under ``û``, steps from ``x_{k+1}`` back to ``x_k``. The mean
    over paths is ``KL(P ‖ P^û)`` up to terms without ``û``, exactly for the chain at any step size (the
    kernel form of Premkumar 2023, eqs. (3.18) and (3.36)); as the steps shrink its minimiser tends to
    ``û = σᵀ∇log p − u``. It requires only simulated paths, no transition density and no score.

    Args:
        paths: of a forward measure, any process; taken as constants.
        control: ``û``, called once with all states: ``t`` of shape ``(steps · batch,)``.
        first: index of the first interval that is included; 1 excludes the one next to the data.
    """
    chain = paths.chain
    back = replace(chain, direction=Direction.BACKWARD)
    later = paths.x[first + 1 :].detach()
    steps, batch, dim = later.shape
    states = later.reshape(-1, dim)
    times = chain.times[first + 1 :].to(states.device).repeat_interleave(batch)
    controls = control(times, states)
    check_control(controls, states)
    total = later.new_zeros(batch, dtype=torch.float64)
    for k, u in enumerate(controls.reshape(steps, batch, dim).unbind(0), start=first):
        j = chain.length - 1 - k
        needed = back.shift(j, paths.x[k + 1].detach(), paths.x[k].detach())
        xi, taken = paths.noise[k], needed - back.root_durations[j] * u
        total = total + half_square_gap(taken, xi)
    return total.to(paths.x.dtype)
