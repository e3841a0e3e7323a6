"""Transition probabilities between groups of cells at two times."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sbridge.cells.groups import Groups
from sbridge.display import decimals_of, short_repr, value_and_error

_DECIMALS = 3


@dataclass(frozen=True, eq=False)
class Transitions:
    """Probabilities from the groups of one time to those of another.

    Attributes:
        origins: names of the groups at the start.
        groups: names of the groups at the other time.
        probabilities: ``P(group | origin)``, shape ``(origins, groups)``; rows sum to 1.
        standard_errors: of the mean over the rows of an origin, shape ``(origins, groups)``. They contain the sampling
            of these rows and the draws; they do not contain the error of the fit.
    """

    origins: tuple[str, ...]
    groups: tuple[str, ...]
    probabilities: Tensor
    standard_errors: Tensor

    __repr__ = short_repr

    @classmethod
    def of(cls, probabilities: Tensor, weights: Tensor, origins: Groups, groups: tuple[str, ...]) -> Transitions:
        """Averages the ``probabilities`` ``(n, groups)`` of rows over each origin, with ``weights`` ``(n,)``."""
        values, members = probabilities.double(), origins.indicators.to(probabilities.device)
        shares = members * weights.double()[:, None]
        shares = shares / shares.sum(0)
        means = shares.mT @ values
        gaps = (values - means[origins.codes.to(values.device)]).square()
        counts = members.sum(0)[:, None]
        errors = (shares.square().mT @ gaps * counts / (counts - 1.0)).sqrt()
        return cls(origins.names, groups, means.to(probabilities), errors.to(probabilities))

    def text(self) -> str:
        """Returns the table as text, each probability with its standard error."""
        least = float(self.standard_errors.max())
        decimals = _DECIMALS if least == 0.0 else min(decimals_of(least), _DECIMALS)
        cells = [
            [value_and_error(value, error, decimals) for value, error in zip(values, errors, strict=True)]
            for values, errors in zip(self.probabilities.tolist(), self.standard_errors.tolist(), strict=True)
        ]
        return table([("", *self.groups), *((name, *row) for name, row in zip(self.origins, cells, strict=True))])

    __str__ = text


def table(lines: list[tuple[str, ...]]) -> str:
    """Aligns columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if place == 0 else cell.rjust(w)
            for place, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
