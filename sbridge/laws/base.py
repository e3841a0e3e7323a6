"""Distributions at the ends of a bridge: samples, a point, a closed form, or an unnormalised density."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from sbridge.devices import Movable, device_of
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError, listed, shown
from sbridge.laws.arrays import Array, as_numbers, check_rows
from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import register


class Law(ABC, Movable):
    """A probability distribution on ``R^dim``, such as the start or end of a process.

    A distribution of your own needs ``dim``, ``sample`` and ``rescaled`` (the distribution of ``(X − shift)/scale``),
    and ``log_density`` if that is known. To be saved, it must be a frozen, registered dataclass.

    The distributions of this package copy the numpy arrays and tensors that they are made from, in float32 or float64.
    Changing an array afterwards changes neither a distribution nor what was fitted to it.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """The dimension of its space."""

    @property
    def device(self) -> torch.device | None:
        """The device of its samples, that of its tensors; ``None`` if it has none."""
        return device_of(self)

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``n`` independent samples, shape ``(n, dim)``."""

    @abstractmethod
    def rescaled(self, scaling: AffineScaling) -> Law:
        """Returns the distribution of ``(X − shift) / scale``."""


@runtime_checkable
class HasDensity(Protocol):
    """A distribution with a log density, normalised or not.

    They are :class:`Density`, :class:`Gaussian` and :class:`GaussianMixture`.
    """

    @property
    def dim(self) -> int:
        """The dimension."""
        ...

    @property
    def log_density(self) -> Callable[[Tensor], Tensor]:
        """``−E``, a function ``(batch, dim) → (batch,)``."""
        ...


@register
@dataclass(frozen=True, eq=False, init=False)
class Samples(Law):
    """The empirical distribution of ``rows`` ``(n, dim)``, with optional ``weights`` of shape ``(n,)`` (sum 1).

    Both are numpy arrays or tensors, and are copied; :meth:`sharing` makes one without a copy. Weights are kept in the
    dtype and on the device of the rows.

    The number of rows is a sampling depth. If the population has a known mass, such as a number of cells, say so:
    ``mass=len(rows)``. It matters only to a bridge whose ends may change (:class:`~sbridge.problems.SoftEnds`).

    Raises:
        InvalidInputError: for fewer than two rows, another shape or dtype, NaN or infinities, weights
            that are negative or do not sum to one, or a mass that is not positive and finite.
    """

    rows: Tensor
    weights: Tensor | None = None
    mass: float = 1.0
    holds_training_rows: ClassVar[bool] = True

    __repr__ = short_repr

    def __init__(self, rows: Array, weights: Array | None = None, mass: float = 1.0) -> None:
        self._hold(as_numbers(rows, "rows", copy=True).detach(), weights, mass)

    @classmethod
    def sharing(cls, rows: Tensor, weights: Array | None = None, mass: float = 1.0) -> Samples:
        """Makes samples that share the memory of ``rows``, for tables that are too large to copy.

        The caller must not change the rows afterwards.
        """
        made = object.__new__(cls)
        made._hold(as_numbers(rows, "rows"), weights, mass)
        return made

    def _hold(self, rows: Tensor, weights: Array | None, mass: float) -> None:
        check_rows(rows, "rows")
        if not (isinstance(mass, (int, float)) and 0.0 < mass < math.inf):
            raise InvalidInputError(f"the mass of samples must be positive and finite, got {shown(mass)}.")
        object.__setattr__(self, "mass", float(mass))
        object.__setattr__(self, "rows", rows)
        if weights is not None:
            weights = as_numbers(weights, "weights", copy=True).detach().to(rows)
            if (
                weights.shape != rows.shape[:1]
                or not bool((weights >= 0).all())
                or abs(float(weights.sum()) - 1) > 1e-4
            ):
                raise InvalidInputError(
                    f"weights must be {len(rows)} non-negative numbers with sum 1, got shape {tuple(weights.shape)} "
                    f"and sum {float(weights.sum()):g}."
                )
        object.__setattr__(self, "weights", weights)

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size ``1/Σ w²``; without weights, the number of rows."""
        return float(len(self.rows)) if self.weights is None else 1.0 / float(self.weights.double().square().sum())

    @property
    def dim(self) -> int:
        """The number of columns."""
        return self.rows.shape[1]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``n`` rows with replacement."""
        if self.weights is None:
            index = torch.randint(len(self.rows), (n,), generator=generator, device=generator.device)
        else:
            index = torch.multinomial(self.weights.to(generator.device), n, replacement=True, generator=generator)
        return self.rows[index.to(self.rows.device)]

    def rescaled(self, scaling: AffineScaling) -> Samples:
        """Returns the scaled rows with the same weights."""
        return Samples.sharing(scaling.to_model(self.rows), self.weights, self.mass)


@register
@dataclass(frozen=True, eq=False, init=False)
class Gaussian(Law):
    """The Gaussian ``N(mean, covariance)``; ``mean`` of shape ``(dim,)``, ``covariance`` ``(dim, dim)``.

    Raises:
        InvalidInputError: if the shapes do not fit or the covariance is not positive definite.
    """

    mean: Tensor
    covariance: Tensor

    __repr__ = short_repr

    def __init__(self, mean: Array, covariance: Array) -> None:
        _hold(self, mean=mean, covariance=covariance)
        dim = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.covariance.shape != (dim, dim):
            raise InvalidInputError(
                f"a Gaussian needs mean (dim,) and covariance (dim, dim), got {tuple(self.mean.shape)} and "
                f"{tuple(self.covariance.shape)}."
            )
        symmetric = torch.allclose(self.covariance, self.covariance.mT, rtol=1e-5)
        if not symmetric or int(torch.linalg.cholesky_ex(self.covariance).info):
            raise InvalidInputError("the covariance of a Gaussian must be symmetric and positive definite.")

    @property
    def dim(self) -> int:
        """The length of the mean."""
        return self.mean.shape[0]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``mean + L ξ`` with ``L Lᵀ = covariance``."""
        noise = torch.randn(n, self.dim, generator=generator, device=generator.device, dtype=self.mean.dtype)
        return self.mean + noise.to(self.mean.device) @ torch.linalg.cholesky(self.covariance).mT

    def rescaled(self, scaling: AffineScaling) -> Gaussian:
        """Returns the Gaussian with scaled mean, and ``covariance_ij / (scale_i scale_j)``."""
        return Gaussian(scaling.to_model(self.mean), _scaled_covariance(self.covariance, scaling))

    def log_density(self, x: Tensor) -> Tensor:
        """Computes ``log N(x; mean, covariance)``, shape ``(batch,)``."""
        root = torch.linalg.cholesky(self.covariance)
        z = torch.linalg.solve_triangular(root, (x - self.mean).mT, upper=False)
        return -0.5 * (z.square().sum(0) + self.dim * math.log(2 * math.pi)) - root.diagonal().log().sum()


@register
@dataclass(frozen=True, eq=False, init=False)
class GaussianMixture(Law):
    """The Gaussian mixture ``Σ_k weights_k N(means_k, covariances_k)``.

    Args:
        weights: shape ``(K,)``, non-negative with sum 1.
        means: shape ``(K, dim)``.
        covariances: shape ``(K, dim, dim)``, positive definite.

    Raises:
        InvalidInputError: for other shapes, weights that are negative or do not sum to 1, or covariances that are not
            positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    __repr__ = short_repr

    def __init__(self, weights: Array, means: Array, covariances: Array) -> None:
        _hold(self, weights=weights, means=means, covariances=covariances)
        count, dim = self.means.shape if self.means.ndim == 2 else (-1, -1)
        if self.weights.shape != (count,) or self.covariances.shape != (count, dim, dim):
            raise InvalidInputError(
                "a Gaussian mixture needs weights (K,), means (K, dim) and covariances (K, dim, dim), got "
                f"{tuple(self.weights.shape)}, {tuple(self.means.shape)} and {tuple(self.covariances.shape)}."
            )
        if not bool((self.weights >= 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-4:
            raise InvalidInputError(
                f"mixture weights must be non-negative with sum 1, got {listed(self.weights.tolist())}."
            )
        if bool(torch.linalg.cholesky_ex(self.covariances).info.any()):
            raise InvalidInputError("every covariance of a mixture must be positive definite.")

    @property
    def dim(self) -> int:
        """The dimension of the means."""
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws components, then points."""
        device = generator.device
        which = torch.multinomial(self.weights.to(device), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, device=device, dtype=self.means.dtype)
        which, noise = which.to(self.means.device), noise.to(self.means.device)
        rows = self.means[which]
        for k, root in enumerate(torch.linalg.cholesky(self.covariances)):
            rows[which == k] += noise[which == k] @ root.mT  # one matrix a component, not one a row
        return rows

    def rescaled(self, scaling: AffineScaling) -> GaussianMixture:
        """Returns the mixture of the scaled components."""
        return GaussianMixture(
            self.weights, scaling.to_model(self.means), _scaled_covariance(self.covariances, scaling)
        )

    def log_density(self, x: Tensor) -> Tensor:
        """Computes ``log Σ_k w_k N(x; μ_k, Σ_k)``, shape ``(batch,)``."""
        parts = [Gaussian(m, c).log_density(x) for m, c in zip(self.means, self.covariances, strict=True)]
        return torch.logsumexp(torch.stack(parts, -1) + self.weights.log(), -1)


@register
@dataclass(frozen=True, eq=False, init=False)
class Point(Law):
    """A Dirac distribution: every draw is ``position``, of shape ``(dim,)``.

    Raises:
        InvalidInputError: for another shape or dtype, NaN or infinities.
    """

    position: Tensor

    __repr__ = short_repr

    def __init__(self, position: Array) -> None:
        _hold(self, position=position)
        if self.position.ndim != 1:
            raise InvalidInputError(f"a Point needs a position of shape (dim,), got {tuple(self.position.shape)}.")
        check_rows(self.position.unsqueeze(0), "position", least=1)

    @property
    def dim(self) -> int:
        """The length of the position."""
        return self.position.shape[0]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Returns ``n`` copies of the position; does not use the generator."""
        return self.position.repeat(n, 1)

    def rescaled(self, scaling: AffineScaling) -> Point:
        """Returns the scaled position."""
        return Point(scaling.to_model(self.position))


@register
@dataclass(frozen=True, eq=False)
class Density(Law):
    """A distribution known only by its unnormalised log density ``(batch, dim) → (batch,)``: it cannot be sampled.

    A bridge or problem that contains it can be saved only if the log density is an object of a registered class, not a
    function.
    """

    log_density: Callable[[Tensor], Tensor]
    dimension: int

    @property
    def dim(self) -> int:
        """The declared dimension."""
        return self.dimension

    @property
    def device(self) -> None:
        """``None``: the log density takes states of any device."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Raises UnsupportedError: sampling a density is the task of a solver."""
        raise UnsupportedError(
            "a Density cannot be sampled. To simulate a bridge that starts in one, give rows of your own: "
            "measure.simulate(rows, seed=…), or bridge.reversed().transport(rows, seed=…)."
        )

    def rescaled(self, scaling: AffineScaling) -> Density:
        """Returns the density of the scaled variable, up to its constant."""
        return Density(_InModelUnits(self.log_density, scaling), self.dimension)


@register
@dataclass(frozen=True, eq=False)
class _InModelUnits:
    """A log density of data units as a function of model units."""

    log_density: Callable[[Tensor], Tensor]
    scaling: AffineScaling

    def __call__(self, x: Tensor) -> Tensor:
        return self.log_density(self.scaling.to_data(x))


def _scaled_covariance(covariance: Tensor, scaling: AffineScaling) -> Tensor:
    inverse = (1.0 / scaling.scale.to(covariance)).expand(covariance.shape[-1])
    return covariance * inverse.unsqueeze(-1) * inverse


def _hold(law: Law, **fields: Array) -> None:
    """Sets the fields of a distribution to copies of the given arrays."""
    for name, value in fields.items():
        object.__setattr__(law, name, as_numbers(value, name, copy=True))


def as_law(value: object, name: str) -> Law:
    """Converts ``value`` to a :class:`Law`: an array or tensor of rows becomes :class:`Samples`, with its own copy.

    Samples of another shape, ``(n, …)``, are flattened to rows.

    Raises:
        InvalidInputError: if it is neither a distribution nor a float32 or float64 array of finite rows.
    """
    return value if isinstance(value, Law) else Samples.sharing(_checked(value, name, least=2, copy=True).detach())


def as_rows(value: object, name: str, *, least: int = 2) -> Tensor:
    """Checks a float32 or float64 array or tensor ``(n, dim)`` and returns a tensor, which may share its memory.

    Samples of another shape, ``(n, …)``, are flattened to rows.

    Raises:
        InvalidInputError: for another shape or kind (see :func:`~sbridge.laws.arrays.as_numbers`), fewer than ``least``
            rows, NaN or infinities.
    """
    return _checked(value, name, least=least, copy=False)


def _checked(value: object, name: str, *, least: int, copy: bool) -> Tensor:
    rows = as_numbers(value, name, copy=copy)
    rows = rows.flatten(1) if rows.ndim > 2 else rows
    check_rows(rows, name, least=least)
    return rows


def check_same_space(source: Law, target: Law, names: tuple[str, str]) -> None:
    """Raises InvalidInputError unless both ends of a bridge have the same number of columns."""
    if source.dim != target.dim:
        raise InvalidInputError(
            f"{names[0]} has {source.dim} columns, {names[1]} has {target.dim}: a bridge needs both ends in the same "
            "space. Project both on common coordinates first."
        )


def check_same_kind(left: Tensor, right: Tensor, names: tuple[str, str]) -> None:
    """Raises InvalidInputError unless both tensors have the same dtype and device."""
    for what in ("dtype", "device"):
        if getattr(left, what) != getattr(right, what):
            raise InvalidInputError(
                f"{names[0]} has {what} {getattr(left, what)}, {names[1]} has {what} {getattr(right, what)}; convert "
                "one to that of the other."
            )
