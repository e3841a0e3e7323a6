"""The three score-matching losses have the same gradient in expectation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Perturbed, Setting
from sbridge.identities.tools.monte_carlo import (
    GAP,
    Cached,
    Noised,
    estimate_mean,
    noised,
    trace_probes,
    with_exact_rows,
)
from sbridge.measures import Estimate
from sbridge.objectives import score_matching as losses

action_identity = partial(identity, group="action")
_GROUPS, _GROUP_ROWS = 128, 512
Loss = Callable[[Noised, Score], Tensor]
"""A loss per draw, without the weight."""


@action_identity(
    statement="explicit, denoising and implicit score matching have the same gradient ∇_θ",
    equation="Premkumar 2023, eq. (3.37), (3.43); Vincent 2011; Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="derivative of the denoising or implicit loss along a fixed direction of θ",
    right="derivative of the explicit loss, independent draws",
)
def gradients_agree(setting: Setting) -> Iterator[Outcome]:
    """Compares the gradients of all three losses."""
    setting = with_exact_rows(setting)
    exact = Cached(setting.exact)

    def explicit(one: Noised, score: Score) -> Tensor:
        return losses.explicit(setting.process, one.t, score(one.t, one.x), exact(one.t, one.x))

    def denoising(one: Noised, score: Score) -> Tensor:
        there, back = (losses.denoising(setting.process, o.t, score(o.t, o.x), o.noise) for o in (one, one.opposite))
        return 0.5 * (there + back)

    def implicit(one: Noised, score: Score) -> Tensor:
        return losses.implicit(setting.process, one.t, one.x, score, trace_probes(setting, one))

    for name, loss in (("denoising", denoising), ("implicit", implicit)):
        left, right = (_by_size(setting, exact, *one) for one in ((loss, name), (explicit, f"{name}, explicit")))
        yield Outcome.of(left, right, note=f"{name}, size of the fixed perturbation")
    if setting.network is not None:
        yield from _by_weights(setting, setting.network, {"denoising": denoising, "implicit": implicit}, explicit)


def _by_weights(setting: Setting, network: Score, others: dict[str, Loss], explicit: Loss) -> Iterator[Outcome]:
    """Compares derivatives along a gradient of the explicit loss from separate draws, for networks with weights."""
    network(
        setting.horizon, torch.zeros(1, setting.dim, dtype=torch.float64)
    )  # a TrainedScore is trained by its first call
    network = copy.deepcopy(network)
    weights = [one.requires_grad_() for module in _modules(network) for one in module.parameters()]
    if not weights:
        return
    direction = _gradient(weights, network, explicit, noised(setting, 8192, 1.0, "direction"))
    direction = direction / direction.norm().clamp_min(1e-30)
    for name, loss in others.items():
        pairs = []
        for part in range(_GROUPS):
            one = noised(setting, _GROUP_ROWS, 0.3, "group", name, part)
            pairs.append([float(_gradient(weights, network, f, one) @ direction) for f in (loss, explicit)])
        left, right = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        yield Outcome.paired(left - right, right, note=f"{name}, weights of the trained network, the same draws")


def _by_size(setting: Setting, exact: Score, loss: Loss, stream: str) -> Estimate:
    """Computes ``d/dθ`` of the loss of ``∇log ρ + θ · perturbation`` at ``θ = 1``, one per draw."""
    field = Perturbed.sized(setting, GAP)

    def rows(one: Noised) -> Tensor:
        with torch.enable_grad():
            theta = torch.ones(len(one.t), 1, dtype=torch.float64, requires_grad=True)

            def score(t: Time, x: Tensor) -> Tensor:
                return exact(t, x) + theta * field.size * field.offset(t, x)

            (found,) = torch.autograd.grad(loss(one, score).sum(), theta)
        return one.weight * found[:, 0]

    return estimate_mean(setting, rows, "gradient", stream)


def _gradient(weights: list[Tensor], network: Score, loss: Loss, one: Noised) -> Tensor:
    """Computes ``∇_θ`` of the mean loss, flat, float64."""
    with torch.enable_grad():
        mean = (one.weight * loss(one, network)).mean()
        found = torch.autograd.grad(mean, weights, materialize_grads=True)
    return torch.cat([part.flatten().double() for part in found])


def _modules(thing: object) -> Iterator[nn.Module]:
    """Yields the modules of a score: itself, or those in its attributes."""
    if isinstance(thing, nn.Module):
        yield thing
    elif dataclasses.is_dataclass(thing):
        for value in vars(thing).values():
            yield from _modules(value)
