"""Samples of any shape, such as images: one flat row each inside, in their own shape outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws.frames import framed

Shape = tuple[int, ...]


def shape_of(samples: object) -> Shape | None:
    """Returns the shape of one sample, ``(1, 28, 28)`` of images ``(n, 1, 28, 28)``; ``None`` for rows of a table."""
    if isinstance(samples, (Tensor, np.ndarray)) and samples.ndim > 2:
        return tuple(samples.shape[1:])
    return getattr(samples, "sample_shape", None)


def common_shape(ends: Sequence[object], names: Sequence[str]) -> Shape | None:
    """Returns the shape of the samples of ``ends``; ``None`` if all are rows.

    Raises:
        InvalidInputError: if two ends have samples of different shapes, or one of them has rows.
    """
    known = [(name, shape_of(end)) for name, end in zip(names, ends, strict=True) if hasattr(end, "shape")]
    for name, shape in known[1:]:
        if shape != known[0][1]:
            first, second = (f"{'flat rows' if one is None else f'shape {one}'}" for one in (known[0][1], shape))
            raise InvalidInputError(
                f"samples of {known[0][0]} have {first}, those of {name} {second}: give both in one shape, such as "
                "x.reshape(len(x), *shape)."
            )
    return next((shape for end in ends if (shape := shape_of(end)) is not None), None)


def as_given(rows: Tensor, samples: Any) -> Any:  # noqa: ANN401
    """Returns ``rows`` ``(…, n, dim)`` in the form of the ``samples`` they come from: their shape, or a data frame."""
    shape = shape_of(samples)
    return framed(rows, samples) if shape is None else rows.unflatten(-1, shape)
