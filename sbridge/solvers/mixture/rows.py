"""The samples of either end on which a mixture is fitted."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws import Law, Samples, StoredRows
from sbridge.laws.moments import span_fewer
from sbridge.random import derive, generator as generator_of
from sbridge.solvers.mixture.components import Coordinates

_RESOLUTION = 1e-2  # largest allowed error of a log weight from the rounding of the samples


def drawn(law: Law, name: str, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Returns the rows of samples with their weights, ``count`` stored rows, or draws of another distribution."""
    if isinstance(law, Samples):
        return law.rows, None if law.weights is None else law.weights.double()
    if isinstance(law, StoredRows):
        return law.part(count, derive(seed, name)), None
    return law.sample(count, generator_of(derive(seed, name))), None


def chosen(rows: Tensor, weights: Tensor | None, name: str, most: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Returns at most ``most`` rows in random order; raises an error if they do not span all dimensions."""
    order = torch.randperm(len(rows), generator=generator_of(seed))[:most].to(rows.device)
    found = rows[order]
    if span_fewer(found):
        raise InvalidInputError(
            f"{len(found)} samples of the {name} span fewer than their {rows.shape[1]} dimensions, so no component "
            "has a density there; drop columns that are constant or follow from others (PCA), or use SinkhornBridge()."
        )
    return found, None if weights is None else weights[order] / weights[order].sum()


def check_resolution(coordinates: Coordinates, like: Tensor) -> None:
    """Raises InvalidInputError if the variance of the ends in units of the noise is too large for the dtype."""
    largest, eps = float(coordinates.n.max()), torch.finfo(like.dtype).eps
    if largest * eps > _RESOLUTION:
        remedy = "give the samples in float64, or " if like.dtype == torch.float32 else ""
        factor = 1.01 * math.sqrt(largest * eps / _RESOLUTION)
        raise InvalidInputError(
            f"the noise of the reference is too small for a MixtureBridge in {like.dtype}: the variance of the "
            f"ends is {largest:.1e} times that of the noise, and at most {_RESOLUTION / eps:.1e} can be resolved. "
            f"For the smallest workable ε, {remedy}multiply σ by {factor:.3g} (ε = σ²T); GaussianBridge() takes any."
        )
