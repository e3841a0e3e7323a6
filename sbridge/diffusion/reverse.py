"""Reverse diffusion as a bridge: data at ``t = 0``, the noising process as reference, forward control zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sbridge.diffusion.conversions import Score, ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, HasDensity, Law, moments
from sbridge.measures import Direction, PathMeasure
from sbridge.problems import ControlProblem
from sbridge.processes import LinearProcess, Process, ReversedDrift
from sbridge.processes.chain import StepRule
from sbridge.solutions import Bridge
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

START_TIME = 1e-3
"""``s_min`` as a fraction of the horizon, below which scores are not evaluated."""


def reverse_grid(steps: int, start_time: float = START_TIME) -> TimeGrid:
    """Makes the grid ``0``, then ``√τ`` in equal steps from ``start_time`` to 1: finer near the data.

    Raises:
        InvalidInputError: unless ``steps ≥ 2`` and ``0 < start_time < 1``.
    """
    if not (steps >= 2 and 0.0 < start_time < 1.0):
        raise InvalidInputError(
            f"a reverse grid needs steps ≥ 2 and start_time strictly between 0 and 1, got {steps} and {start_time}."
        )
    first = start_time**0.5
    roots = (first + (1.0 - first) * k / (steps - 1) for k in range(1, steps - 1))
    return TimeGrid((0.0, start_time, *(root**2 for root in roots), 1.0))


REVERSE_GRID = reverse_grid(200)


def reverse_diffusion(
    process: Process,
    data: Law,
    score: Score,
    *,
    prior: Law | None = None,
    grid: TimeGrid = REVERSE_GRID,
    rule: StepRule | None = None,
) -> Bridge:
    """Makes the :class:`Bridge` of a noising process and its reversal ``dY = (−b + σσᵀ s) ds' + σ dB``, ``s' = T − t``.

    The forward control is zero and the backward control is ``û = σᵀ s``. This is the Schrödinger system with ``φ = 1``
    and ``φ̂ = ρ`` (Premkumar 2023, eq. (3.32)–(3.35); Anderson 1982). With the true score and ``prior = ρ_T`` both
    directions are one measure.

    Args:
        process: the noising process.
        data: the distribution at ``t = 0``.
        score: ``(t, x) → ∇ log ρ_t(x)``, or an approximation.
        prior: the distribution at ``t = T``, where the reversal starts; by default :func:`end_distribution`, for linear
            processes.
        grid: steps of simulations; finer towards the data by default.
        rule: how steps are made; exact for linear processes by default.
    """
    prior = end_distribution(process, data) if prior is None else prior
    forward = PathMeasure(process, None, data, Direction.FORWARD, grid, rule)
    return Bridge(forward, PathMeasure(process, ScoreControl(process, score), prior, Direction.BACKWARD, grid, rule))


def end_distribution(process: Process, data: Law) -> Gaussian:
    """Computes ``N(m, P)`` with the mean and covariance of ``X_T``: ``Φ E[X_0] + k`` and ``Φ Cov(X_0) Φᵀ + Q``.

    Raises:
        UnsupportedError: for a process that is not linear, or data without known moments.
    """
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"the end distribution of a {type(process).__name__} has no closed form; pass prior=, for example Samples "
            "of simulated ends."
        )
    if process.dim not in (None, data.dim):
        raise InvalidInputError(f"the process has dimension {process.dim}, the data have {data.dim}; they must agree.")
    mean, covariance = moments(data)
    law = process.transition(0.0, process.horizon)
    phi = law.map.expanded(data.dim).to(mean)
    spread = phi @ covariance @ phi.mT + law.covariance.expanded(data.dim).to(mean)
    return Gaussian(law.mean(mean[None])[0], 0.5 * (spread + spread.mT))


@register
@dataclass(frozen=True, eq=False)
class NegativeLogDensity:
    """The terminal cost ``g(x) = constant − log ρ_0(x)``."""

    data: HasDensity
    constant: float

    def __call__(self, x: Tensor) -> Tensor:
        """Computes ``g(x)``, shape ``(batch,)``."""
        return self.constant - self.data.log_density(x)

    @property
    def end(self) -> HasDensity:
        """The distribution in which the optimal control ends, ``ρ_0``."""
        return self.data


def reversal_problem(noising: Process, data: Law, *, prior: Law | None = None) -> ControlProblem:
    """Makes the control problem that reverse diffusion solves (Premkumar 2023; Berner et al. 2022, arXiv:2211.01364).

    In the time ``s = T − t`` of the reversal, with ``dX = b dt + σ dW`` the noising process and ``ρ_t`` its marginals::

        dY = (−b(T − s, Y) + σu) ds + σ dW,   Y_0 ~ ρ_T,   min_u E[∫ ½|u|² + ∇·b(T − s) ds − log ρ_0(Y_T)]

    The value is ``−log ρ_{T−s}`` and the optimal control ``u* = σᵀ∇log ρ_{T−s}``: the score in noise units. The
    divergence of a linear drift does not depend on the state, so its integral ``log |det Φ(T, 0)|`` is added to the
    terminal cost.

    Args:
        noising: the noising process, linear.
        data: ρ_0, a ``Gaussian``, a ``GaussianMixture`` or a ``Density``; the last may be unnormalised, which shifts
            the value by a constant.
        prior: ρ_T, where the reversal starts. ``None``: computed for a Gaussian and a mixture; a density needs it.

    Raises:
        UnsupportedError: for a process that is not linear, data without a density (such as samples), or a density
            without ``prior``.
        InvalidInputError: if dimensions disagree.
    """
    if not isinstance(noising, LinearProcess):
        raise UnsupportedError(
            f"the reversal of a {type(noising).__name__} needs the divergence of its drift; use a LinearProcess "
            "such as OrnsteinUhlenbeck or VariancePreserving."
        )
    if not isinstance(data, HasDensity):
        raise UnsupportedError(
            f"a {type(data).__name__} has no density at time 0, so −log ρ_0 is no cost; use a GaussianMixture around "
            "the samples, or train the score directly with diffuse()."
        )
    for what, dim in (("process", noising.dim), ("prior", prior.dim if prior is not None else None)):
        if dim not in (None, data.dim):
            raise InvalidInputError(
                f"the {what} has dimension {dim} and the density has dimension {data.dim}; give both in the same "
                "coordinates."
            )
    if prior is None:
        if not isinstance(data, (Gaussian, GaussianMixture)):
            raise UnsupportedError(
                f"the distribution of the noised {type(data).__name__} has no closed form; pass prior=, such as the "
                "stationary Gaussian of the process."
            )
        prior = ExactScore(noising, data).marginal(noising.horizon)
    shift = float(noising.transition(0.0, noising.horizon).map.log_abs_det(data.dim))
    return ControlProblem(ReversedDrift(noising), prior, terminal_cost=NegativeLogDensity(data, shift))
