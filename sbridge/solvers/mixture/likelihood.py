"""The likelihood of a Gaussian-mixture plan given unpaired samples of both ends, and its EM steps.

The mean log likelihood of samples ``y`` given samples ``x`` is, up to a constant, ``D = E log v(ỹ) − E log Z(x̃)``
(Korotin et al. 2024, arXiv:2310.01174; notation of :mod:`sbridge.solvers.mixture.components`). Both terms are
logarithms of sums of exponentials of quadratic forms. Their gradient therefore depends on the samples only through the
responsibilities ``q_k, r_k`` of the components, in the sufficient statistics::

    E[q_k (1, ỹ, ỹỹᵀ)]   q_k(ỹ) = v_k(ỹ)/v(ỹ)                      E[r_k (1, x̃, x̃x̃ᵀ)]   r_k(x̃) = Z_k(x̃)/Z(x̃)

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

_CHUNK = 2**18  # size of the largest array of a chunk of samples, which fits in the cache
_LEAST_RESPONSIBILITY = 1e-30  # smaller ones are set to 0: subnormal numbers slow down products many times
_LEAST_EXPONENT = -70.0  # its exponential is below the least responsibility
_LEAST_VARIANCE = 1e-6  # smallest variance of a component, relative to the variance of all samples
_CLUSTER_ROWS, _CLUSTER_ROUNDS = 20_000, 20


@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """Moments of one end by component: ``E[q_k]``, ``E[q_k z]``, ``E[q_k zzᵀ]`` (or its diagonal), float64."""

    masses: Tensor
    firsts: Tensor
    seconds: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of each component, ``(K, dim)``."""
        return self.firsts / self.masses.unsqueeze(1)

    @property
    def covariance(self) -> Tensor:
        """The covariance of each component: matrices, or diagonals."""
        mean = self.mean
        if self.seconds.ndim == 2:
            return self.seconds / self.masses.unsqueeze(1) - mean.square()
        return self.seconds / self.masses.reshape(-1, 1, 1) - mean.unsqueeze(2) * mean.unsqueeze(1)

    def shrunk(self, n: Tensor, shrinkage: Tensor | None) -> Tensor:
        """The average of :attr:`covariance` and ``diag(n)``, with weights ``masses`` and ``shrinkage``."""
        own = self.covariance
        if shrinkage is None:
            return own
        everything = n if own.ndim == 2 else torch.diag(n)
        weight = (shrinkage / (shrinkage + self.masses)).reshape(-1, *[1] * (own.ndim - 1))
        return own + weight * (everything - own)


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples of one end in the coordinates above, with optional weights (sum 1)."""

    rows: Tensor
    weights: Tensor | None = None

    @property
    def count(self) -> float:
        """The number of samples; the effective number for weighted samples."""
        return float(len(self.rows)) if self.weights is None else 1.0 / float(self.weights.square().sum())

    def mean_log_sum(self, forms: Quadratics) -> float:
        """Computes the mean of ``log Σ_k exp(form_k(z))``."""
        sums = torch.cat([_log_sum(*_exponentials(evaluate())) for _, _, evaluate in self._chunks(forms)])
        return float(sums.mean() if self.weights is None else (sums * self.weights).sum())

    def statistics(self, forms: Quadratics) -> tuple[float, SufficientStatistics]:
        """Computes :meth:`mean_log_sum` and the sufficient statistics: the E-step."""
        (count, dim), total = forms.linear.shape, 0.0
        dense = forms.quadratic.ndim == 3
        sums = torch.zeros(count, 1 + dim + (dim * dim if dense else dim), dtype=torch.float64)
        for rows, weighted_sums, evaluate in self._chunks(forms):
            terms, top = _exponentials(evaluate())
            values, norm = _log_sum(terms, top), terms.sum(0)
            weights = None if self.weights is None else self.weights[rows]
            scale = 1.0 / norm if weights is None else weights.to(norm) / norm
            total += float(values.sum() if weights is None else (values * weights).sum())
            sums += weighted_sums(terms, scale).double().cpu()
        if self.weights is None:
            total, sums = total / len(self.rows), sums / len(self.rows)
        seconds = sums[:, 1 + dim :].reshape(count, dim, dim) if dense else sums[:, 1 + dim :]
        return total, SufficientStatistics(sums[:, 0], sums[:, 1 : 1 + dim], seconds)

    def statistics_of(self, responsibilities: Tensor, *, diagonal: bool) -> SufficientStatistics:
        """Computes the sufficient statistics for given responsibilities ``(n, K)``."""
        q = responsibilities
        weighted = q / len(q) if self.weights is None else q * self.weights.to(q).unsqueeze(1)
        z, q = self.rows.double(), weighted.double()
        if diagonal:
            seconds = q.mT @ z.square()
        else:
            seconds = torch.stack([(q[:, k : k + 1] * z).mT @ z for k in range(q.shape[1])])
        return SufficientStatistics(q.sum(0).cpu(), (q.mT @ z).cpu(), seconds.cpu())

    def _chunks(self, forms: Quadratics) -> Iterator[tuple[slice, _WeightedSums, _Evaluate]]:
        """Yields slices of the samples, with functions for weighted sums of ``(1, z, zzᵀ)`` and for the forms.

        Forms and responsibilities have shape ``(K, rows)``, so that sums over components run over the first axis.
        """
        (count, dim), dense = forms.linear.shape, forms.quadratic.ndim == 3
        features = 1 + dim + dim * (dim + 1) // 2 if dense else 1 + 2 * dim
        packed = not dense or features <= count * dim
        size = max(64, _CHUNK // (max(features, count) if packed else count * dim))
        prepared = _Packed.of(forms, self.rows) if packed else _Blocked.of(forms, self.rows)
        for start in range(0, len(self.rows), size):
            rows = slice(start, start + size)
            yield rows, *prepared(self.rows[rows])


def _exponentials(exponents: Tensor) -> tuple[Tensor, Tensor]:
    """Computes exponentials relative to the largest one of each sample, and the exponent of that one.

    Over their sum they are the responsibilities. Exponents are clamped, since exponentials that underflow are slow.
    """
    top = exponents.amax(0)
    return torch.threshold_((exponents - top).clamp_min_(_LEAST_EXPONENT).exp_(), _LEAST_RESPONSIBILITY, 0.0), top


def _log_sum(terms: Tensor, top: Tensor) -> Tensor:
    """Computes the logarithms of the sums of exponentials, float64."""
    return (top + terms.sum(0).log()).double()


_WeightedSums = Callable[[Tensor, Tensor], Tensor]
"""Sums of ``(1, z, zzᵀ)``, weighted by ``terms · scale``, shapes ``(K, rows)`` and ``(rows,)``; may overwrite terms."""
_Evaluate = Callable[[], Tensor]
"""Computes the forms, shape ``(K, rows)``."""


@dataclass(frozen=True, eq=False)
class _Packed:
    """Forms as one product with the monomials ``(1, z, z_i z_j)``, for few coordinates."""

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

    def __call__(self, z: Tensor) -> tuple[_WeightedSums, _Evaluate]:
        columns = z.mT.contiguous()
        products = columns.square() if self.pairs is None else columns[self.pairs[0]] * columns[self.pairs[1]]
        features = torch.cat([torch.ones_like(columns[:1]), columns, products])

        def weighted_sums(terms: Tensor, scale: Tensor) -> Tensor:
            few = len(features) < len(terms)  # the smaller factor is scaled
            sums = terms @ (features * scale).mT if few else terms.mul_(scale) @ features.mT
            first = 1 + z.shape[1]
            return sums if self.places is None else torch.cat([sums[:, :first], sums[:, first:][:, self.places]], 1)

        return weighted_sums, lambda: self.coefficients @ features


@dataclass(frozen=True, eq=False)
class _Blocked:
    """Forms as one product with all matrices side by side, for many coordinates."""

    constants: Tensor
    linear: Tensor
    side: Tensor

    @classmethod
    def of(cls, forms: Quadratics, like: Tensor) -> _Blocked:
        dim = forms.linear.shape[1]
        side = forms.quadratic.permute(1, 0, 2).reshape(dim, -1)
        return cls(*(part.to(like) for part in (forms.constants, forms.linear, side)))

    def __call__(self, z: Tensor) -> tuple[_WeightedSums, _Evaluate]:
        count, dim = self.linear.shape

        def weighted_sums(terms: Tensor, scale: Tensor) -> Tensor:
            q = terms.mul_(scale)  # the responsibilities
            weighted = (q.mT.unsqueeze(2) * z.unsqueeze(1)).reshape(len(z), -1)
            return torch.cat([q.sum(1, keepdim=True), q @ z, (weighted.mT @ z).reshape(count, -1)], 1)

        def evaluate() -> Tensor:
            turned = (z @ self.side).reshape(len(z), count, dim) + self.linear
            return (self.constants + (turned @ z.unsqueeze(2)).squeeze(2)).mT.contiguous()

        return weighted_sums, evaluate


@dataclass(frozen=True, eq=False)
class Likelihood:
    """``D`` on samples ``x̃`` and ``ỹ``.

    Args:
        coordinates: the coordinates of the samples.
        source: ``x̃``.
        target: ``ỹ``.
    """

    coordinates: Coordinates
    source: Rows
    target: Rows

    def statistics(self, components: Components) -> tuple[float, SufficientStatistics, SufficientStatistics]:
        """Computes ``D`` and the sufficient statistics of source and target."""
        s, (source, target) = self.coordinates.s, self._sides(components)
        below, statistics_x = source.statistics(components.source_forms(s))
        above, statistics_y = target.statistics(components.target_forms(s))
        return above - below, statistics_x, statistics_y

    def value(self, components: Components) -> float:
        """Computes ``D``."""
        s, (source, target) = self.coordinates.s, self._sides(components)
        return target.mean_log_sum(components.target_forms(s)) - source.mean_log_sum(components.source_forms(s))

    def _sides(self, components: Components) -> tuple[Rows, Rows]:
        """Returns both sides, in float64 if float32 does not resolve the exponents of the components."""
        return self._precise if self.coordinates.are_narrow(components) else (self.source, self.target)

    @cached_property
    def _precise(self) -> tuple[Rows, Rows]:
        source, target = (Rows(side.rows.double(), side.weights) for side in (self.source, self.target))
        return source, target

    def start(self, count: int, generator: torch.Generator) -> Components:
        """Makes components from ``count`` clusters of the target, each responsible for the whole source."""
        coordinates, device = self.coordinates, self.target.rows.device
        unit = self.target.rows / coordinates.n.sqrt().to(self.target.rows)
        nearest = torch.cdist(unit, _cluster_centres(unit, count, generator)).argmin(1)
        clusters = torch.nn.functional.one_hot(nearest, count).double().to(device)
        uniform = torch.full((len(self.source.rows), count), 1.0 / count, dtype=torch.float64, device=device)
        dim = len(coordinates.n)
        covariances = coordinates.s if coordinates.diagonal else torch.diag(coordinates.s)
        flat = Components(
            torch.zeros(count, dtype=torch.float64),
            torch.zeros(count, dim, dtype=torch.float64),
            covariances.expand(count, *covariances.shape),
        )
        statistics_x = self.source.statistics_of(uniform, diagonal=coordinates.diagonal)
        return m_step(
            flat, statistics_x, self.target.statistics_of(clusters, diagonal=coordinates.diagonal), coordinates
        )


def m_step(
    components: Components,
    source: SufficientStatistics,
    target: SufficientStatistics,
    coordinates: Coordinates,
    shrinkage: Tensor | None = None,
) -> Components:
    """The M-step: every component becomes the bridge between the Gaussians with its moments at the two ends.

    Its covariance ``S`` solves ``S A S + S = B`` for its covariances ``A, B`` at source and target, and its mean is
    ``m = ȳ − S x̄``. Its logit changes by ``log E q_k / E r_k``, plus the term that keeps the mean of the exponent over
    the source. Components with almost no mass at an end do not change. With ``shrinkage`` ``τ_k``, covariances are
    averaged with the covariance of all samples, which has the weight of a mass ``τ_k``.
    """
    floor = _LEAST_VARIANCE * coordinates.n
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


def noise_penalty(components: Components, masses: Tensor, coordinates: Coordinates) -> Tensor:
    """Computes ``½ Σ_k masses_k tr(S_k⁻¹ f)``, the loss of ``D`` if noise of variance ``f`` is added to the target.

    If values repeat, ``D`` is unbounded: components contract to these values. With this penalty they end at the
    covariance that :func:`m_step` gives them, which adds ``f`` too.
    """
    return 0.5 * masses @ (components.precisions @ (_LEAST_VARIANCE * coordinates.n))


def _exponent(components: Components, mean: Tensor, covariance: Tensor) -> Tensor:
    """Computes the mean of ``m_k·x̃ + ½x̃ᵀS_k x̃`` over Gaussian ``x̃``."""
    straight = ((components.means + 0.5 * _apply(components.covariances, mean)) * mean).sum(1)
    return straight + 0.5 * (components.covariances * covariance).flatten(1).sum(1)


def _apply(maps: Tensor, vectors: Tensor) -> Tensor:
    return maps * vectors if maps.ndim == 2 else (maps @ vectors.unsqueeze(-1)).squeeze(-1)


def _root(covariance: Tensor, floor: Tensor) -> Tensor:
    """Computes a Cholesky root; eigenvalues that rounding has made negative are raised to ``floor``."""
    root, failed = torch.linalg.cholesky_ex(covariance + torch.diag(floor))
    if bool(failed.any()):
        scale = floor.sqrt()
        values, vectors = torch.linalg.eigh(covariance / (scale.unsqueeze(1) * scale))
        kept = (vectors * values.clamp_min(1.0).unsqueeze(-2)) @ vectors.mT
        root = torch.linalg.cholesky(kept * (scale.unsqueeze(1) * scale))
    return root


def _cluster_centres(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Runs k-means on at most 20 000 samples from k-means++ seeds (Arthur & Vassilvitskii 2007)."""
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
