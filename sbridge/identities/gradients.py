"""The three score-matching losses have one gradient: what training follows does not depend on which is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import Score
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.draws import GAP, Noised, combined, noised, precise, trace_probes
from sbridge.identities.settings import Perturbed, Setting
from sbridge.measures import Estimate
from sbridge.objectives import score_matching as losses

_GROUPS, _GROUP_ROWS = 128, 512
Loss = Callable[[Noised, Score], Tensor]
"""One number a row, without the weight."""


@identity(
    group="action",
    statement="∇_θ of explicit, denoising and implicit score matching agree",
    equation="Premkumar 2023, eq. (3.37), (3.43); Vincent 2011; Hyvärinen 2005",
    kind=Kind.EQUALITY,
    left="derivative of the denoising, or the implicit, loss along a fixed direction of θ",
    right="derivative of the explicit loss, other draws",
)
def gradients_agree(setting: Setting) -> Iterator[Outcome]:
    """All three losses pull θ the same way."""

    def explicit(one: Noised, score: Score) -> Tensor:
        return losses.explicit(setting.process, one.t, score(one.t, one.x), setting.exact(one.t, one.x).detach())

    def denoising(one: Noised, score: Score) -> Tensor:
        there, back = (losses.denoising(setting.process, o.t, score(o.t, o.x), o.noise) for o in (one, one.opposite))
        return 0.5 * (there + back)

    def implicit(one: Noised, score: Score) -> Tensor:
        return losses.implicit(setting.process, one.t, one.x, score, trace_probes(setting, one))

    for name, loss in (("denoising", denoising), ("implicit", implicit)):
        left, right = _by_size(setting, loss, name), _by_size(setting, explicit, f"{name}, explicit")
        error = combined(left, right).standard_error
        yield Outcome(left.value, right.value, error, note=f"{name}, size of the fixed perturbation")
    if isinstance(setting.network, nn.Module):
        direction = _gradient(setting, setting.network, explicit, noised(setting, 8192, 1.0, "direction"))
        norm = math.sqrt(sum(float(part.square().sum()) for part in direction.values()))
        direction = {key: part / max(norm, 1e-30) for key, part in direction.items()}
        for name, loss in (("denoising", denoising), ("implicit", implicit)):
            left = _along(setting, setting.network, loss, direction, name)
            right = _along(setting, setting.network, explicit, direction, name)
            error = Estimate.of(left - right).standard_error
            note = f"{name}, weights of the trained network, the same draws"
            yield Outcome(float(left.mean()), float(right.mean()), error, note=note)


def _by_size(setting: Setting, loss: Loss, stream: str) -> Estimate:
    """``d/dθ`` of the loss of ``∇log ρ + θ · perturbation`` at ``θ = 1``, row by row."""
    field = Perturbed.sized(setting, GAP)

    def rows(one: Noised) -> Tensor:
        with torch.enable_grad():
            theta = torch.ones(len(one.t), 1, dtype=torch.float64, requires_grad=True)

            def score(t: Time, x: Tensor) -> Tensor:
                return setting.exact(t, x) + theta * field.size * field.offset(t, x)

            (found,) = torch.autograd.grad(loss(one, score).sum(), theta)
        return one.weight * found[:, 0]

    return precise(setting, rows, "gradient", stream)


def _along(setting: Setting, network: nn.Module, loss: Loss, direction: dict[str, Tensor], stream: str) -> Tensor:
    """``⟨∇_θ loss, direction⟩`` for groups of rows, whose spread gives the standard error."""
    found = []
    for part in range(_GROUPS):
        gradient = _gradient(setting, network, loss, noised(setting, _GROUP_ROWS, 0.3, "group", stream, part))
        found.append(sum(float((gradient[key] * direction[key]).sum()) for key in direction))
    return torch.tensor(found, dtype=torch.float64)


def _gradient(setting: Setting, network: nn.Module, loss: Loss, one: Noised) -> dict[str, Tensor]:
    """``∇_θ`` of the mean loss; the network itself is left alone."""
    weights = {key: value.detach().clone().requires_grad_() for key, value in network.named_parameters()}

    def score(t: Time, x: Tensor) -> Tensor:
        return torch.func.functional_call(network, weights, (t, x))

    with torch.enable_grad():
        mean = (one.weight * loss(one, score)).mean()
        found = torch.autograd.grad(mean, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))
