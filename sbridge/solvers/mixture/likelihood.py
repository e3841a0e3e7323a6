"""The likelihood of a Gaussian-mixture plan given unpaired rows of both ends, and its maximisation by EM steps.

The mean log likelihood of rows ``y`` given rows ``x`` is, up to a constant, ``D = E log v(ỹ) − E log Z(x̃)`` (Korotin et
al. 2024, arXiv:2310.01174; notation of :mod:`sbridge.solvers.mixture.components`). Both terms are
logarithms of sums of exponentials of quadratic forms. Their gradient therefore depends on the rows only through the
responsibilities ``q_k, r_k`` of the components, in the sufficient statistics::

    E[q_k (1, ỹ, ỹỹᵀ)]   q_k(ỹ): share of component k in v         E[r_k (1, x̃, x̃x̃ᵀ)]   r_k(x̃): its share in Z

``D`` is stationary where each component is the bridge between the Gaussians with its moments at the two ends, and has
the same mass at both. :func:`m_step` solves this for given responsibilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbridge.solvers.mixture.components import Components, Coordinates, Quadratics

_CHUNK = 2**18  # numbers in the largest array that a chunk of rows makes: it stays in the cache
_LEAST_SHARE = 1e-30  # a smaller one is none: numbers too small for their type make a product many times slower
_LEAST_EXPONENT = -70.0  # of a share below the least
_LEAST_SPREAD = 1e-6  # smallest variance of a component's rows, in units of that of all rows
_CLUSTER_ROWS, _CLUSTER_ROUNDS = 20_000, 20


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """Moments of one end by component: ``E[q_k]``, ``E[q_k z]``, ``E[q_k zzᵀ]`` (or its diagonal), float64."""

    masses: Tensor
    firsts: Tensor
    seconds: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the rows of each component, ``(K, dim)``."""
        return self.firsts / self.masses.unsqueeze(1)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows of each component: matrices, or diagonals."""
        mean = self.mean
        if self.seconds.ndim == 2:
            return self.seconds / self.masses.unsqueeze(1) - mean.square()
        return self.seconds / self.masses.reshape(-1, 1, 1) - mean.unsqueeze(2) * mean.unsqueeze(1)

    def shrunk(self, n: Tensor, shrinkage: Tensor | None) -> Tensor:
        """:attr:`covariance`, averaged with ``diag(n)`` as if that had been seen with masses ``shrinkage``."""
        own = self.covariance
        if shrinkage is None:
            return own
        everything = n if own.ndim == 2 else torch.diag(n)
        share = (shrinkage / (shrinkage + self.masses)).reshape(-1, *[1] * (own.ndim - 1))
        return own + share * (everything - own)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one end in the coordinates above, with optional weights (sum 1)."""

    rows: Tensor
    weights: Tensor | None = None

    @property
    def count(self) -> float:
        """Their number; of weighted rows the effective one."""
        return float(len(self.rows)) if self.weights is None else 1.0 / float(self.weights.square().sum())

    def mean_log_sum(self, forms: Quadratics) -> float:
        """The mean of ``log Σ_k exp(form_k(z))``."""
        sums = torch.cat([_log_sum(*_relative(evaluate())) for _, _, evaluate in self._chunks(forms)])
        return float(sums.mean() if self.weights is None else (sums * self.weights).sum())

    def statistics(self, forms: Quadratics) -> tuple[float, SufficientStatistics]:
        """:meth:`mean_log_sum`, and the sufficient statistics: the E-step."""
        (count, dim), total = forms.linear.shape, 0.0
        dense = forms.quadratic.ndim == 3
        sums = torch.zeros(count, 1 + dim + (dim * dim if dense else dim), dtype=torch.float64)
        for rows, gather, evaluate in self._chunks(forms):
            shares, top = _relative(evaluate())
            values, norm = _log_sum(shares, top), shares.sum(0)
            weights = None if self.weights is None else self.weights[rows]
            scale = 1.0 / norm if weights is None else weights.to(norm) / norm
            total += float(values.sum() if weights is None else (values * weights).sum())
            sums += gather(shares, scale).double().cpu()
        if self.weights is None:
            total, sums = total / len(self.rows), sums / len(self.rows)
        seconds = sums[:, 1 + dim :].reshape(count, dim, dim) if dense else sums[:, 1 + dim :]
        return total, SufficientStatistics(sums[:, 0], sums[:, 1 : 1 + dim], seconds)

    def statistics_of(self, responsibilities: Tensor, *, diagonal: bool) -> SufficientStatistics:
        """The sufficient statistics for given responsibilities ``(n, K)``."""
        q = responsibilities
        weighted = q / len(q) if self.weights is None else q * self.weights.to(q).unsqueeze(1)
        z, q = self.rows.double(), weighted.double()
        if diagonal:
            seconds = q.mT @ z.square()
        else:
            seconds = torch.stack([(q[:, k : k + 1] * z).mT @ z for k in range(q.shape[1])])
        return SufficientStatistics(q.sum(0).cpu(), (q.mT @ z).cpu(), seconds.cpu())

    def _chunks(self, forms: Quadratics) -> Iterator[tuple[slice, _Gather, _Evaluate]]:
        """Slices of the rows, each with how shares become sums of ``(1, z, zzᵀ)`` and how the forms are evaluated.

        Forms and shares have shape ``(K, rows)``: sums and maxima over components then run along the rows.
        """
        (count, dim), dense = forms.linear.shape, forms.quadratic.ndim == 3
        features = 1 + dim + dim * (dim + 1) // 2 if dense else 1 + 2 * dim
        packed = not dense or features <= count * dim
        size = max(64, _CHUNK // (max(features, count) if packed else count * dim))
        prepared = _Packed.of(forms, self.rows) if packed else _Blocked.of(forms, self.rows)
        for start in range(0, len(self.rows), size):
            rows = slice(start, start + size)
            yield rows, *prepared(self.rows[rows])


def _relative(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials beside the largest of each row, and its exponent.

    Exponents are cut off before, since exponentials that underflow take many times as long, too.
    """
    top = exponents.amax(0)
    return torch.threshold_((exponents - top).clamp_min_(_LEAST_EXPONENT).exp_(), _LEAST_SHARE, 0.0), top


def _log_sum(shares: Tensor, top: Tensor) -> Tensor:
    """Logarithms of the sums of exponentials, float64."""
    return (top + shares.sum(0).log()).double()


_Gather = Callable[[Tensor, Tensor], Tensor]
"""From shares ``(K, rows)``, which may be changed, and what each row is multiplied by."""
_Evaluate = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class _Packed:
    """Forms as one product with the monomials ``(1, z, z_i z_j)``: for few coordinates."""

    coefficients: Tensor
    pairs: Tensor | None
    places: Tensor | None

    @classmethod
    def of(cls, forms: Quadratics, like: Tensor) -> _Packed:
        ends = [forms.constants.unsqueeze(1), forms.linear]
        if forms.quadratic.ndim == 2:
            return cls(torch.cat([*ends, forms.quadratic], 1).to(like), None, None)
        dim = forms.linear.shape[1]
        pairs = torch.triu_indices(dim, dim)
        i, j = pairs
        twice = torch.where(i == j, 1.0, 2.0).to(forms.quadratic)
        places = torch.empty(dim, dim, dtype=torch.int64)
        places[i, j] = places[j, i] = torch.arange(len(i))
        quadratic = forms.quadratic[:, i, j] * twice
        return cls(torch.cat([*ends, quadratic], 1).to(like), pairs.to(like.device), places.reshape(-1))

    def __call__(self, z: Tensor) -> tuple[_Gather, _Evaluate]:
        columns = z.mT.contiguous()
        products = columns.square() if self.pairs is None else columns[self.pairs[0]] * columns[self.pairs[1]]
        features = torch.cat([torch.ones_like(columns[:1]), columns, products])

        def gather(shares: Tensor, scale: Tensor) -> Tensor:
            few = len(features) < len(shares)  # of two products the smaller is scaled
            sums = shares @ (features * scale).mT if few else shares.mul_(scale) @ features.mT
            first = 1 + z.shape[1]
            return sums if self.places is None else torch.cat([sums[:, :first], sums[:, first:][:, self.places]], 1)

        return gather, lambda: self.coefficients @ features


@dataclass(frozen=True, eq=False)
class _Blocked:
    """Forms by one product with all matrices side by side: for many coordinates."""

    constants: Tensor
    linear: Tensor
    side: Tensor

    @classmethod
    def of(cls, forms: Quadratics, like: Tensor) -> _Blocked:
        dim = forms.linear.shape[1]
        side = forms.quadratic.permute(1, 0, 2).reshape(dim, -1)
        return cls(*(part.to(like) for part in (forms.constants, forms.linear, side)))

    def __call__(self, z: Tensor) -> tuple[_Gather, _Evaluate]:
        count, dim = self.linear.shape

        def gather(shares: Tensor, scale: Tensor) -> Tensor:
            shares = shares.mul_(scale)
            claimed = (shares.mT.unsqueeze(2) * z.unsqueeze(1)).reshape(len(z), -1)
            return torch.cat([shares.sum(1, keepdim=True), shares @ z, (claimed.mT @ z).reshape(count, -1)], 1)

        def evaluate() -> Tensor:
            turned = (z @ self.side).reshape(len(z), count, dim) + self.linear
            return (self.constants + (turned @ z.unsqueeze(2)).squeeze(2)).mT.contiguous()

        return gather, evaluate


@dataclass(frozen=True, eq=False)
class Likelihood:
    """``D`` on rows ``x̃`` and ``ỹ``.

    Args:
        coordinates: those of the rows.
        source: ``x̃``.
        target: ``ỹ``.
    """

    coordinates: Coordinates
    source: Rows
    target: Rows

    def statistics(self, components: Components) -> tuple[float, SufficientStatistics, SufficientStatistics]:
        """``D`` and the sufficient statistics of source and target."""
        s, (source, target) = self.coordinates.s, self._resolving(components)
        below, statistics_x = source.statistics(components.source_forms(s))
        above, statistics_y = target.statistics(components.target_forms(s))
        return above - below, statistics_x, statistics_y

    def value(self, components: Components) -> float:
        """``D`` alone."""
        s, (source, target) = self.coordinates.s, self._resolving(components)
        return target.mean_log_sum(components.target_forms(s)) - source.mean_log_sum(components.source_forms(s))

    def _resolving(self, components: Components) -> tuple[Rows, Rows]:
        """Both sides, in a precision that resolves the exponents of the components."""
        return self._precise if self.coordinates.are_narrow(components) else (self.source, self.target)

    @cached_property
    def _precise(self) -> tuple[Rows, Rows]:
        return (
            Rows(self.source.rows.double(), self.source.weights),
            Rows(self.target.rows.double(), self.target.weights),
        )

    def start(self, count: int, generator: torch.Generator) -> Components:
        """``count`` clusters of the target rows, each joined to the whole source."""
        coordinates, device = self.coordinates, self.target.rows.device
        unit = self.target.rows / coordinates.n.sqrt().to(self.target.rows)
        nearest = torch.cdist(unit, _cluster_centres(unit, count, generator)).argmin(1)
        shares = torch.nn.functional.one_hot(nearest, count).double().to(device)
        everything = torch.full((len(self.source.rows), count), 1.0 / count, dtype=torch.float64, device=device)
        dim = len(coordinates.n)
        covariances = coordinates.s if coordinates.diagonal else torch.diag(coordinates.s)
        flat = Components(
            torch.zeros(count, dtype=torch.float64),
            torch.zeros(count, dim, dtype=torch.float64),
            covariances.expand(count, *covariances.shape),
        )
        statistics_x = self.source.statistics_of(everything, diagonal=coordinates.diagonal)
        return m_step(flat, statistics_x, self.target.statistics_of(shares, diagonal=coordinates.diagonal), coordinates)


def m_step(
    components: Components,
    source: SufficientStatistics,
    target: SufficientStatistics,
    coordinates: Coordinates,
    shrinkage: Tensor | None = None,
) -> Components:
    """The M-step: every component becomes the bridge between the Gaussians with its moments at the two ends.

    Its covariance ``S`` solves ``S A S + S = B`` for the covariances ``A, B`` of its source and target rows, and its
    mean is ``m = ȳ − S x̄``. Its logit changes by ``log E q_k / E r_k``, and so that the mean of the exponent over its
    source rows stays. Components with next to no mass at an end are left as they are. With ``shrinkage`` ``τ_k``,
    covariances are averaged with that of all rows, which counts as much as a mass ``τ_k``.
    """
    floor = _LEAST_SPREAD * coordinates.n
    held = torch.minimum(source.masses, target.masses) > 1e-12
    safe_x, safe_y = (
        SufficientStatistics(torch.where(held, c.masses, 1.0), c.firsts, c.seconds) for c in (source, target)
    )
    ax, by = safe_x.mean, safe_y.mean
    a, b = (one.shrunk(coordinates.n, shrinkage) for one in (safe_x, safe_y))
    if coordinates.diagonal:
        a, b = a.clamp_min(0.0) + floor, b.clamp_min(0.0) + floor
        # a s² + s = b, with the root s = 2b/(1 + √(1 + 4ab)), in which nothing cancels.
        covariances = 2.0 * b / (1.0 + (1.0 + 4.0 * a * b).sqrt())
    else:
        root_a, root_b = (_root(one, floor) for one in (a, b))
        # With A = R_A R_Aᵀ, B = R_B R_Bᵀ and R_Bᵀ R_A = U N Vᵀ, the solution of S A S + S = B (Bunne et al. 2023,
        # arXiv:2202.05722) is S = R_B U diag(2/(1 + √(1 + 4n²))) Uᵀ R_Bᵀ.
        u, n, _ = torch.linalg.svd(root_b.mT @ root_a)
        side = root_b @ u
        covariances = (side * (2.0 / (1.0 + (1.0 + 4.0 * n.square()).sqrt())).unsqueeze(1)) @ side.mT
    means = by - _apply(covariances, ax)  # E[y | x] = m + S x, so m = ȳ − S x̄
    found = Components(components.logits, means, covariances)
    # a_k ← a_k + log E q_k/E r_k + E_r[old exponent] − E_r[new exponent]: the mass in Z follows that in v.
    logits = (
        components.logits
        + (target.masses / source.masses).log()
        + _exponent(components, ax, a)
        - _exponent(found, ax, a)
    )
    wide = held.reshape(-1, *([1] * (covariances.ndim - 1)))
    return Components(
        torch.where(held, logits, components.logits),
        torch.where(held.unsqueeze(1), means, components.means),
        torch.where(wide, covariances, components.covariances),
    )


def blur(components: Components, masses: Tensor, coordinates: Coordinates) -> Tensor:
    """What ``D`` loses if target rows are blurred by the least variance ``f``, ``½ Σ_k masses_k tr(S_k⁻¹ f)``.

    Where values repeat ``D`` has no largest value: components close on them, and only their widths matter. With the
    loss each ends at the spread that :func:`m_step` gives it, which adds ``f`` to the covariance of its rows.
    """
    return 0.5 * masses @ (components.precisions @ (_LEAST_SPREAD * coordinates.n))


def _exponent(components: Components, mean: Tensor, covariance: Tensor) -> Tensor:
    """Mean of ``m_k·x̃ + ½x̃ᵀS_k x̃`` over Gaussian ``x̃``, without ``a_k``."""
    straight = ((components.means + 0.5 * _apply(components.covariances, mean)) * mean).sum(1)
    return straight + 0.5 * (components.covariances * covariance).flatten(1).sum(1)


def _apply(maps: Tensor, vectors: Tensor) -> Tensor:
    return maps * vectors if maps.ndim == 2 else (maps @ vectors.unsqueeze(-1)).squeeze(-1)


def _root(covariance: Tensor, floor: Tensor) -> Tensor:
    """Cholesky root, eigenvalues kept above ``floor`` where rounding has made them negative."""
    root, failed = torch.linalg.cholesky_ex(covariance + torch.diag(floor))
    if bool(failed.any()):
        scale = floor.sqrt()
        values, vectors = torch.linalg.eigh(covariance / (scale.unsqueeze(1) * scale))
        kept = (vectors * values.clamp_min(1.0).unsqueeze(-2)) @ vectors.mT
        root = torch.linalg.cholesky(kept * (scale.unsqueeze(1) * scale))
    return root


def _cluster_centres(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means on at most 20 000 rows from k-means++ seeds (Arthur & Vassilvitskii 2007)."""
    order = torch.randperm(len(rows), generator=generator, device=generator.device)[:_CLUSTER_ROWS]
    rows = rows[order.to(rows.device)]
    centres = rows[:1]
    for _ in range(count - 1):
        squares = torch.cdist(rows, centres).square().amin(1).double().cpu() + 1e-30
        centres = torch.cat([centres, rows[torch.multinomial(squares, 1, generator=generator).to(rows.device)]])
    for _ in range(_CLUSTER_ROUNDS):
        members = torch.nn.functional.one_hot(torch.cdist(rows, centres).argmin(1), count).to(rows)
        sizes = members.sum(0).unsqueeze(1)
        centres = torch.where(sizes > 0, (members.mT @ rows) / sizes.clamp_min(1.0), centres)
    return centres
