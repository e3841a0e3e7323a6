"""Half-bridges: the reversal of simulated paths by regression, by likelihood, or by an adjoint.

Paths of one direction step from ``x`` to ``y = m(x) + L(√Δ u + ξ)``. The other direction steps back from ``y`` to
``m'(y) + L'(√Δ û + ξ')``; it lands on ``x`` if ``√Δ û + ξ' = −(ξ + √Δ h)``, where ``h`` is the control ``u`` at
``(t_x, x)`` for exact steps, and ``u + √Δ L⁻¹ (b(x) − b(y))`` for Euler steps. Two losses at ``(t_y, y)`` have equal
means. Their minimiser is the control whose chain is nearest in ``KL(P ‖ P^û)``, for any step size::

    mean matching    ½|û + h|² + û·ξ/√Δ            (after De Bortoli et al. 2021, arXiv:2106.01357, Prop. 3)
    likelihood       ½|û + h|² + ∇·(L û)/√Δ        (after Chen, Liu & Theodorou 2022, arXiv:2110.11291, Thm. 4)

The first is the square ``½|û − (−ξ/√Δ − h)|²`` up to terms without ``û``; the second follows from it by Gaussian
integration by parts. ``Σ Δ`` times either is that divergence up to a constant; as ``Δ → 0`` it is the one of
Vargas et al. 2021 (arXiv:2106.02081), with the minimiser ``σᵀ∇log p − u``.

Both papers take ``u`` at ``y``. That has the same limit, but at finite steps its errors add up over half-bridges, while
those of the nearest chain do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.controls.divergence import Probes, probed_trace
from sbridge.linear import LinearMap
from sbridge.measures import Paths
from sbridge.processes import Chain


@dataclass(frozen=True, eq=False)
class Transitions:
    """Steps of simulated paths, to be reversed: all of them ``(N, paths, dim)``, or one per row ``(batch, dim)``.

    Attributes:
        x: where they ended, ``y`` above.
        noise: ``ξ``.
        held: ``h``.
        mirrored: ``h`` had the noise been ``−ξ``, with the same start.
    """

    x: Tensor
    noise: Tensor
    held: Tensor
    mirrored: Tensor

    @classmethod
    def of(cls, paths: Paths, base: Control | None = None) -> Transitions:
        """Collects all steps of ``paths``; ``base`` is a known part of ``û``, added to ``h``."""
        chain = paths.chain
        back = replace(chain, direction=chain.direction.opposite)
        held, mirrored = torch.empty_like(paths.noise), torch.empty_like(paths.noise)
        with torch.no_grad():
            for j, xi in enumerate(paths.noise):
                start, end, width = paths.x[j], paths.x[j + 1], chain.root_durations[j]
                for found, y, noise in ((held, end, xi), (mirrored, end - 2.0 * chain.root(j)(xi), -xi)):
                    found[j] = (back.shift(chain.length - 1 - j, y, start) + noise) / -width
                    if base is not None:
                        found[j] += base(back.step_times[chain.length - 1 - j], y)
        return cls(paths.x[1:], paths.noise, held, mirrored)

    def rows(self, steps: Tensor, paths: Tensor) -> Transitions:
        """Selects step ``steps[i]`` of path ``paths[i]``, one per row."""
        j, i = steps.to(self.x.device), paths.to(self.x.device)
        return Transitions(self.x[j, i], self.noise[j, i], self.held[j, i], self.mirrored[j, i])


@dataclass(frozen=True, eq=False)
class StepTimes:
    """The step to which each row belongs.

    Attributes:
        t: times at which they ended, float64, shape ``(batch,)``.
        root: ``L``, one for each row.
        width: ``√Δ``, shape ``(batch,)``.
    """

    t: Tensor
    root: LinearMap
    width: Tensor

    @classmethod
    def of(cls, chain: Chain, steps: Tensor) -> StepTimes:
        """Collects the times and roots of the steps ``steps`` of a chain."""
        times, device = chain.visited, chain.like.device
        width = (times[steps + 1] - times[steps]).abs().sqrt()
        return cls(times[steps + 1].to(device), chain.roots(steps), width.to(chain.like))


def mean_matching(taken: Transitions, when: StepTimes, control: Control) -> Tensor:
    """Computes ``½|û + h|² + û·ξ/√Δ``, averaged over ``ξ`` and ``−ξ``, shape ``(batch,)``.

    The mirrored row has the same distribution, since ``ξ`` is symmetric, and cancels the part of the noise that grows
    as ``Δ → 0``. The remainder of ``û·ξ/√Δ`` is ``ξᵀ (∂û/∂x) L ξ/√Δ`` and higher terms: Hutchinson's estimate of the
    divergence, as a difference.
    """
    there = taken.x - 2.0 * when.root(taken.noise)
    here, mirrored = control(when.t.repeat(2), torch.cat([taken.x, there])).chunk(2)
    square = (here + taken.held).square().sum(1) + (mirrored + taken.mirrored).square().sum(1)
    return 0.25 * square + 0.5 * ((here - mirrored) * taken.noise).sum(1) / when.width


def likelihood(taken: Transitions, when: StepTimes, control: Control, probes: Probes) -> Tensor:
    """Computes ``½|û + h|² + ∇·(L û)/√Δ``, shape ``(batch,)``, with the divergence by ``probes``."""
    with torch.enable_grad():
        x = taken.x.detach().requires_grad_()
        u = control(when.t, x)
        trace = probes.weight * probed_trace(when.root(u), x, probes.directions, recorded=True)
    return 0.5 * (u + taken.held).square().sum(1) + trace / when.width


def terminal_adjoint(chain: Chain, x: Tensor, log_density: Callable[[Tensor], Tensor], other: Control) -> Tensor:
    """Computes ``∇(−log p + log φ̂)`` at the far ends ``x`` of a chain's paths, shape ``(batch, dim)``.

    The half-bridge towards the distribution ``p`` tilts the reference by ``p/φ̂`` at its far end; the gradient of
    ``log φ̂`` is that of the other direction's control there, ``√Δ L^{−ᵀ} û``, with the chain's last step.
    """
    last = chain.length - 1
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (score,) = torch.autograd.grad(log_density(point).sum(), point)
    with torch.no_grad():
        u = other(float(chain.visited[-1]), x)
        return chain.root(last).T.inverse()(u) * chain.root_durations[last] - score
