"""Half-bridges: the reversal of simulated paths by regression, by likelihood, or by an adjoint.

Paths of one direction step from ``x`` to ``y = m(x) + L(√Δ u + ξ)``, with ``u`` taken where the step starts. The
control ``û`` of the other direction that takes these steps back solves ``û + u(·, y) = Lᵀ∇log p(y)/√Δ``, ``p`` the law
of ``y``. Two losses at ``(t_y, y)`` have it as their minimiser, at any step size, and are equal in the mean::

    mean matching    ½|û + u|² + û·ξ/√Δ            (De Bortoli et al. 2021, arXiv:2106.01357, Prop. 3)
    likelihood       ½|û + u|² + ∇·(L û)/√Δ        (Chen, Liu & Theodorou 2022, arXiv:2110.11291, Thm. 4)

The first is the square ``½|û − (−ξ/√Δ − u)|²`` up to what does not depend on ``û``; the second follows from it by
Gaussian integration by parts. Summed over steps of length ``Δ``, the mean is ``KL(P ‖ P^û)`` up to a constant as
``Δ → 0`` (Vargas et al. 2021, arXiv:2106.02081).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.controls.divergence import Probes, probed_trace
from sbridge.linear import LinearMap
from sbridge.processes import Chain


@dataclass(frozen=True, eq=False)
class StepsTaken:
    """Steps of simulated paths, one a row.

    Attributes:
        x: where they ended, ``y`` above, shape ``(batch, dim)``.
        noise: ``ξ``.
        t: times of ``x``, float64, shape ``(batch,)``.
        before: times at which they started.
        root: ``L``, one for each row.
        span: ``Δ``, shape ``(batch,)``.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    before: Tensor
    root: LinearMap
    span: Tensor

    @classmethod
    def of(cls, chain: Chain, x: Tensor, noise: Tensor, steps: Tensor, rows: Tensor) -> StepsTaken:
        """Step ``steps[i]`` of path ``rows[i]``.

        Args:
            chain: of the paths.
            x: their states, shape ``(N + 1, paths, dim)``.
            noise: their noise, shape ``(N, paths, dim)``.
            steps, rows: indices, shape ``(batch,)``.
        """
        times, device = chain.visited, x.device
        before, after = times[steps], times[steps + 1]
        here, paths = steps.to(device), rows.to(device)
        return cls(
            x[here + 1, paths],
            noise[here, paths],
            after.to(device),
            before.to(device),
            chain.roots(steps),
            (after - before).abs().to(x),
        )

    def mirrored(self) -> StepsTaken:
        """The same steps with ``−ξ``: rows of the same law, since ``ξ`` is symmetric."""
        x = self.x - 2.0 * self.root(self.noise)
        return StepsTaken(x, -self.noise, self.t, self.before, self.root, self.span)


Held = Callable[[StepsTaken], Tensor]
"""What is added to the control that learns: ``u(t, y)`` with ``t`` the time before the step, shape ``(batch, dim)``."""


def mean_matching(taken: StepsTaken, control: Control, held: Held) -> Tensor:
    """``½|û + u|² + û·ξ/√Δ``, averaged over ``ξ`` and ``−ξ``, shape ``(batch,)``.

    The mirrored row leaves the mean as it is, and takes away the part of the noise that grows as ``Δ → 0``: what is
    left of ``û·ξ/√Δ`` is ``ξᵀ (∂û/∂x) L ξ/√Δ`` and higher terms, Hutchinson's estimate of the divergence as a
    difference.
    """
    both = (taken, taken.mirrored())
    t, x = torch.cat([part.t for part in both]), torch.cat([part.x for part in both])
    total = torch.zeros_like(taken.span)
    for part, u in zip(both, control(t, x).chunk(2), strict=True):
        shaken = (u * part.noise).sum(1) / part.span.sqrt()
        total = total + 0.5 * (0.5 * (u + held(part)).square().sum(1) + shaken)
    return total


def likelihood(taken: StepsTaken, control: Control, held: Held, probes: Probes) -> Tensor:
    """``½|û + u|² + ∇·(L û)/√Δ``, shape ``(batch,)``, with the divergence by ``probes``."""
    with torch.enable_grad():
        x = taken.x.detach().requires_grad_()
        u = control(taken.t, x)
        trace = probes.weight * probed_trace(taken.root(u), x, probes.directions, recorded=True)
    return 0.5 * (u + held(taken)).square().sum(1) + trace / taken.span.sqrt()


def terminal_adjoint(chain: Chain, x: Tensor, log_density: Callable[[Tensor], Tensor], other: Control) -> Tensor:
    """``∇(−log p + log φ̂)`` at the far ends ``x`` of a chain's paths, shape ``(batch, dim)``.

    The half-bridge towards the law ``p`` tilts the reference by ``p/φ̂`` at its far end; the gradient of ``log φ̂`` is
    that of the other direction's control there, ``√Δ L^{−ᵀ} û``, with the chain's last step.
    """
    last = chain.length - 1
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_density(point).sum(), point)
    with torch.no_grad():
        u = other(float(chain.visited[-1]), x)
        return chain.root(last).T.inverse()(u) * chain.root_durations[last] - score
