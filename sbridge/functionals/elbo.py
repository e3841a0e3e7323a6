"""Lower bounds on the log likelihood of a reverse diffusion with score ``s_θ`` and prior ``π``.

The model starts in ``π`` at ``T`` and follows ``dY = (−b + σσᵀs_θ) ds + σ dB`` back to ``s_min``, where its density is
``p_θ``. For the noising process from ``X_{s_min} = x`` the verification theorem of control says (for the control
problem of Premkumar 2023, §3.3; Huang, Lim & Courville 2021, arXiv:2106.02808; Song et al. 2021, arXiv:2101.09258)::

    log p_θ(x) ≥ E[log π(X_T) | x] − ∫ E[½|σᵀs_θ|² + ∇·(σσᵀs_θ − b) | x] dt

with equality exactly if ``s_θ = ∇log`` of the model's own marginals: for the true score, if also ``π = ρ_T``. In the
mean over ``ρ_{s_min}``, the denoising target can replace the divergence of the score. Values are in nats, for all
coordinates together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.functionals.quadrature import PathValues, Quadrature, Trapezoid, integrate
from sbridge.functionals.score_matching import (
    denoising_score_matching,
    implicit_score_matching,
    linear_process,
    noise_at,
)
from sbridge.laws import Density, Law
from sbridge.measures import Estimate, PathMeasure, Paths
from sbridge.measures.measure import check_count, noise_for
from sbridge.objectives.score_matching import ScoreFunction, denoising_target, divergence, likelihood_units
from sbridge.processes.base import LinearProcess, Process, Time
from sbridge.processes.chain import Chain, Direction, default_rule
from sbridge.random import Seed, as_seed
from sbridge.simulation import simulate


def implicit_elbo(
    paths: Paths,
    score: ScoreFunction,
    prior: Law,
    *,
    s_min: float = 0.0,
    probes: Tensor | None = None,
    quadrature: Quadrature = Trapezoid(),
) -> PathValues:
    """Computes ``log π(X_T) − ∫ ½|σᵀs_θ|² + ∇·(σσᵀs_θ − b) dt`` along each path.

    Its mean over paths from one ``x`` bounds ``log p_θ(x)``; over paths of data it bounds the mean log likelihood.

    Args:
        paths: of the noising process.
        score: ``s_θ``.
        prior: ``π``, with a normalised density.
        s_min: the knot at which the bound holds.
        probes: for the divergence, as in :func:`~sbridge.functionals.implicit_score_matching`.
        quadrature: the rule in time; ``RightPoint`` for a score that is not defined at ``s_min``.

    Raises:
        InvalidInputError: for a prior without a normalised density, or a time that is no knot.
    """
    matching = implicit_score_matching(paths, score, s_min=s_min, probes=probes, quadrature=quadrature)
    return _end(paths, prior) + drift_divergence(paths, s_min, quadrature) - matching


def denoising_elbo(
    paths: Paths, score: ScoreFunction, prior: Law, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Gives ``log π(X_T) − ½∫ |σᵀ(s_θ − τ)|² − |σᵀτ|² dt + ∫ ∇·b dt`` with ``τ = ∇log p(X_t | X_0)``, along each path.

    Its mean over paths from the data bounds ``E log p_θ(X_{s_min})``; it is not a bound for a single sample.

    Args:
        paths: of the noising process from the data at ``t = 0``.
        score, prior, quadrature: as for :func:`implicit_elbo`.
        s_min: the knot at which the bound holds, positive.

    Raises:
        InvalidInputError: as for :func:`implicit_elbo`, or for ``s_min = 0``, where the integrand diverges.
    """
    matching = denoising_score_matching(paths, score, s_min=s_min, quadrature=quadrature)
    process = linear_process(paths)

    def target_square(t: Time, x: Tensor) -> Tensor:
        target = denoising_target(process, t, noise_at(paths, t, x))
        return 0.5 * likelihood_units(process, t, target).square().sum(1)

    target = integrate(paths, target_square, quadrature, s_min)
    return _end(paths, prior) + drift_divergence(paths, s_min, quadrature) - (matching - target)


@dataclass(frozen=True, eq=False)
class RowBounds:
    """Likelihood bounds of single rows.

    Args:
        values: means over the draws of each row, float64, shape ``(rows,)``.
        standard_errors: of these means over the draws, shape ``(rows,)``.
        allowance: change of each by halving the time step, shape ``(rows,)``.
    """

    values: Tensor
    standard_errors: Tensor
    allowance: Tensor

    @property
    def average(self) -> Estimate:
        """Returns the mean over rows; its standard error is that of the draws, for fixed rows."""
        rows = len(self.values)
        error = float(self.standard_errors.square().sum().sqrt()) / rows
        return Estimate(float(self.values.mean()), error, rows)


def row_elbo(
    measure: PathMeasure,
    x: Tensor,
    score: ScoreFunction,
    prior: Law,
    *,
    seed: Seed,
    draws: int = 64,
    s_min: float = 0.0,
    quadrature: Quadrature = Trapezoid(),
) -> RowBounds:
    """Bounds ``log p_θ(x)`` for each row, from ``draws`` noising paths that pass through it at ``s_min``.

    Args:
        measure: the noising process; its start distribution is not used.
        x: states at time ``s_min``, shape ``(rows, dim)``.
        score, prior, quadrature: as for :func:`implicit_elbo`, with the exact divergence.
        seed: of the paths.
        draws: number of paths per row, at least 2.
        s_min: a knot of the grid of ``measure`` before its last.
    """
    check_count(draws, "draws")
    if draws < 2:
        raise InvalidInputError("a standard error needs at least two draws per row, got 1.")
    times = measure.grid.times(measure.process.horizon)
    kept = times[times > s_min + 1e-9 * measure.process.horizon]
    if len(kept) in (0, len(times)) or not bool(((times - s_min).abs() <= 1e-9 * measure.process.horizon).any()):
        raise InvalidInputError(f"s_min = {s_min:g} is not a knot of the measure's grid before its last.")
    knots = torch.cat([kept.new_tensor([s_min]), kept])
    rule = measure.rule or default_rule(measure.process)
    starts = x.repeat(draws, 1)
    chain = Chain(measure.process, knots, Direction.FORWARD, rule, starts)
    noise = noise_for(starts, chain.length, as_seed(seed)).stored()
    states, controls = simulate(chain, None, starts, noise)
    found = implicit_elbo(Paths(states, noise, controls, chain), score, prior, s_min=s_min, quadrature=quadrature)
    fine, coarse = found.values.reshape(draws, -1), found.coarse.reshape(draws, -1)
    return RowBounds(fine.mean(0), fine.std(0) / math.sqrt(draws), (coarse - fine).mean(0).abs())


def drift_divergence(paths: Paths, s_min: float, quadrature: Quadrature = Trapezoid()) -> PathValues:
    """Computes ``∫ ∇·b(t, X_t) dt`` along each path, from ``s_min``."""
    process = paths.chain.process
    return integrate(paths, lambda t, x: divergence_of_drift(process, t, x), quadrature, s_min)


def divergence_of_drift(process: Process, t: Time, x: Tensor) -> Tensor:
    """Computes ``∇·b(t, x)``, shape ``(batch,)``; from its matrix if the process is linear."""
    if isinstance(process, LinearProcess):
        trace = process.linear(t).expanded(x.shape[1]).diagonal(dim1=-2, dim2=-1).sum(-1)
        return trace.to(x).expand(len(x))
    return divergence(lambda y: process.drift(t, y), x)[1]


def _end(paths: Paths, prior: Law) -> PathValues:
    end = paths.x[-1 if paths.chain.direction is Direction.FORWARD else 0]
    return PathValues.exact(normalised_log_density(prior, end.double(), "a bound on the likelihood"))


def normalised_log_density(law: Law, x: Tensor, purpose: str) -> Tensor:
    """Computes ``log p(x)``; raises InvalidInputError, with ``purpose``, for a distribution that has none."""
    if isinstance(law, Density) or not hasattr(law, "log_density"):
        raise InvalidInputError(
            f"{purpose} needs a prior with a normalised density, which {type(law).__name__} does not have; use a "
            "Gaussian or a GaussianMixture."
        )
    return law.log_density(x)  # type: ignore[attr-defined]
