"""Maximises the likelihood of a Gaussian-mixture plan: EM steps, shrinkage of covariances, L-BFGS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.solvers.mixture.components import Components, Coordinates, Quadratics
from sbridge.solvers.mixture.likelihood import Likelihood, SufficientStatistics, m_step, noise_penalty

_LEAST_SHRINKAGE = 0.05  # below it a covariance is well determined and is not shrunk
_MOST_SHRINKAGE = 3.0  # for a covariance that is all sampling noise, in units of the mass
_EVERY = 2  # EM steps between evaluations of held-out samples
_REJECTED = 1e3  # nats by which components without a density are worse than the start


class EarlyStopping:
    """Stops a fit when held-out samples are less likely than at the last evaluation and than under another fit.

    Args:
        likelihood: the likelihood of the held-out samples.
        mark: its value under the other fit.
    """

    def __init__(self, likelihood: Likelihood, mark: float) -> None:
        self._likelihood, self._mark, self._last = likelihood, mark, -math.inf
        self.stopped = False

    def __call__(self, components: Components) -> bool:
        """Evaluates the held-out samples; returns whether to stop."""
        value = self._likelihood.value(components)
        self.stopped = self.stopped or value < min(self._mark, self._last)
        self._last = value
        return self.stopped


def fit_em(
    likelihood: Likelihood,
    components: Components,
    steps: int,
    tolerance: float,
    shrinkage: Tensor | None = None,
    early_stopping: EarlyStopping | None = None,
) -> tuple[float, Components]:
    """EM: repeats :func:`m_step` as long as the penalised ``D`` grows by more than ``tolerance``.

    Returns:
        The largest value and its components.
    """
    best, found, chart = -torch.inf, components, Chart(likelihood.coordinates, len(components.logits))
    for step in range(steps):
        value, *statistics = likelihood.statistics(components)  # the E-step
        if shrinkage is not None:
            value -= float(chart.penalty(chart.point(components), shrinkage))
        gain = value - best
        if not gain > 0:
            break
        best, found = value, components
        if gain <= tolerance or (early_stopping is not None and step % _EVERY == 0 and early_stopping(components)):
            break
        components = m_step(components, *statistics, likelihood.coordinates, shrinkage)
    return float(best), found


def shrink_covariances(likelihood: Likelihood, components: Components) -> tuple[Components, Tensor]:
    """Shrinks covariances towards that of the Gaussian bridge, as far as they are noise; also returns the weights.

    In units of the Gaussian bridge, the estimate of ``S_k`` differs from the identity by ``|s^{−½} S_k s^{−½} − I|²``.
    Sampling noise contributes ``¼(1/n_0 + 1/n_T)(d² + d)/m_k`` for a component of mass ``m_k`` (as in Ledoit & Wolf
    2004, for the matrix ``(B A^{−1})^{½}``). The ratio of the noise to the rest, times ``m_k``, is the weight ``τ_k``
    of the squared shape parameters in the penalty, shape ``(K,)``; it is zero if the ratio is below a twentieth. A
    single component is the Gaussian bridge.
    """
    if len(components.logits) == 1:
        return components, torch.zeros(1, dtype=torch.float64)
    coordinates, (_, *statistics) = likelihood.coordinates, likelihood.statistics(components)
    dim, s = len(coordinates.s), coordinates.s
    masses = torch.minimum(statistics[0].masses, statistics[1].masses)
    freedom = 2.0 * dim if coordinates.diagonal else dim * (dim + 1.0)
    chance = 0.25 * (1.0 / likelihood.source.count + 1.0 / likelihood.target.count) * freedom
    # E|Ŝ − S|² by chance, ¼(1/n_0 + 1/n_T)(d² + d)/m_k; the shrinkage intensity of Ledoit & Wolf 2004 is its ratio to
    # the rest of |Ŝ − I|².
    if coordinates.diagonal:
        apart = (components.covariances / s - 1.0).square().sum(1)
    else:
        white = components.covariances / (s.unsqueeze(1) * s).sqrt() - torch.eye(dim, dtype=torch.float64)
        apart = white.square().sum((1, 2))
    chance = chance / masses.clamp_min(1e-12)
    shrinkage = chance / torch.maximum(apart - chance, chance / _MOST_SHRINKAGE)
    shrinkage = torch.where(shrinkage < _LEAST_SHRINKAGE, 0.0, shrinkage)
    chart = Chart(coordinates, len(masses))
    point = chart.point(components)
    chart.shapes(point).div_((1.0 + shrinkage).unsqueeze(1))
    return chart.components(point), shrinkage * masses


def fit_lbfgs(
    likelihood: Likelihood, components: Components, steps: int, tolerance: float, shrinkage: Tensor | None = None
) -> tuple[float, Components, bool]:
    """Runs at most ``steps`` iterations of L-BFGS in parameters whose second derivatives have similar sizes.

    Narrow components are fitted in a :class:`LocalChart` with the penalty :func:`noise_penalty`.

    Args:
        likelihood: maximised with the penalty ``½ Σ_k τ_k |shape_k|²``.
        components: the start.
        steps: largest number of iterations.
        tolerance: relative gain below which the iteration stops.
        shrinkage: ``τ``, shape ``(K,)``.

    Returns:
        The largest value, its components, and whether the iteration converged.
    """
    coordinates, count = likelihood.coordinates, len(components.logits)
    narrow = coordinates.are_narrow(components)
    chart = LocalChart(coordinates, count, components) if narrow else Chart(coordinates, count)
    shrinkage = torch.zeros(count, dtype=torch.float64) if shrinkage is None else shrinkage
    value, _, target = likelihood.statistics(components)
    rejected = _REJECTED - value

    def objective(flat: object) -> tuple[float, object]:
        point = torch.as_tensor(flat, dtype=torch.float64).requires_grad_()
        here = chart.components(point)
        if not here.have_densities:  # the line search went too far and takes a shorter step
            return rejected, torch.zeros_like(point).detach().numpy()
        s = coordinates.s
        forms = here.source_forms(s), here.target_forms(s)
        with torch.no_grad():
            value, *statistics = likelihood.statistics(here)
        penalty = chart.penalty(point, shrinkage)
        if narrow:
            penalty = penalty + noise_penalty(here, target.masses, coordinates)
        # ∇ E log Σ_k e^{form_k} = E Σ_k q_k ∇form_k: linear in the sufficient statistics, which are constants here.
        fall = _linearised(forms[0], statistics[0]) - _linearised(forms[1], statistics[1]) + penalty
        (gradient,) = torch.autograd.grad(fall, point)
        found = float(penalty.detach()) - value
        if not (math.isfinite(found) and bool(gradient.isfinite().all())):
            return rejected, torch.zeros_like(gradient).numpy()
        return found, gradient.numpy()

    options = {"maxiter": steps, "maxcor": 20, "ftol": tolerance, "gtol": 1e-7}
    from scipy.optimize import minimize  # takes half a second, so it is imported late

    result = minimize(objective, chart.point(components).numpy(), jac=True, method="L-BFGS-B", options=options)
    with torch.no_grad():
        return -float(result.fun), chart.components(torch.as_tensor(result.x, dtype=torch.float64)), result.nit < steps


@dataclass(frozen=True, eq=False)
class Chart:
    """Components as one flat vector: ``a``, ``m/√s``, and the logarithmic Cholesky root of ``s^{−½} S s^{−½}``.

    The last is divided by the root of ``½(1 + s_i n_i + s_j n_j)``. On the diagonal this is the second derivative of
    ``−D`` for one Gaussian; below the diagonal it is half of it, so the penalty on those entries is half as strong.
    (With the full one, fits in 16 dimensions at ε = 0.1 took more components and twice the time for the same error.)
    """

    coordinates: Coordinates
    count: int

    @property
    def _curvatures(self) -> Tensor:
        """``s n``, the variances of the source in units of the components."""
        return self.coordinates.s * self.coordinates.n

    @cached_property
    def _scales(self) -> Tensor:
        h = self._curvatures
        return (0.5 * (1.0 + 2.0 * h if self.coordinates.diagonal else 1.0 + h.unsqueeze(-1) + h.unsqueeze(-2))).rsqrt()

    def point(self, components: Components) -> Tensor:
        """Returns the vector of ``components``."""
        s, scales = self.coordinates.s, self._scales
        if self.coordinates.diagonal:
            shape = (components.covariances / s).log() / scales
        else:
            low = torch.linalg.cholesky(components.covariances / (s.unsqueeze(1) * s).sqrt())
            diagonal = low.diagonal(dim1=1, dim2=2)
            i, j = torch.tril_indices(len(s), len(s))
            shape = ((low - torch.diag_embed(diagonal - 2.0 * diagonal.log())) / scales)[:, i, j]
        return torch.cat([components.logits, (components.means / s.sqrt()).reshape(-1), shape.reshape(-1)])

    def shapes(self, point: Tensor) -> Tensor:
        """Returns the part of ``point`` that determines ``S``, shape ``(K, …)``; it is zero for the Gaussian bridge."""
        return point[self.count * (1 + len(self.coordinates.s)) :].reshape(self.count, -1)

    def penalty(self, point: Tensor, shrinkage: Tensor) -> Tensor:
        """Computes ``½ Σ_k τ_k |shape_k|²``."""
        return 0.5 * (shrinkage.unsqueeze(1) * self.shapes(point).square()).sum()

    def components(self, point: Tensor) -> Components:
        """Returns the components of a vector."""
        scales, k, dim = self._scales, self.count, len(self.coordinates.s)
        means, shape = point[k : k + k * dim].reshape(k, dim), self.shapes(point)
        if self.coordinates.diagonal:
            return Components(point[:k], *self._placed(means, (shape * scales).exp()))
        i, j = torch.tril_indices(dim, dim)
        low = torch.zeros(k, dim, dim, dtype=point.dtype)
        low[:, i, j] = shape * scales[..., i, j]
        return Components(
            point[:k], *self._placed(means, low.tril(-1) + torch.diag_embed((0.5 * low.diagonal(dim1=1, dim2=2)).exp()))
        )

    def _placed(self, means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        """Converts means and roots (diagonal components: variances) in units of the chart to means and covariances."""
        s = self.coordinates.s
        if self.coordinates.diagonal:
            return means * s.sqrt(), s * roots
        roots = s.sqrt().unsqueeze(1) * roots
        return means * s.sqrt(), roots @ roots.mT


@dataclass(frozen=True, eq=False)
class LocalChart(Chart):
    """A chart in units of given components, which are its origin: ``m_k + R_k μ`` and ``R_k L Lᵀ R_kᵀ``.

    A component is narrow relative to the noise if, for example, values of a column repeat. Then the second derivatives
    ``1/S_k`` in its mean may be 10⁶ times those in its mass. In the units of :class:`Chart`, L-BFGS would never move
    the masses.

    Args:
        base: components at the origin, ``S_k = R_k R_kᵀ``.
    """

    base: Components

    def point(self, components: Components) -> Tensor:
        """Returns the vector of :attr:`base`; other components have none in this chart."""
        logits, means, covariances = self.base.logits, self.base.means, self.base.covariances
        dim = means.shape[1]
        entries = dim if covariances.ndim == 2 else dim * (dim + 1) // 2
        return torch.cat([logits, logits.new_zeros(self.count * (dim + entries))])

    def penalty(self, point: Tensor, shrinkage: Tensor) -> Tensor:
        """Computes the penalty of :class:`Chart`, relative to the Gaussian bridge."""
        plain = Chart(self.coordinates, self.count)
        return plain.penalty(plain.point(self.components(point)), shrinkage)

    @cached_property
    def _roots(self) -> Tensor:
        covariances = self.base.covariances
        return covariances.sqrt() if self.coordinates.diagonal else torch.linalg.cholesky(covariances)

    @property
    def _curvatures(self) -> Tensor:
        squares, n = self._roots.square(), self.coordinates.n
        return squares * n if self.coordinates.diagonal else (squares * n.unsqueeze(1)).sum(1)

    def _placed(self, means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        if self.coordinates.diagonal:
            return self.base.means + self._roots * means, self.base.covariances * roots
        roots = self._roots @ roots
        return self.base.means + (self._roots @ means.unsqueeze(-1)).squeeze(-1), roots @ roots.mT


def _linearised(forms: Quadratics, statistics: SufficientStatistics) -> Tensor:
    """Computes a function with the same gradient as the mean of ``log Σ_k exp(form_k)``."""
    linear = (forms.constants * statistics.masses).sum() + (forms.linear * statistics.firsts).sum()
    return linear + (forms.quadratic * statistics.seconds).sum()
