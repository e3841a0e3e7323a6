"""The entropy balance of a diffusion.

For ``dX = b dt + σ dW`` with marginals ``ρ_t`` and differential entropy ``H``, from ``s_min`` to ``T`` (the average
over ``ρ_T`` of the control problem that reverses the process, Premkumar 2023, §3.3; de Bruijn's if ``b = 0``)::

    H(ρ_T) − H(ρ_{s_min}) = ∫ E[½|σᵀ∇log ρ_t|² + ∇·b] dt
"""

from __future__ import annotations

import torch

from sbridge.functionals.elbo import drift_divergence
from sbridge.functionals.quadrature import PathValues, Quadrature, RowFunction, Trapezoid, knots_from, row_values
from sbridge.functionals.score_matching import implicit_constant
from sbridge.measures import Paths
from sbridge.objectives.score_matching import ScoreFunction


def entropy_change(paths: Paths, log_density: RowFunction, *, s_min: float) -> PathValues:
    """Computes ``log ρ_{s_min}(X_{s_min}) − log ρ_T(X_T)``, whose mean is ``H(ρ_T) − H(ρ_{s_min})`` without step error.

    Args:
        paths: of the process.
        log_density: ``log ρ_t(x) → (batch,)``.
        s_min: a knot of the paths.
    """
    ends = []
    for k in knots_from(paths, s_min)[[0, -1]].tolist():
        with torch.no_grad():
            ends.append(row_values(log_density, float(paths.t[k]), paths.x[k], "the log density").double())
    return PathValues.exact(paths.chain.direction.value * (ends[0] - ends[1]))


def integrated_entropy_rate(
    paths: Paths, true_score: ScoreFunction, *, s_min: float, quadrature: Quadrature = Trapezoid()
) -> PathValues:
    """Computes ``∫ ½|σᵀ∇log ρ_t|² + ∇·b dt`` along each path, whose mean is the change ``∫ dH/dt dt`` of the entropy.

    It is the change of the system's entropy alone, of either sign. The total entropy production, which is positive, is
    :func:`~sbridge.functionals.entropy_production`.

    Args:
        paths, s_min: as for :func:`entropy_change`.
        true_score: ``∇log ρ_t(x)``.
        quadrature: the rule in time, trapezoids of order two by default.
    """
    spread = implicit_constant(paths, true_score, s_min=s_min, quadrature=quadrature)
    return spread + drift_divergence(paths, s_min, quadrature)
