"""The density of states under a bridge, through its probability flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls.divergence import Divergence, ExactTrace
from sbridge.diffusion.accessors import backward_measure, knots_from
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Law
from sbridge.random import Seed, as_seed, derive
from sbridge.simulation.ode import DormandPrince, ODEMethod, flow_with_rate
from sbridge.solutions import Bridge

_TIGHT = DormandPrince(1e-6, 1e-6)


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """Log densities with their prior and volume parts.

    Args:
        values: ``log p(x)`` in nats, shape ``(batch,)``.
        ends: where the flow carries ``x`` at ``t = T``, shape ``(batch, dim)``.
        evaluations: number of evaluations of velocity and divergence together.
    """

    values: Tensor
    ends: Tensor
    evaluations: int


def log_likelihood(
    bridge: Bridge,
    x: Tensor,
    *,
    s_min: float = 0.0,
    method: ODEMethod = _TIGHT,
    divergence: Divergence = ExactTrace(),
    seed: Seed = 0,
) -> LogLikelihood:
    """Computes ``log p(x) = log π(x_T) + ∫_{s_min}^T ∇·v(t, x_t) dt`` along ``dx/dt = v``, from ``x`` at ``t = s_min``.

    ``v = b + ½σ(u − û)`` is the bridge's current velocity; for reverse diffusion it is ``b − ½σσᵀ s``, and with the
    true score and ``π = ρ_T`` the result is ``log ρ_{s_min}(x)``; otherwise it is the density of ``π`` under the
    reversed flow (Song et al. 2021, arXiv:2011.13456, eq. (39); Chen et al. 2018).

    Args:
        bridge: whose ``backward.start`` is ``π``, with a normalised density.
        x: states at ``s_min``, shape ``(batch, dim)``.
        s_min: bridge time of the states. Scores of points and of networks are infinite at 0: use the first knot of
            the grid they were trained or are sampled on, the result is then the density of noised data.
        method: method of integration; methods with fixed steps use the knots of ``bridge.backward.grid`` above
            ``s_min``.
        divergence: exact, or :class:`~sbridge.controls.Hutchinson` with fixed probes along each path, which gives an
            unbiased result up to the error of the method.
        seed: of the probes.

    Raises:
        UnsupportedError: if ``π`` has no normalised density, or the score cannot be differentiated.
        InvalidInputError: for ``s_min`` outside ``[0, T)``, or one at which the score is infinite.
        NonFiniteError: if the flow diverges.
    """
    prior = backward_measure(bridge).start
    if not isinstance(prior, (Gaussian, GaussianMixture)):
        raise UnsupportedError(
            f"a likelihood needs the density of the distribution at t = T, and a {type(prior).__name__} has no "
            "normalised one. Make the bridge with prior=end_distribution(process, data), or another Gaussian."
        )
    if not 0.0 <= s_min < bridge.horizon:
        raise InvalidInputError(f"s_min must be in [0, {bridge.horizon:g}), got {s_min:g}.")
    x = bridge.rows(x, "x")
    _check_differentiable(bridge, x)
    probes = divergence.probes(x, derive(as_seed(seed), "probes"))
    times = knots_from(bridge, s_min)
    with torch.no_grad():
        found = flow_with_rate(lambda t, y: probes(bridge.current_velocity, t, y), x, times, method)
        values = _log_density(prior, found.x) + found.integral
    return LogLikelihood(values, found.x, found.evaluations)


@torch.enable_grad()
def _check_differentiable(bridge: Bridge, x: Tensor) -> None:
    """Raises UnsupportedError for a score without gradient, which the gradient of the drift would hide."""
    states = x[:1].detach().requires_grad_()
    for control in (bridge.forward.control, bridge.backward.control):
        if control is not None and not control(bridge.horizon * 0.5, states).requires_grad:
            raise UnsupportedError(
                "a likelihood needs the divergence of the score, but torch cannot differentiate the score of this "
                "bridge. Compute it with torch from x, without detach() or no_grad()."
            )


def _log_density(law: Law, x: Tensor) -> Tensor:
    """Computes ``log law(x)`` in the dtype of the distribution's own numbers."""
    own = next(value.dtype for value in vars(law).values() if isinstance(value, Tensor))
    return law.log_density(x.to(own)).to(x)  # type: ignore[attr-defined]
