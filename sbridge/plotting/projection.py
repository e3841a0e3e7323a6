"""The plane in which data of more than two dimensions are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError

_MOST_ROWS = 4000
_MOST_TOLD = 8


@dataclass(frozen=True, eq=False)
class Projection:
    """One or two coordinates of a state: the state itself up to two dimensions, principal components beyond.

    Make one with :meth:`fit` and pass it to several figures, so that they show the same plane.

    Args:
        centre: shape ``(dim,)``, float64.
        directions: orthonormal columns, shape ``(dim, 1 | 2)``, float64.
        labels: axis labels, one per column.
        explained: fraction of the variance of the pooled samples along each column.
    """

    centre: np.ndarray
    directions: np.ndarray
    labels: tuple[str, ...]
    explained: tuple[float, ...]

    @classmethod
    def fit(cls, *sets: Tensor) -> Projection:
        """Computes the first two principal components of all ``sets`` of samples pooled, with equal weight per set.

        At most 4000 evenly spaced samples of a set are used. The largest entry of each direction is positive.

        Args:
            sets: the two ends of a bridge, or all snapshots of a time course, each ``(n, dim)``.

        Raises:
            InvalidInputError: if the sets have different numbers of columns, or there are none.
        """
        if not sets or any(x.ndim != 2 or x.shape[1:] != sets[0].shape[1:] for x in sets):
            shapes = " and ".join(str(tuple(x.shape)) for x in sets[:_MOST_TOLD]) or "none"
            raise InvalidInputError(f"a projection needs sets of rows with equal columns, got {shapes}.")
        dim = sets[0].shape[1]
        if dim <= 2:
            labels = ("$x$",) if dim == 1 else ("$x_1$", "$x_2$")
            return cls(np.zeros(dim), np.eye(dim), labels, (1.0 / dim,) * dim)
        count = min(*(len(x) for x in sets), _MOST_ROWS)
        rows = np.concatenate([_spaced(x, count) for x in sets])
        centre = rows.mean(0)
        directions, explained = _components(rows - centre)
        labels = tuple(f"PC {k + 1} ({_percent(share)} of variance)" for k, share in enumerate(explained))
        return cls(centre, directions, labels, explained)

    @property
    def columns(self) -> int:
        """The number of coordinates, 1 or 2."""
        return self.directions.shape[1]

    def __call__(self, x: Tensor) -> np.ndarray:
        """Computes coordinates of states ``(..., dim)``, shape ``(..., 1 | 2)``."""
        return (_array(self._checked(x)) - self.centre) @ self.directions

    def vectors(self, v: Tensor) -> np.ndarray:
        """Computes components of directions ``(..., dim)`` in the plane: like states, but not centred."""
        return _array(self._checked(v)) @ self.directions

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.centre):
            raise InvalidInputError(f"the projection has {len(self.centre)} columns, the states have {x.shape[-1]}.")
        return x


def _array(x: Tensor) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy()


def _spaced(x: Tensor, count: int) -> np.ndarray:
    return _array(x[torch.linspace(0, len(x) - 1, count, device="cpu").round().long().to(x.device)])


def _components(rows: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """Computes the first two right singular vectors of centred ``rows`` and their shares of the sum of squares."""
    count, dim = rows.shape
    total = float(np.square(rows).sum())
    if total == 0.0:
        return np.eye(dim)[:, :2], (0.0, 0.0)
    # The smaller Gram matrix has the same leading eigenvalues.
    gram = rows.T @ rows if dim <= count else rows @ rows.T
    size = len(gram)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[size - 2, size - 1])
    directions = (vectors if dim <= count else rows.T @ vectors)[:, ::-1]
    # A second component without variance (two rows in all) still needs a direction.
    directions = np.linalg.qr(directions)[0]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], axis=0)
    shares = np.clip(values[::-1] / total, 0.0, 1.0)
    return directions * np.where(largest < 0, -1.0, 1.0), (float(shares[0]), float(shares[1]))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"
