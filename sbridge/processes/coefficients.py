"""Coefficients given by users: converted to one form, checked, evaluated and integrated over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown
from sbridge.linear import LinearMap
from sbridge.modes import owned
from sbridge.processes.base import Time, as_time, check_time

Coefficient = float | int | Sequence[Any] | np.ndarray | np.generic | Tensor
ScaleFunction = Callable[[Tensor], Tensor]
Scale = Coefficient | ScaleFunction

NODES = 20  # Gauss–Legendre nodes on a panel: exact for polynomials of degree 39
_ILL_CONDITIONED = 1e-7  # below this ratio of singular values, σσᵀ is singular to rounding
_LARGEST = 1e30  # float32 ends at 1e38, and whitened rows are divided by σ
_BLOCK = 2**20  # numbers that the integrand may fill at a time


def as_coefficient(value: Coefficient, name: str) -> float | Tensor:
    """Converts a number to ``float``, and a vector ``(dim,)`` or matrix ``(dim, dim)`` to its own float64 tensor.

    Raises:
        InvalidInputError: for anything else, or values that are not finite.
    """
    try:
        tensor = owned(torch.as_tensor(value, dtype=torch.float64, device="cpu").detach())
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name} must be a number, a vector (dim,) or a matrix (dim, dim), got {shown(value)}."
        ) from error
    square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
    if tensor.numel() == 0 or not (tensor.ndim <= 1 or square):
        raise InvalidInputError(
            f"{name} must be a number, a vector (dim,) or matrix (dim, dim), got shape {tuple(tensor.shape)}."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInputError(f"{name} must be finite, got {shown(value)}.")
    return tensor.item() if tensor.numel() == 1 else tensor


def as_vector(value: Coefficient, name: str) -> float | Tensor:
    """Converts as :func:`as_coefficient`, without matrices."""
    vector = as_coefficient(value, name)
    if isinstance(vector, Tensor) and vector.ndim == 2:
        raise InvalidInputError(f"{name} must be a number or a vector (dim,), got shape {tuple(vector.shape)}.")
    return vector


def as_invertible(value: Coefficient, name: str) -> float | Tensor:
    """Converts as :func:`as_coefficient`; positive if a number or vector, invertible if a matrix.

    Raises:
        InvalidInputError: if it is not, or if its square would be singular to rounding.
    """
    coefficient = as_coefficient(value, name)
    _check_invertible(LinearMap.of(coefficient), name)
    return coefficient


def as_scale(value: Scale, horizon: float) -> float | Tensor | ScaleFunction:
    """Converts σ as :func:`as_invertible`, or accepts a function of time, tested at a few times of ``[0, horizon]``.

    Raises:
        InvalidInputError: if it is not invertible, or the function breaks the contract of :class:`Diffusion`.
    """
    if not callable(value):
        return as_invertible(value, "sigma")
    # Two numbers of times: a function that ignores its argument cannot fit both.
    tried = [Diffusion(value).at(torch.linspace(0.0, horizon, n, dtype=torch.float64, device="cpu")) for n in (2, 5)]
    for one in tried:
        _check_invertible(one, "sigma(t)")
    if tried[0].dim != tried[1].dim:
        raise InvalidInputError(f"sigma(t) has dimension {tried[0].dim} at some times and {tried[1].dim} at others.")
    return value


def common_dim(**maps: LinearMap) -> int | None:
    """Returns the dimension of the named coefficients, or ``None``; raises InvalidInputError if they disagree."""
    dims = {name: one.dim for name, one in maps.items() if one.dim is not None}
    if len(set(dims.values())) > 1:
        said = ", ".join(f"{name}: {dim}" for name, dim in dims.items())
        raise InvalidInputError(f"the coefficients have different dimensions ({said}).")
    return next(iter(dims.values()), None)


@dataclass(frozen=True, eq=False)
class Diffusion:
    """The noise coefficient ``σ``, constant or a function of time.

    A function is called with times of shape ``(n,)`` in float64 and returns ``(n,)`` (scalar σ), ``(n, dim)``
    (diagonal) or ``(n, dim, dim)``.

    Args:
        sigma: a coefficient as :func:`as_scale` returns it.
    """

    sigma: float | Tensor | ScaleFunction

    @cached_property
    def constant(self) -> LinearMap | None:
        """The constant σ, or ``None`` if it depends on time."""
        return None if callable(self.sigma) else LinearMap.of(self.sigma)

    @cached_property
    def probe(self) -> LinearMap:
        """The value σ(0)."""
        return self.at(torch.zeros((), dtype=torch.float64, device="cpu"))

    @cached_property
    def covariance(self) -> LinearMap | None:
        """The constant ``σσᵀ``, or ``None`` if it depends on time."""
        return None if self.constant is None else self.constant @ self.constant.T

    def at(self, t: Tensor) -> LinearMap:
        """Evaluates σ at times of shape ``(...)``, with these leading dimensions."""
        sigma = self.sigma
        if not callable(sigma):
            return over_times(LinearMap.of(sigma), t.shape)
        times = t.reshape(-1)
        values: object = sigma(times)
        shape = tuple(values.shape) if isinstance(values, Tensor) else ()
        whole = len(shape) in (1, 2, 3) and shape[:1] == (len(times),) and shape[1:-1] == shape[2:]
        if not isinstance(values, Tensor) or not whole:
            raise InvalidInputError(
                "sigma(t) is called with a tensor of n times and must return a tensor of shape (n,), "
                f"(n, dim) or (n, dim, dim); for n = {len(times)} it returned "
                f"{shape if isinstance(values, Tensor) else type(values).__name__}. Use torch functions of t "
                "(torch.exp, not math.exp); give a constant σ as a number or tensor."
            )
        values = values.detach().to(dtype=torch.float64, device="cpu")
        values = values.unsqueeze(-1) if values.ndim == 1 else values
        found = LinearMap(values.reshape(*t.shape, *values.shape[1:]), dense=values.ndim == 3)
        _check_values(found, "sigma(t)")
        return found

    def covariance_at(self, t: Tensor) -> LinearMap:
        """Evaluates ``σσᵀ`` at times of shape ``(...)``."""
        sigma = self.at(t)
        return sigma @ sigma.T


def clock(t: Time) -> Tensor:
    """Converts ``t`` to its own float64 tensor on the CPU, like coefficients."""
    return as_time(t).squeeze(-1)


def interval(s: Time, t: Time, horizon: float) -> tuple[Tensor, Tensor]:
    """Returns ``s`` and the duration ``t − s ≥ 0``, both of the broadcast shape of ``s`` and ``t``.

    Raises:
        InvalidInputError: unless ``0 ≤ s ≤ t ≤ horizon``, to rounding.
    """
    start, end = torch.broadcast_tensors(clock(check_time(s, horizon)), clock(check_time(t, horizon)))
    duration = end - start
    if bool((duration < -1e-12 * horizon).any()):
        raise InvalidInputError(f"a transition runs forward in time: s ≤ t is needed, got t − s = {duration.min():g}.")
    return start, duration.clamp_min(0.0)


def over_times(one: LinearMap, shape: torch.Size) -> LinearMap:
    """Repeats ``one``, a map without leading dimensions, over ``shape`` (without copying)."""
    return LinearMap(one.values.expand(*shape, *one.values.shape), one.dense)


def identity(shape: torch.Size) -> LinearMap:
    """Returns the identity as a scalar map with leading dimensions ``shape``."""
    return LinearMap(torch.ones(*shape, 1, dtype=torch.float64, device="cpu"))


def relative_expm1(z: Tensor) -> Tensor:
    """Computes ``(eᶻ − 1)/z``, with its limit 1 at ``z = 0``."""
    flat = z == 0
    return torch.where(flat, 1.0, torch.expm1(z) / torch.where(flat, 1.0, z))


def integrate(
    integrand: Callable[[Tensor, Tensor], LinearMap], start: Tensor, duration: Tensor, panels: int = 1
) -> LinearMap:
    """Computes ``∫ f(r, t − r) dr`` over ``[s, t] = [start, start + duration]``, for each pair in the batch.

    Gauss–Legendre with :data:`NODES` nodes on each of ``panels`` equal panels: exact if ``f`` is a polynomial
    of degree ``2·NODES − 1``, of order ``2·NODES`` in the panel's length otherwise. The nodes are treated in
    blocks, so memory stays within a few times that of the result.

    Args:
        integrand: called with ``r`` and ``t − r``, both of shape ``(n,)``; returns a map with leading ``n``.
        start: ``s``.
        duration: ``t − s``, of the same shape.
        panels: how many panels the interval is cut into.
    """
    nodes, weights = gauss_legendre(panels)
    first, length = start.reshape(-1, 1), duration.reshape(-1, 1)

    def part(points: Tensor, factors: Tensor) -> LinearMap:
        r, left = first + length * points, length * (1.0 - points)
        found = integrand(r.reshape(-1), left.reshape(-1))
        values = found.values.unflatten(0, tuple(r.shape))
        return LinearMap(torch.einsum("nm...,nm->n...", values, factors * length), found.dense)

    total = part(nodes[:1], weights[:1])
    size = max(1, _BLOCK // total.values.numel())
    for points, factors in zip(nodes[1:].split(size), weights[1:].split(size), strict=True):
        total = total + part(points, factors)
    return LinearMap(total.values.unflatten(0, tuple(start.shape)) if start.ndim else total.values[0], total.dense)


def panels_for(rate: float, duration: Tensor) -> int:
    """Returns enough panels for a factor ``e^{±2·rate·(t − r)}`` in the integrand: at most ``e^{±8}`` on each."""
    return max(1, math.ceil(rate * float(duration.detach().max()) / 4.0))


@lru_cache(maxsize=16)
def gauss_legendre(panels: int) -> tuple[Tensor, Tensor]:
    """Returns nodes and weights on [0, 1], :data:`NODES` on each of ``panels`` equal panels."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    nodes = (np.arange(panels)[:, None] + 0.5 * (points + 1.0)) / panels
    return owned(torch.from_numpy(nodes.reshape(-1))), owned(torch.from_numpy(np.tile(0.5 * weights / panels, panels)))


def _check_values(found: LinearMap, name: str) -> None:
    """Performs the checks of values that cost almost nothing."""
    if not bool(torch.isfinite(found.values).all()):
        raise InvalidInputError(f"{name} must be finite, got {shown(found.values)}.")
    if not found.dense and not bool((found.values > 0).all()):
        raise InvalidInputError(
            f"{name} must be positive, got {float(found.values.min()):g}: every coordinate needs noise."
        )


def _check_invertible(found: LinearMap, name: str) -> None:
    _check_values(found, name)
    sizes = found.values
    if found.dense:
        sizes = torch.linalg.svdvals(found.values)
        ratio = float((sizes[..., -1] / sizes[..., 0]).nan_to_num(0.0).min())
        if ratio < _ILL_CONDITIONED:
            raise InvalidInputError(
                f"{name} must be an invertible matrix; its smallest singular value is {ratio:.1e} times the "
                "largest. Add noise in the missing direction, or drop it from the data."
            )
    outside = sizes[(sizes <= 1.0 / _LARGEST) | (sizes >= _LARGEST)]
    if len(outside):
        raise InvalidInputError(
            f"{name} is {float(outside[0]):g}, outside the range {1.0 / _LARGEST:g} to {_LARGEST:g} in which its "
            "square can be computed: use a value nearer to the width of the data, if necessary in other units."
        )
