"""The kernel from a noised state to an earlier one when the start is known, and its average over starts.

With the transition ``p(x_t | x_s)`` of a linear noising process, ``0 < s < t`` (Premkumar 2023, §4.1)::

    q(x_s | x_0, x_t) = p(x_t | x_s) p(x_s | x_0) / p(x_t | x_0)             (4.1)
    drift of its reversal   −b + σσᵀ ∇ log p(x_s | x_0)                      (4.3)
    p(x_s | x_t) = ∫ q(x_s | x_0, x_t) p(x_0 | x_t) dx_0                     (4.5)

The drift (4.3) is :func:`~sbridge.diffusion.conversions.mean_field_drift` with the start in place of its mean.
"""

from __future__ import annotations

import math

from torch import Tensor

from sbridge.diffusion.exact import ExactScore
from sbridge.diffusion.posterior import posterior
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.processes import LinearProcess, Pinned, Process
from sbridge.random import Seed, as_seed, derive, generator


def pinned_kernel(process: Process, s: float, t: float) -> Pinned:
    """Returns ``q(x_s | x_0, x_t)``, a Gaussian: :class:`~sbridge.processes.Pinned` with the end at ``t``.

    Raises:
        UnsupportedError: for a process that is not linear.
        InvalidInputError: unless ``0 ≤ s < t ≤ T``.
    """
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"a pinned kernel in closed form needs a LinearProcess, got {type(process).__name__}; simulate its "
            "reversal with a score instead."
        )
    if not 0.0 <= s < t <= process.horizon * (1 + 1e-12):
        raise InvalidInputError(f"times must satisfy 0 ≤ s < t ≤ {process.horizon:g}, got s = {s:g} and t = {t:g}.")
    return Pinned(process.transition(0.0, s), process.transition(s, t), process.transition(0.0, t))


def log_pinned_kernel(process: LinearProcess, s: float, t: float, x_start: Tensor, x: Tensor, x_t: Tensor) -> Tensor:
    """Computes ``log q(x_s = x | x_0, x_t)``, shape ``(batch,)``, from the mean and covariance of the Gaussian."""
    law, dim = pinned_kernel(process, s, t), x.shape[1]
    white = law.root.inverse().to(x)(x - law.mean(x_start, x_t))
    constant = law.root.log_abs_det(dim).to(x) + 0.5 * dim * math.log(2.0 * math.pi)
    return -0.5 * white.square().sum(1) - constant


def pinned_kl(process: LinearProcess, s: float, t: float, x_start: Tensor, predicted: Tensor) -> Tensor:
    """Computes ``KL(q(x_s | x_0, x_t) ‖ q(x_s | x̂_0, x_t))``, shape ``(batch,)``: the error of one step.

    ``½ |Γ^{−½} L (x_0 − x̂_0)|²`` with ``L = Φ(s, 0) − K Φ(t, 0)``: the two Gaussians share their covariance, and
    ``x_t`` drops out. Its mean over ``x_0 | x_t`` bounds the divergence of the mixtures (Premkumar 2023, eq. (4.7)).
    """
    law = pinned_kernel(process, s, t)
    kept = law.behind.map + -(law.gain @ law.whole.map)
    return 0.5 * (law.root.inverse() @ kept).to(x_start)(x_start - predicted).square().sum(1)


def draw_start(exact: ExactScore, t: float, x: Tensor, *, seed: Seed) -> Tensor:
    """Draws ``X_0 | X_t = x`` exactly, once per row: components of a mixture and their posteriors, or data points."""
    law, dim = exact.process.transition(0.0, t), exact.data.dim
    if not t > 0:
        raise InvalidInputError(f"the start given a later state is defined for t > 0, got {t:g}.")
    seen = posterior(
        exact.data, law.map.expanded(dim), law.covariance.expanded(dim), x.double() - law.offset.to(x.device)
    )
    return seen.draw(seed).to(x)


def draw_earlier(exact: ExactScore, s: float, t: float, x: Tensor, *, seed: Seed) -> Tensor:
    """Draws ``X_s | X_t = x`` once per row by (4.5): a start from its posterior, then the pinned kernel.

    It is exact for any two times.
    """
    seed, kernel = as_seed(seed), pinned_kernel(exact.process, s, t)
    start = draw_start(exact, t, x, seed=derive(seed, "start"))
    noise = x.new_empty(x.shape).normal_(generator=generator(derive(seed, "kernel"), x.device))
    return kernel.sample(start, x, noise)
