"""How the likelihood of a Gaussian-mixture plan is climbed: by matching, by pulling shapes together, by L-BFGS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.solvers.mixture_likelihood import Claims, Likelihood, blur, match
from sbridge.solvers.mixture_plan import Coordinates, Parts, Quadratics

_LEAST_PULL = 0.05  # below it a shape is plain to see, and left as it is
_MOST_PULL = 3.0  # of a component whose shape is all chance, in units of its mass
_EVERY = 2  # matchings from one look at held-out rows to the next
_REJECTED = 1e3  # nats by which a step to components without a density is worse than the start of the climb


class Watch:
    """Sees when a fit is not worth going on: held-out rows are less likely than they were, and than under another fit.

    Args:
        likelihood: of the held-out rows.
        mark: what the other fit has there.
    """

    def __init__(self, likelihood: Likelihood, mark: float) -> None:
        self._likelihood, self._mark, self._last = likelihood, mark, -math.inf
        self.hopeless = False

    def __call__(self, parts: Parts) -> bool:
        """Whether it is so now, for good."""
        value = self._likelihood.value(parts)
        self.hopeless = self.hopeless or value < min(self._mark, self._last)
        self._last = value
        return self.hopeless


def climb_by_matching(
    likelihood: Likelihood,
    parts: Parts,
    steps: int,
    tolerance: float,
    pulls: Tensor | None = None,
    watch: Watch | None = None,
) -> tuple[float, Parts]:
    """:func:`match` as long as ``D``, less the pull, rises by more than ``tolerance``; the best and its components.

    ``watch`` ends it, too.
    """
    best, found, chart = -torch.inf, parts, Chart(likelihood.coordinates, len(parts.logits))
    for step in range(steps):
        value, *claims = likelihood.claims(parts)
        if pulls is not None:
            value -= float(chart.pull(chart.point(parts), pulls))
        gain = value - best
        if not gain > 0:
            break
        best, found = value, parts
        if gain <= tolerance or (watch is not None and step % _EVERY == 0 and watch(parts)):
            break
        parts = match(parts, *claims, likelihood.coordinates, pulls)
    return float(best), found


def shrink(likelihood: Likelihood, parts: Parts) -> tuple[Parts, Tensor]:
    """Components drawn towards the shape of the Gaussian bridge as far as their own is noise, and the pulls that do so.

    A component of mass ``m_k`` shows an estimate of ``S_k``: in units of the Gaussian bridge it differs from the
    identity by ``|s^{−½} S_k s^{−½} − I|²``, of which ``¼(1/n_0 + 1/n_T)(d² + d)/m_k`` comes by chance (as in
    Ledoit & Wolf 2004, for the matrix ``(B A^{−1})^{½}``). The ratio of this to the rest, times ``m_k``, is the weight
    ``τ_k`` of the squared parameters of its shape, shape ``(K,)``; nothing if the ratio is below a twentieth. One
    component alone is the Gaussian bridge.
    """
    if len(parts.logits) == 1:
        return parts, torch.zeros(1, dtype=torch.float64)
    coordinates, (_, *claims) = likelihood.coordinates, likelihood.claims(parts)
    dim, s = len(coordinates.s), coordinates.s
    masses = torch.minimum(claims[0].masses, claims[1].masses)
    freedom = 2.0 * dim if coordinates.diagonal else dim * (dim + 1.0)
    chance = 0.25 * (1.0 / likelihood.source.count + 1.0 / likelihood.target.count) * freedom
    if coordinates.diagonal:
        apart = (parts.spreads / s - 1.0).square().sum(1)
    else:
        white = parts.spreads / (s.unsqueeze(1) * s).sqrt() - torch.eye(dim, dtype=torch.float64)
        apart = white.square().sum((1, 2))
    chance = chance / masses.clamp_min(1e-12)
    pulls = chance / torch.maximum(apart - chance, chance / _MOST_PULL)
    pulls = torch.where(pulls < _LEAST_PULL, 0.0, pulls)
    chart = Chart(coordinates, len(masses))
    point = chart.point(parts)
    chart.shapes(point).div_((1.0 + pulls).unsqueeze(1))
    return chart.parts(point), pulls * masses


def climb_by_quasi_newton(
    likelihood: Likelihood, parts: Parts, steps: int, tolerance: float, pulls: Tensor | None = None
) -> tuple[float, Parts, bool]:
    """At most ``steps`` iterations of L-BFGS, in parameters whose second derivatives are of one size.

    Returns what :func:`climb_by_matching` does, and whether the climb was over before ``steps`` were taken. Narrow
    components are climbed in a :class:`LocalChart`, and less :func:`blur`.

    Args:
        likelihood: climbed, less ``½ Σ_k τ_k |shape_k|²``.
        parts: the start.
        steps: largest number.
        tolerance: relative gain that ends it.
        pulls: ``τ``, shape ``(K,)``.
    """
    coordinates, count = likelihood.coordinates, len(parts.logits)
    narrow = coordinates.are_narrow(parts)
    chart = LocalChart(coordinates, count, parts) if narrow else Chart(coordinates, count)
    pulls = torch.zeros(count, dtype=torch.float64) if pulls is None else pulls
    value, _, target = likelihood.claims(parts)
    rejected = _REJECTED - value

    def objective(flat: object) -> tuple[float, object]:
        point = torch.as_tensor(flat, dtype=torch.float64).requires_grad_()
        here = chart.parts(point)
        if not here.have_densities:  # a step too far of the line search, which then takes a shorter one
            return rejected, torch.zeros_like(point).detach().numpy()
        s = coordinates.s
        forms = here.source_forms(s), here.target_forms(s)
        with torch.no_grad():
            value, *claims = likelihood.claims(here)
        pull = chart.pull(point, pulls)
        if narrow:
            pull = pull + blur(here, target.masses, coordinates)
        fall = _linearised(forms[0], claims[0]) - _linearised(forms[1], claims[1]) + pull
        (gradient,) = torch.autograd.grad(fall, point)
        found = float(pull.detach()) - value
        if not (math.isfinite(found) and bool(gradient.isfinite().all())):
            return rejected, torch.zeros_like(gradient).numpy()
        return found, gradient.numpy()

    options = {"maxiter": steps, "maxcor": 20, "ftol": tolerance, "gtol": 1e-7}
    from scipy.optimize import minimize  # half a second: not before it is needed

    result = minimize(objective, chart.point(parts).numpy(), jac=True, method="L-BFGS-B", options=options)
    with torch.no_grad():
        return -float(result.fun), chart.parts(torch.as_tensor(result.x, dtype=torch.float64)), result.nit < steps


@dataclass(frozen=True, eq=False)
class Chart:
    """Components as one flat vector: ``a``, ``m/√s``, and the logarithmic Cholesky root of ``s^{−½} S s^{−½}``.

    The last is divided by the root of ``½(1 + s_i n_i + s_j n_j)``: on the diagonal this is the second derivative that
    ``−D`` has for one Gaussian, below it half of that. (Pulls on those entries are then half as strong. With the whole,
    more components were taken for the same error, and twice the time, in 16 dimensions at ε = 0.1.)
    """

    coordinates: Coordinates
    count: int

    @property
    def _curvatures(self) -> Tensor:
        """``s n``: variances of the source in units of the components."""
        return self.coordinates.s * self.coordinates.n

    @cached_property
    def _scales(self) -> Tensor:
        h = self._curvatures
        return (0.5 * (1.0 + 2.0 * h if self.coordinates.diagonal else 1.0 + h.unsqueeze(-1) + h.unsqueeze(-2))).rsqrt()

    def point(self, parts: Parts) -> Tensor:
        """The vector of ``parts``."""
        s, scales = self.coordinates.s, self._scales
        if self.coordinates.diagonal:
            shape = (parts.spreads / s).log() / scales
        else:
            low = torch.linalg.cholesky(parts.spreads / (s.unsqueeze(1) * s).sqrt())
            diagonal = low.diagonal(dim1=1, dim2=2)
            i, j = torch.tril_indices(len(s), len(s))
            shape = ((low - torch.diag_embed(diagonal - 2.0 * diagonal.log())) / scales)[:, i, j]
        return torch.cat([parts.logits, (parts.means / s.sqrt()).reshape(-1), shape.reshape(-1)])

    def shapes(self, point: Tensor) -> Tensor:
        """The part of ``point`` that makes ``S``: zero for the Gaussian bridge's own, shape ``(K, …)``."""
        return point[self.count * (1 + len(self.coordinates.s)) :].reshape(self.count, -1)

    def pull(self, point: Tensor, pulls: Tensor) -> Tensor:
        """``½ Σ_k τ_k |shape_k|²``."""
        return 0.5 * (pulls.unsqueeze(1) * self.shapes(point).square()).sum()

    def parts(self, point: Tensor) -> Parts:
        """The components of a vector."""
        scales, k, dim = self._scales, self.count, len(self.coordinates.s)
        means, shape = point[k : k + k * dim].reshape(k, dim), self.shapes(point)
        if self.coordinates.diagonal:
            return Parts(point[:k], *self._placed(means, (shape * scales).exp()))
        i, j = torch.tril_indices(dim, dim)
        low = torch.zeros(k, dim, dim, dtype=point.dtype)
        low[:, i, j] = shape * scales[..., i, j]
        return Parts(
            point[:k], *self._placed(means, low.tril(-1) + torch.diag_embed((0.5 * low.diagonal(dim1=1, dim2=2)).exp()))
        )

    def _placed(self, means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        """Means and spreads, from means and roots (diagonal components: variances) in units of the chart."""
        s = self.coordinates.s
        if self.coordinates.diagonal:
            return means * s.sqrt(), s * roots
        roots = s.sqrt().unsqueeze(1) * roots
        return means * s.sqrt(), roots @ roots.mT


@dataclass(frozen=True, eq=False)
class LocalChart(Chart):
    """A chart in units of the components at hand, which is their origin: ``m_k + R_k μ`` and ``R_k L Lᵀ R_kᵀ``.

    A component that is narrow beside the noise, as where values of a column repeat, has second derivatives ``1/S_k``
    in its mean, which may be 10⁶ times those in its mass. In the units of :class:`Chart` L-BFGS then never moves the
    masses.

    Args:
        base: components at the origin, ``S_k = R_k R_kᵀ``.
    """

    base: Parts

    def point(self, parts: Parts) -> Tensor:
        """The vector of :attr:`base`, the only components that have one here."""
        logits, means, spreads = self.base.logits, self.base.means, self.base.spreads
        dim = means.shape[1]
        entries = dim if spreads.ndim == 2 else dim * (dim + 1) // 2
        return torch.cat([logits, logits.new_zeros(self.count * (dim + entries))])

    def pull(self, point: Tensor, pulls: Tensor) -> Tensor:
        """As of any chart: of shapes beside that of the Gaussian bridge."""
        plain = Chart(self.coordinates, self.count)
        return plain.pull(plain.point(self.parts(point)), pulls)

    @cached_property
    def _roots(self) -> Tensor:
        spreads = self.base.spreads
        return spreads.sqrt() if self.coordinates.diagonal else torch.linalg.cholesky(spreads)

    @property
    def _curvatures(self) -> Tensor:
        squares, n = self._roots.square(), self.coordinates.n
        return squares * n if self.coordinates.diagonal else (squares * n.unsqueeze(1)).sum(1)

    def _placed(self, means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
        if self.coordinates.diagonal:
            return self.base.means + self._roots * means, self.base.spreads * roots
        roots = self._roots @ roots
        return self.base.means + (self._roots @ means.unsqueeze(-1)).squeeze(-1), roots @ roots.mT


def _linearised(forms: Quadratics, claims: Claims) -> Tensor:
    """What has the same gradient as the mean of ``log Σ_k exp(form_k)``."""
    linear = (forms.constants * claims.masses).sum() + (forms.linear * claims.firsts).sum()
    return linear + (forms.quadratic * claims.seconds).sum()
