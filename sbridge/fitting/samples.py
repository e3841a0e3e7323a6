"""Checks before a fit for samples that Gaussian components do not represent."""

from __future__ import annotations

from torch import Tensor

from sbridge.fitting.data_checks import tail_share
from sbridge.laws.moments import span_fewer

ATOM = 0.05
"""A single value with at least this share of the samples is an atom of a column."""
LEVEL, LEVELS = 0.01, 0.99
"""Shares: values with at least the first are levels; a column is discrete if its levels hold the second."""
FEW_STATES, ROWS_A_STATE = 5, 100
"""Joint states of discrete columns that components can cover, and the rows that each needs."""
HEAVY = 0.25
"""Mean over columns of the share of the variance in the hundredth of the rows that is farthest out. Gaussian: .085,
exponential: .22, Student's t with 3 degrees of freedom: .36, log-normal with a log standard deviation of .8: .35."""
_MOST = 10_000


def unlike_mixtures(rows: Tensor) -> str | None:
    """Explains why a Gaussian mixture does not represent the distribution of ``rows`` ``(n, dim)``, else ``None``.

    The reasons, checked on at most 10 000 samples, are: all columns are discrete; a column has an atom and other,
    continuous values (zero-inflated); discrete columns have more joint states than components can cover (a component
    needs 100 samples), or follow from other columns; heavy tails. A mixture can represent one or two discrete columns
    together with continuous ones.

    Returns:
        A clause without a subject, such as ``"takes few distinct values in every column"``.
    """
    thinned = rows[:: -(-len(rows) // _MOST)].double()
    columns = (thinned != thinned[0]).any(0).nonzero().flatten().tolist()  # a constant one is flat, not discrete
    if not columns:
        return None
    atomic = [j for j, atom in zip(columns, _have_atoms(thinned[:, columns]), strict=True) if atom]
    discrete = [j for j in atomic if _is_discrete(thinned[:, j])]
    if len(discrete) == len(columns):
        return "takes few distinct values in every column"
    for j in atomic:
        if j not in discrete:
            share, value = _largest_atom(thinned[:, j])
            return f"has the value {value:.6g} in {share:.0%} of its samples, and other values too, in column {j}"
    if discrete:
        states = len(thinned[:, discrete].unique(dim=0))
        if states > FEW_STATES or len(rows) < ROWS_A_STATE * states:
            return f"takes {states} combinations of values in {len(discrete)} discrete column(s), first {discrete[0]}"
        if span_fewer(thinned[:, columns]):
            return f"has discrete columns that follow from others (as of a one-hot code), first {discrete[0]}"
    heavy = sum(tail_share(thinned[:, j : j + 1]) for j in columns) / len(columns)
    if heavy > HEAVY:
        return f"has heavy tails: a hundredth of its samples carries {heavy:.0%} of the variance of a column on average"
    return None


def _have_atoms(rows: Tensor) -> list[bool]:
    """Returns for each column whether a single value has at least the share :data:`ATOM` of the rows."""
    apart = max(1, int(ATOM * len(rows) + 0.999) - 1)  # equal values that far apart, in rising order, are an atom
    rising = rows.sort(0).values
    return (rising[apart:] == rising[:-apart]).any(0).tolist()


def _is_discrete(column: Tensor) -> bool:
    counts = column.unique(return_counts=True)[1]
    return int(counts[counts >= LEVEL * len(column)].sum()) >= LEVELS * len(column)


def _largest_atom(column: Tensor) -> tuple[float, float]:
    values, counts = column.unique(return_counts=True)
    largest = int(counts.argmax())
    return int(counts[largest]) / len(column), float(values[largest])
