"""Samples that stay where they are stored: in a file larger than memory, or in a data set that makes rows on demand.

Rows are read by index, as a fit draws them. A law that is no :class:`~sbridge.laws.Samples` is drawn from by every
solver, so nothing else in the package depends on where rows are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, UnsupportedError, check_known, shown
from sbridge.laws.access import BLOCK_ROWS, Access, RowAccess, opened
from sbridge.laws.base import Law, Samples
from sbridge.laws.scaling import AffineScaling
from sbridge.random import generator
from sbridge.storage.registry import register

MOST_KNOWN = 2**17
"""Number of stored rows on which scales and default choices are based."""
_BACK = "give it the rows that it had, or fit again."


@register
@dataclass(frozen=True, eq=False)
class StoredRows(Law):
    """The empirical distribution of rows that are read when they are drawn, so that they need not fit into memory.

    All rows of an array are read once, in blocks, to check that they are finite; those of a data set are checked when
    they are drawn. Moments are those of all rows. Other choices of a fit (scales, the default σ, the solver) use
    131,072 rows. A saved bridge holds the path and not the rows.

    Samples of another shape, such as images, are flattened to rows when they are read.

    Args:
        source: the path of a ``.npy`` file (mapped into memory), of a ``.zarr`` array, or of an ``.h5ad`` or ``.h5``
            file; or an object with rows: a memory map, an array of zarr or h5py, or a map-style ``Dataset`` of torch,
            whose items are rows, or tuples that begin with a row.
        key: the place of the array in a file of several, such as ``"obsm/X_pca"``.
        dtype: ``"keep"``, or the type to convert to, ``"float32"`` or ``"float64"``; needed for integers.
        index: the numbers of the rows to use; ``None``: all.
        scaling: applied to rows when they are read; ``None``: none.
        shape: of the stored array; ``None``: found and checked now. A bridge that is loaded from a file gives it, and
            the array is looked at when rows are drawn.
        place: the name of the device to which rows are moved when they are read; see :meth:`to`.
        mark: a checksum of the first and last rows, by which other rows in the same place are noticed; ``None``:
            computed now.

    Raises:
        FileFormatError: for a path that holds no such array.
        InvalidInputError: for another shape or dtype, fewer than two rows, NaN or infinities; when rows are drawn, if
            the array has changed its shape.
    """

    source: str | Path | RowAccess
    key: str | None = None
    dtype: str = "keep"
    index: Tensor | None = None
    scaling: AffineScaling | None = None
    shape: tuple[int, ...] | None = None
    place: str = "cpu"
    mark: str | None = None
    _unscaled: StoredRows | None = field(default=None, init=False, repr=False)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_known("dtype", [self.dtype], ("keep", "float32", "float64"))
        if isinstance(self.source, (str, Path)):
            object.__setattr__(self, "source", str(Path(self.source).absolute()))
        if self.shape is not None:
            return
        object.__setattr__(self, "shape", self._access.shape)
        object.__setattr__(self, "mark", self._access.mark())
        if self.index is not None:
            object.__setattr__(self, "index", self._numbers(self.index, self._access.shape[0]))
        for places, block in self._access.blocks():
            self._checked(block, places)
        if len(self) < 2:
            raise InvalidInputError(f"{self._name} has {len(self)} row(s); at least 2 are needed.")

    def __len__(self) -> int:
        """The number of rows."""
        return self._shape[0] if self.index is None else len(self.index)

    @property
    def dim(self) -> int:
        """The number of columns, which is that of the numbers in one sample."""
        return math.prod(self._shape[1:])

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample of an array with more than two dimensions; ``None`` for rows."""
        return self._shape[1:] if len(self._shape) > 2 else None

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``n`` rows with replacement."""
        return self.take(torch.randint(len(self), (n,), generator=generator, device=generator.device))

    def rescaled(self, scaling: AffineScaling) -> StoredRows:
        """Returns the same rows, to be scaled when they are read."""
        if self.scaling is not None:
            raise UnsupportedError("stored rows are scaled once; scale those of the file.")
        found = self._with(scaling=scaling)
        object.__setattr__(found, "_unscaled", self)
        return found

    def take(self, index: Tensor) -> Tensor:
        """Reads the rows with numbers ``index`` ``(n,)``, in that order; each is read once."""
        places = index.cpu() if self.index is None else self.index[index.cpu()]
        distinct, order = np.unique(places.numpy(), return_inverse=True)
        return self._checked(self._access.take(distinct), distinct)[torch.from_numpy(order).to(self.place)]

    def part(self, most: int, seed: int) -> Tensor:
        """Reads at most ``most`` different rows: all in their order, or as many in random order."""
        return self.take(torch.arange(len(self), device="cpu") if len(self) <= most else self._order(seed)[:most])

    @property
    def device(self) -> torch.device:
        """The device of its samples."""
        return torch.device(self.place)

    def moved_to(self, device: torch.device) -> StoredRows:
        """Returns the same rows, to be moved to ``device`` when they are read: what :meth:`to` does."""
        return self._with(place=str(device))

    @property
    def like(self) -> Tensor:
        """One row, ``(1, dim)``, which has the dtype and the device of all."""
        return self.take(torch.zeros(1, dtype=torch.long, device="cpu"))

    def split(self, share: float, *, seed: int) -> tuple[StoredRows, StoredRows]:
        """Returns two distributions of different rows, drawn at random; the second has the share ``share`` of them.

        Raises:
            InvalidInputError: unless both have two rows.
        """
        last = round(share * len(self))
        if not 2 <= last <= len(self) - 2:
            raise InvalidInputError(f"a share of {share:g} of {len(self)} rows leaves fewer than two rows on one side.")
        return tuple(self.selected(part.sort().values) for part in self._order(seed).split([len(self) - last, last]))  # type: ignore[return-value]

    def selected(self, index: Tensor | np.ndarray | Sequence[int]) -> StoredRows:
        """Returns the distribution of some of the rows, by their numbers or by a mask ``(n,)``.

        Raises:
            InvalidInputError: for numbers that no row has, or fewer than two.
        """
        chosen = self._numbers(index, len(self))
        return self._with(index=chosen if self.index is None else self.index[chosen])

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(dim,)`` and covariance ``(dim, dim)`` of all rows (divided by their number), float64."""
        if self._unscaled is not None and self.scaling is not None:
            mean, covariance = self._unscaled.moments
            scale = self.scaling.scale.expand(self.dim)
            return (mean - self.scaling.shift) / scale, covariance / scale / scale[:, None]
        zero = torch.zeros(self.dim, dtype=torch.float64, device="cpu")
        total = zero, torch.outer(zero, zero)
        count = 0
        for block in self._blocks():  # the covariance of two groups is their mean one and that of their means
            rows = block.double().cpu()
            mean, covariance = rows.mean(0), rows.mT.cov(correction=0).reshape(self.dim, self.dim)
            share, away = len(block) / (count + len(block)), mean - total[0]
            spread = torch.outer(away, away) * (share * (1.0 - share))
            total = total[0] + share * away, total[1] + share * (covariance - total[1]) + spread
            count += len(block)
        return total

    def _numbers(self, index: object, count: int) -> Tensor:
        """Returns row numbers below ``count``, of numbers or of a mask."""
        chosen = torch.atleast_1d(torch.as_tensor(index, device="cpu"))  # type: ignore[arg-type]
        mask = chosen.dtype in (torch.bool, torch.uint8) or (len(chosen) == count > 2 and int(chosen.max()) <= 1)
        if mask and chosen.dtype != torch.bool:
            raise InvalidInputError(
                "index looks like a mask of numbers 0 and 1: give a mask of bool, mask.astype(bool)."
            )
        chosen = chosen.nonzero().flatten() if mask and len(chosen) == count else chosen
        if chosen.dtype.is_floating_point or chosen.dtype == torch.bool or chosen.ndim != 1 or len(chosen) < 2:
            raise InvalidInputError(
                f"index must be at least two row numbers, or a mask of {count} entries; got {shown(index)}."
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= count:
            raise InvalidInputError(f"{self._name} has rows 0 to {count - 1}; index asks for others.")
        return chosen.int() if self._access.shape[0] < 2**31 else chosen.long()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs: it opens the file of a path again."""
        opened = ("_access", "moments") if isinstance(self.source, str) else ()
        return {key: value for key, value in vars(self).items() if key not in opened}

    def _with(self, **changes: Any) -> StoredRows:  # noqa: ANN401
        """Returns other rows, another scaling or another device of the same array, which is not opened again."""
        found = replace(self, **changes)
        if "_access" in vars(self):
            object.__setattr__(found, "_access", self._access)
        return found

    def _blocks(self) -> Iterator[Tensor]:
        for first in range(0, len(self), BLOCK_ROWS):
            yield self.take(torch.arange(first, min(first + BLOCK_ROWS, len(self)), device="cpu"))

    def _order(self, seed: int) -> Tensor:
        return torch.randperm(len(self), generator=generator(seed), device="cpu")

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._access.shape if self.shape is None else self.shape

    @property
    def _name(self) -> str:
        return self.source if isinstance(self.source, str) else f"the {type(self.source).__name__}"

    @cached_property
    def _access(self) -> Access:
        array = opened(self.source, self.key) if isinstance(self.source, str) else self.source
        found = Access.of(array, self._name, self.dtype)
        if self.shape is not None and found.shape != tuple(self.shape):
            raise InvalidInputError(
                f"{self._name} has shape {found.shape} now, and had {tuple(self.shape)} before: {_BACK}"
            )
        if self.mark is not None and found.mark() != self.mark:
            raise InvalidInputError(f"{self._name} has other rows now than before: {_BACK}")
        return found

    def _checked(self, block: np.ndarray, places: np.ndarray) -> Tensor:
        """Converts rows of the array, which stand at ``places``; raises InvalidInputError if one is not finite."""
        rows = torch.from_numpy(np.require(block, self._access.dtype, ["C", "W"])).flatten(1)
        good = torch.isfinite(rows).all(1)
        if not bool(good.all()):
            raise InvalidInputError(
                f"{self._name}: row {int(places[int((~good).nonzero()[0])])} (counted from 0) has NaN or infinite "
                "entries; remove or impute them."
            )
        rows = rows.to(self.place)
        return rows if self.scaling is None else self.scaling.to_model(rows)


@register
@dataclass(frozen=True, eq=False)
class UnkeptRows(Law):
    """Stands for samples that were not saved with a bridge: they have a dimension and cannot be drawn from.

    Args:
        columns: their dimension.
    """

    columns: int

    @property
    def dim(self) -> int:
        """The dimension."""
        return self.columns

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Raises UnsupportedError."""
        raise UnsupportedError(
            "the bridge was saved without its rows (keep_rows=False), so this end cannot be drawn from. Give rows: "
            "bridge.transport(rows, seed=…)."
        )

    def rescaled(self, scaling: AffineScaling) -> UnkeptRows:
        """Returns itself."""
        return self


def in_memory(rows: Tensor | StoredRows, most: int, seed: int) -> Tensor:
    """Returns rows in memory as they are, and at most ``most`` of stored ones."""
    return rows.part(most, seed) if isinstance(rows, StoredRows) else rows


def known_rows(law: Law, most: int, seed: int) -> Tensor | None:
    """Returns all rows of samples, at most ``most`` of stored ones, and ``None`` for another distribution."""
    if isinstance(law, StoredRows):
        return law.part(most, seed)
    return law.rows if isinstance(law, Samples) else None


def row_count(law: Law) -> int | None:
    """Returns the number of rows of a distribution that has rows, otherwise ``None``."""
    if isinstance(law, StoredRows):
        return len(law)
    return len(law.rows) if isinstance(law, Samples) else None
