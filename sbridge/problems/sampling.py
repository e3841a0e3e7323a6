"""Sampling from an unnormalised density ``e^{−E}/Z`` as a control problem, and its normaliser.

A process R with a known end distribution ``r_T`` is steered so that it ends in the density: with the terminal cost
``g = E + log r_T`` the optimal path measure is ``dP*/dR = e^{−E}/(Z r_T)`` at the end state, and ``Z = E_R[e^{−g}]``.
From a point this is the path-integral sampler (Zhang & Chen 2022, arXiv:2111.15141), from the stationary distribution
of a process that forgets it the time-reversed diffusion sampler (Vargas et al. 2023, arXiv:2302.13834; Berner et al.
2022, arXiv:2211.01364).

Weights of paths are ratios of the step kernels of the chain that was simulated, and ``r_T`` is the end distribution of
that chain: ``log Z`` has no bias from time steps, however coarse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, HasDensity, Law, Point
from sbridge.linear import LinearMap
from sbridge.problems.base import ControlProblem
from sbridge.processes import LinearProcess, Process


@dataclass(frozen=True, eq=False)
class DensityCost:
    """The terminal cost ``g = E + log r_T``.

    Args:
        target: the density, ``−E`` its ``log_density``.
        mean, whitening, log_scale: of ``r_T``: ``log r_T(x) = −½|W(x − m)|² − log_scale``.
    """

    target: HasDensity
    mean: Tensor
    whitening: LinearMap
    log_scale: float

    @property
    def end(self) -> HasDensity:
        """The distribution in which the optimal control ends."""
        return self.target

    def __call__(self, x: Tensor) -> Tensor:
        """Computes ``g(x)``, shape ``(batch,)``."""
        white = self.whitening.to(x)(x - self.mean.to(x))
        return -self.target.log_density(x) - 0.5 * white.square().sum(1) - self.log_scale


def sampling_problem(target: HasDensity, process: Process, start: Law) -> ControlProblem:
    """Makes the control problem whose solution ends in ``target``.

    Args:
        target: the density, up to its constant.
        process: R, linear; its steps must be exact, which is the default.
        start: a :class:`~sbridge.laws.Point`, or a :class:`~sbridge.laws.Gaussian` that the process forgets until
            ``T``. For another Gaussian no control reaches the target exactly; weights correct this.

    Raises:
        UnsupportedError: for a process that is not linear, another start, or a target without density.
        InvalidInputError: if dimensions disagree.
    """
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"the end distribution of the process must be known, got a {type(process).__name__}; use a linear process "
            "such as BrownianMotion (from a Point) or VariancePreserving (from its stationary Gaussian)."
        )
    if not callable(getattr(target, "log_density", None)):
        raise UnsupportedError(f"a {type(target).__name__} has no density; give a Density(log_density, dim).")
    if target.dim != start.dim:
        raise InvalidInputError(f"the target has dimension {target.dim}, the start {start.dim}.")
    mean, covariance = _end_moments(process, start)
    root = covariance.cholesky()
    log_scale = float(root.log_abs_det(start.dim)) + 0.5 * start.dim * math.log(2.0 * math.pi)
    cost = DensityCost(target, mean, root.inverse(), log_scale)
    return ControlProblem(process, start, terminal_cost=cost)


def _end_moments(process: LinearProcess, start: Law) -> tuple[Tensor, LinearMap]:
    """Returns mean and covariance of ``X_T`` under R."""
    law = process.transition(0.0, process.horizon)
    if isinstance(start, Point):
        return law.mean(start.position.double().cpu().unsqueeze(0))[0], law.covariance
    if isinstance(start, Gaussian):
        spread = LinearMap(start.covariance.double().cpu(), dense=True)
        covariance = law.map @ spread @ law.map.T + law.covariance
        return law.mean(start.mean.double().cpu().unsqueeze(0))[0], covariance
    raise UnsupportedError(f"the start must be a Point or a Gaussian, got a {type(start).__name__}.")
