"""Labels of rows, and the group of a new point by its nearest labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.data.snapshots import ArrayLike
from sbridge.display import short_repr
from sbridge.errors import InvalidInputError, listed, shown

Labels = Sequence[str] | Sequence[int] | ArrayLike
_BLOCK = 2**22  # distances held at a time, 32 MiB
_MISSING = ("nan", "None", "<NA>", "NaT")


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows that are divided into groups.

    Attributes:
        names: of the groups.
        codes: the place of each row's group in ``names``, int64, shape ``(n,)``.
    """

    names: tuple[str, ...]
    codes: Tensor

    __repr__ = short_repr

    @property
    def indicators(self) -> Tensor:
        """1 where a row is in a group, else 0: float64, shape ``(n, groups)``."""
        return torch.nn.functional.one_hot(self.codes, len(self.names)).double()


def as_groups(labels: Labels, count: int, name: str) -> Groups:
    """Reads one label for each row; groups are in the order of an ordered category, else sorted.

    Args:
        labels: anything that becomes a one-dimensional array, such as a column of ``adata.obs``.
        count: the number of rows.
        name: of the labels in messages.

    Raises:
        InvalidInputError: for another number of labels, missing ones, fewer than two groups, or a group of one row.
    """
    category = getattr(labels, "cat", None)  # of a pandas column
    order = [] if category is None else [str(one) for one in category.categories]
    found = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if found.ndim != 1:
        raise InvalidInputError(f"{name} must be a one-dimensional list of labels, got {shown(labels)}.")
    if len(found) != count:
        raise InvalidInputError(f"{name} has {len(found)} labels for {count} rows; one label for each row is needed.")
    text = np.array([str(one) for one in found])
    missing = np.isin(text, _MISSING)
    if missing.any():
        raise InvalidInputError(
            f"{name} is missing for {int(missing.sum())} of {count} rows (first: row {int(missing.argmax())}). Label "
            "or drop them."
        )
    names, codes, counts = np.unique(text, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InvalidInputError(f"{name} has only one group, {shown(str(names[0]))}; at least two are needed.")
    if counts.min() < 2:
        alone = listed(names[counts < 2].tolist())
        raise InvalidInputError(f"{name}: only one row has the label {alone}. Merge such groups or drop their rows.")
    if set(order) >= set(names.tolist()):
        places = np.argsort(np.argsort([order.index(one) for one in names.tolist()]))
        names, codes = names[np.argsort(places)], places[codes]
    return Groups(tuple(names.tolist()), torch.from_numpy(codes.astype(np.int64)))


def votes(points: Tensor, rows: Tensor, groups: Groups, neighbours: int) -> Tensor:
    """Returns the shares of the groups among the nearest ``rows`` of each point, float64, ``(points, groups)``.

    It is an estimate of ``P(group | state)``. Distances are Euclidean.
    """
    centre = rows.double().mean(0)
    near, far = rows.double() - centre, points.double() - centre
    offsets, indicators = 0.5 * near.square().sum(1), groups.indicators.to(rows.device)
    shares = []
    for block in far.split(max(1, _BLOCK // len(rows))):
        gaps = torch.addmm(offsets, block, near.mT, alpha=-1.0)  # half the squared distance, less ½|point|²
        places = gaps.argmin(1, keepdim=True) if neighbours == 1 else gaps.topk(neighbours, 1, largest=False).indices
        shares.append(indicators[places].mean(1))
    return torch.cat(shares)
