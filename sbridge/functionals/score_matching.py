"""Score-matching functionals along the noising paths: integrals over time of the losses of :mod:`sbridge.objectives`.

With ``s = s_θ``, each from ``s_min`` to ``T`` (Premkumar 2023, eq. (3.37) and (3.43); Vincent 2011; Hyvärinen 2005)::

    explicit    ½ ∫ E|σᵀ(s − ∇log ρ_t)|² dt  =  path KL of the reversal to the model, the gap of the action
              = denoising − denoising_constant
              = implicit + implicit_constant

Integrands of ``denoising`` and of its constant grow like ``1/t`` towards ``t = 0``: both start at the same ``s_min >
0``, and refer to ``ρ_{s_min}``. The values belong to paths, so two of them can be compared on the same draws.
"""

from __future__ import annotations

from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.functionals.quadrature import PathValues, Quadrature, Trapezoid, integrate
from sbridge.measures import Direction, Paths
from sbridge.objectives import score_matching as losses
from sbridge.objectives.score_matching import ScoreFunction, checked_score
from sbridge.processes.base import LinearProcess, Time


def explicit_score_matching(
    paths: Paths, score: ScoreFunction, true_score: ScoreFunction, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``½ ∫ |σᵀ(s_θ − ∇log ρ_t)(X_t)|² dt``.

    Args:
        paths: with the marginals ``ρ_t``: of the noising process, or of its exact reversal.
        score: ``s_θ(t, x)``.
        true_score: ``∇log ρ_t(x)``.
        s_min: where the integral begins, a knot of the paths.
        quadrature: the rule in time, trapezoids of order two by default.
    """

    def integrand(t: Time, x: Tensor) -> Tensor:
        process = linear_process(paths)
        return losses.explicit(process, t, checked_score(score, t, x), checked_score(true_score, t, x))

    return integrate(paths, integrand, quadrature, s_min)


def implicit_score_matching(
    paths: Paths,
    score: ScoreFunction,
    *,
    s_min: float,
    probes: Tensor | None = None,
    quadrature: Quadrature = Trapezoid(),
) -> PathValues:
    """Computes ``∫ ½|σᵀs_θ|² + ∇·(σσᵀs_θ) dt`` along each path.

    Args:
        paths, score, s_min, quadrature: as for :func:`explicit_score_matching`.
        probes: ``None`` for the exact trace, at ``dim`` backward passes a knot; or Hutchinson's, of shape
            ``(probes, batch, dim)`` as :func:`~sbridge.controls.divergence.rademacher` makes them, which are constant
            along a path.
    """
    return integrate(paths, lambda t, x: losses.implicit(linear_process(paths), t, x, score, probes), quadrature, s_min)


def implicit_constant(
    paths: Paths, true_score: ScoreFunction, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``½ ∫ |σᵀ∇log ρ_t|² dt``, so that explicit = implicit + this, in the mean."""

    def integrand(t: Time, x: Tensor) -> Tensor:
        return losses.implicit_constant(linear_process(paths), t, checked_score(true_score, t, x))

    return integrate(paths, integrand, quadrature, s_min)


def denoising_score_matching(
    paths: Paths, score: ScoreFunction, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``½ ∫ |σᵀ(s_θ − ∇log p(X_t | X_0))|² dt``.

    Args:
        paths: of the noising process itself: forward, without control, from the data at ``t = 0``.
        score, quadrature: as for :func:`explicit_score_matching`.
        s_min: where the integral begins, positive.

    Raises:
        InvalidInputError: for ``s_min = 0``, where the integrand diverges, or for other paths.
    """
    _check_noising(paths, s_min)

    def integrand(t: Time, x: Tensor) -> Tensor:
        return losses.denoising(linear_process(paths), t, checked_score(score, t, x), noise_at(paths, t, x))

    return integrate(paths, integrand, quadrature, s_min)


def denoising_constant(
    paths: Paths, true_score: ScoreFunction, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``C = ½ ∫ |σᵀ∇log p(X_t | X_0)|² − |σᵀ∇log ρ_t|² dt``, so that explicit = denoising − C, in the mean.

    Arguments and errors as for :func:`denoising_score_matching`.
    """
    _check_noising(paths, s_min)

    def integrand(t: Time, x: Tensor) -> Tensor:
        return losses.denoising_constant(
            linear_process(paths), t, noise_at(paths, t, x), checked_score(true_score, t, x)
        )

    return integrate(paths, integrand, quadrature, s_min)


def noise_at(paths: Paths, t: Time, x: Tensor) -> Tensor:
    """Computes ``ε = L⁻¹(x − Φ X_0 − k)``: the noise that leads from the start of each path to ``x`` at time ``t``."""
    law = linear_process(paths).transition(0.0, t)
    return law.root.inverse().to(x)(x - law.mean(paths.x[0]))


def linear_process(paths: Paths) -> LinearProcess:
    """Returns the process of the paths; raises UnsupportedError unless it is linear."""
    process = paths.chain.process
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"score matching needs a LinearProcess such as VariancePreserving, got {type(process).__name__}."
        )
    return process


def _check_noising(paths: Paths, s_min: float) -> None:
    if not s_min > 0.0:
        raise InvalidInputError(
            f"s_min must be positive, got {s_min:g}: at time 0 the denoising target is infinite and the integral "
            "diverges. Add a small time to the grid, such as a thousandth of the horizon, and start there."
        )
    if paths.chain.direction is not Direction.FORWARD or bool((paths.v != 0).any()):
        raise InvalidInputError(
            "denoising score matching needs paths of the noising process itself, which runs forward without a "
            "control: PathMeasure(process, None, data).sample(n, seed=seed)."
        )
