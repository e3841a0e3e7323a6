"""Sampling from an unnormalised density ``e^{−E}/Z`` as a control problem, and its normaliser.

A process R with a known end law ``r_T`` is steered so that it ends in the density: with the terminal cost
``g = E + log r_T`` the optimal path law is ``dP*/dR = e^{−E}/(Z r_T)`` at the end state, and ``Z = E_R[e^{−g}]``. From
a point this is the path-integral sampler (Zhang & Chen 2022, arXiv:2111.15141), from the stationary law of a process
that forgets it the time-reversed diffusion sampler (Vargas et al. 2023, arXiv:2302.13834; Berner et al. 2022,
arXiv:2211.01364).

Weights of paths are ratios of the step kernels of the chain that was simulated, and ``r_T`` is the end law of that
chain: ``log Z`` has no bias from time steps, however coarse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, Law, Point
from sbridge.linear import LinearMap
from sbridge.measures import Estimate, ImportanceWeights, importance_weights
from sbridge.objectives import log_weight
from sbridge.problems import ControlProblem
from sbridge.processes import ExactTransition, LinearProcess, Process
from sbridge.random import Seed, as_seed, derive
from sbridge.solutions import ControlSolution

_CHUNK = 2**22  # numbers of a bundle of paths that is kept whole


@runtime_checkable
class HasDensity(Protocol):
    """A law with a log density, normalised or not: :class:`Density`, :class:`Gaussian`, :class:`GaussianMixture`."""

    @property
    def dim(self) -> int:
        """The dimension."""
        ...

    @property
    def log_density(self) -> Callable[[Tensor], Tensor]:
        """``−E``, a function ``(batch, dim) → (batch,)``."""
        ...


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

    def __call__(self, x: Tensor) -> Tensor:
        """``g(x)``, shape ``(batch,)``."""
        white = self.whitening.to(x)(x - self.mean.to(x))
        return -self.target.log_density(x) - 0.5 * white.square().sum(1) - self.log_scale


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """End states of controlled paths, with weights that make them samples of the density.

    Attributes:
        x: end states, shape ``(n, dim)``.
        weights: self-normalised, with their effective sample size.
        log_normaliser: ``log Z``, its standard error by the delta method, ``√(1/ESS − 1/n)``: to be believed if the
            effective sample size is large, and no mode was missed.
        lower_bound: ``E[log α] ≤ log Z``, the evidence lower bound of the control.
    """

    x: Tensor
    weights: ImportanceWeights
    log_normaliser: Estimate
    lower_bound: Estimate

    __repr__ = short_repr


def sampling_problem(target: HasDensity, process: Process, start: Law) -> ControlProblem:
    """The control problem whose solution ends in ``target``.

    Args:
        target: the density, up to its constant.
        process: R, linear; it has to be stepped exactly, which is the default.
        start: a :class:`~sbridge.laws.Point`, or a :class:`~sbridge.laws.Gaussian` that the process forgets until
            ``T``. Otherwise no control reaches the target exactly (weights put that right).

    Raises:
        UnsupportedError: for a process that is not linear, another start, or a target without density.
        InvalidInputError: if dimensions disagree.
    """
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"the end law of the process has to be known, got a {type(process).__name__}; use a linear process such as "
            "BrownianMotion (from a Point) or VariancePreserving (from its stationary Gaussian)."
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


@torch.no_grad()
def log_normaliser(solution: ControlSolution, n: int, *, seed: Seed) -> WeightedSamples:
    """``log Z``, its lower bound and weighted samples, from ``n`` paths of a solved :func:`sampling_problem`.

    Args:
        solution: with any control; the better it is, the larger the effective sample size.
        n: number of paths, at least 2.
        seed: of the paths.

    Raises:
        InvalidInputError: if the problem is no sampling problem.
        UnsupportedError: if the chain was not stepped exactly: its end law is not the one in the cost.
    """
    if not isinstance(solution.problem.terminal_cost, DensityCost):
        raise InvalidInputError("a solution of sampling_problem(target, process, start) is needed.")
    rule = solution.measure.rule
    if rule is not None and not isinstance(rule, ExactTransition):
        raise UnsupportedError(
            f"the chain was stepped by {type(rule).__name__}, whose end law is not that of the process; solve with "
            "rule=ExactTransition(), the default."
        )
    numbers = solution.measure.grid.steps * solution.dim
    size, seed = max(2, _CHUNK // numbers), as_seed(seed)
    ends, logs = [], []
    for first in range(0, n, size):
        paths = solution.sample(min(size, n - first), seed=derive(seed, "chunk", first))
        ends.append(paths.x[-1].clone())
        logs.append(log_weight(paths, solution.problem.costs))
    x, log_alpha = torch.cat(ends), torch.cat(logs)
    weights = importance_weights(log_alpha)
    ess = weights.effective_sample_size
    error = math.sqrt(max(1.0 / ess - 1.0 / n, 0.0))
    return WeightedSamples(x, weights, Estimate(weights.log_mean, error, n, ess), Estimate.of(log_alpha))


def _end_moments(process: LinearProcess, start: Law) -> tuple[Tensor, LinearMap]:
    """Mean and covariance of ``X_T`` under R."""
    law = process.transition(0.0, process.horizon)
    if isinstance(start, Point):
        return law.mean(start.position.double().cpu().unsqueeze(0))[0], law.covariance
    if isinstance(start, Gaussian):
        spread = LinearMap(start.covariance.double().cpu(), dense=True)
        covariance = law.map @ spread @ law.map.T + law.covariance
        return law.mean(start.mean.double().cpu().unsqueeze(0))[0], covariance
    raise UnsupportedError(f"the start must be a Point or a Gaussian, got a {type(start).__name__}.")
