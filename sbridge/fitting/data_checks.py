"""Warnings before a fit about ends that are hard for every solver, with the number that shows the problem.

All checks use samples of the ends in float64, and at most a thousand samples where pairs are compared.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import DisconnectedWarning, HeavyTailsWarning, SbridgeWarning, ScalesWarning
from sbridge.processes import LinearProcess, Process

TAIL_SHARE = 1.0 / 3.0
"""Of the variance, carried by the hundredth of the rows that is farthest out: a Gaussian has .085 in one dimension and
less in more, an exponential law .22, Student's law with three degrees of freedom .36, a standard lognormal one .49."""
GAP_IN_RADII, GAP_IN_NOISE = 5.0, 3.0
"""Limits of the gap between two parts, relative to the larger root mean square radius and to the noise ``σ√T``."""
WIDTHS = 10.0
"""Limit of the ratio of the widths of the ends."""
NOISE_WIDTHS = 30.0
"""Limit of the noise ``σ√T`` relative to the width of the wider end."""
COLUMN_WIDTHS = 100.0
"""Limit of the ratio of the widths of columns, in units of the noise of each."""
_FEW, _THINNED, _PART = 200, 1000, 0.01


@dataclass(frozen=True)
class Gap:
    """The widest gap between two parts of the samples, of which neither consists of a few outliers.

    Attributes:
        width: smallest distance between a sample of one part and a sample of the other.
        radius: the larger root mean square distance of the samples of a part from their mean.
        share: fraction of the samples in the smaller part.
    """

    width: float
    radius: float
    share: float


def warn_if_hard(
    x0: Tensor | None, x1: Tensor | None, reference: Process, names: tuple[str, str] = ("x0", "x1")
) -> None:
    """Warns of heavy tails, distant parts, ends or columns of very different widths, and noise far wider than the data.

    Args:
        x0, x1: rows of either end, shape ``(n, dim)``; ``None`` for an end without rows. Tails and parts are not
            checked for fewer than 200 samples.
        reference: the process of the bridge between them.
        names: names of the ends in messages.
    """
    ends = [(name, rows.double()) for name, rows in zip(names, (x0, x1), strict=True) if rows is not None]
    noise = noise_level(reference, len(ends[0][1][0])) if ends else 0.0
    for name, rows in ends:
        if len(rows) >= _FEW and float(rows.std(0).max()) > 0.0:
            _warn_of_tails(name, rows)
            _warn_of_gap(name, rows, noise)
    if len(ends) == 2:
        _warn_of_widths(ends[0], ends[1], reference)
    if ends:
        _warn_of_columns([rows for _, rows in ends], reference)
        _warn_of_noise(ends, noise)


def tail_share(rows: Tensor) -> float:
    """Returns the share of the variance carried by the hundredth of the rows that is farthest from the mean."""
    squares = (rows - rows.mean(0)).square().sum(1)
    return float(squares.topk(max(1, len(rows) // 100)).values.sum() / squares.sum())


def kurtosis(rows: Tensor) -> float:
    """Returns the largest excess kurtosis ``E z⁴ − 3`` of a column that is not constant."""
    centred = rows - rows.mean(0)
    variance = centred.square().mean(0)
    return float((centred.pow(4).mean(0)[variance > 0] / variance[variance > 0].square() - 3.0).max())


def widest_gap(rows: Tensor) -> Gap | None:
    """Finds the widest gap by single linkage (Gower & Ross 1969, https://doi.org/10.2307/2346439), if there is one.

    Each part has at least one hundredth of the samples.
    """
    from scipy.cluster.hierarchy import linkage

    thinned = rows[:: -(-len(rows) // _THINNED)]
    count = len(thinned)
    merges = linkage(thinned.cpu().numpy(), "single")  # rising; cluster count + k is made by merge k
    sizes = [1] * count + [int(merge[3]) for merge in merges]
    least = max(2, math.ceil(_PART * count))
    for left, right, width, _ in reversed(merges.tolist()):
        parts = (int(left), int(right))
        if min(sizes[part] for part in parts) >= least:
            radii = [_radius(thinned[_members(merges, part, count)]) for part in parts]
            return Gap(width, max(radii), min(sizes[part] for part in parts) / count)
    return None


def noise_level(reference: Process, dim: int) -> float:
    """Returns the standard deviation of the reference's noise per coordinate over T; ``σ(0)√T`` if not linear."""
    if isinstance(reference, LinearProcess):
        return float(reference.transition(0.0, reference.horizon).root.mean_square(dim)) ** 0.5
    return float(reference.scale(0.0).mean_square(dim) * reference.horizon) ** 0.5


def _warn_of_tails(name: str, rows: Tensor) -> None:
    share = tail_share(rows)
    if share > TAIL_SHARE:
        _tell(
            HeavyTailsWarning,
            f"{name} has heavy tails: a hundredth of its rows carries {share:.0%} of its variance (largest excess "
            f"kurtosis of a column {kurtosis(rows):.3g}). Scales and the default σ depend on these rows; relative to "
            "them, all others are nearly one point. Check that they are not errors. If they are data, transform the "
            "columns (logarithm, ranks) or clip them.",
        )


def _warn_of_gap(name: str, rows: Tensor, noise: float) -> None:
    gap = widest_gap(rows)
    if gap is not None and gap.width > GAP_IN_RADII * gap.radius and gap.width > GAP_IN_NOISE * noise:
        _tell(
            DisconnectedWarning,
            f"{name} is disconnected: a gap of {gap.width:.3g} separates {gap.share:.1%} of its rows from the others, "
            + (
                f"{gap.width / gap.radius:.3g} times the radius {gap.radius:.3g} of the wider part and "
                if gap.radius > 0.0
                else "each part is a single value, and the gap is "
            )
            + f"{gap.width / noise:.3g} times the noise σ√T = {noise:.3g} of the reference. Paths of the reference "
            "practically never cross it, so controls must switch abruptly there: check the share of each part in the "
            "output, use a larger σ, or fit the parts separately.",
        )


def _warn_of_widths(first: tuple[str, Tensor], second: tuple[str, Tensor], reference: Process) -> None:
    (name0, x0), (name1, x1) = first, second
    widths = [_width(x0), _width(x1)]
    if not 0.0 < WIDTHS * min(widths) < max(widths):
        return
    if isinstance(reference, LinearProcess):
        law = reference.transition(0.0, reference.horizon)
        reached = math.hypot(_width(law.mean(x0)), noise_level(reference, x0.shape[1]))
        if 0.5 < widths[1] / reached < 2.0:  # the reference itself leads from one width to the other
            return
    _tell(
        ScalesWarning,
        f"the ends are on very different scales: the mean standard deviation of a column is {widths[0]:.3g} in {name0} "
        f"and {widths[1]:.3g} in {name1}, a ratio of {max(widths) / min(widths):.3g}. One σ cannot suit both: the "
        "noise hides the narrow end or hardly moves the wide one. Check that the units agree. If they do, use a "
        "reference "
        + (
            "that widens by itself, such as VarianceExploding."
            if widths[0] < widths[1]
            else "that narrows by itself, such as OrnsteinUhlenbeck; or make the narrow end the source, with a "
            "VarianceExploding reference."
        ),
    )


def _warn_of_noise(ends: list[tuple[str, Tensor]], noise: float) -> None:
    """Warns of noise far wider than both ends."""
    widest = max(_width(rows) for _, rows in ends)
    if 0.0 < widest * NOISE_WIDTHS < noise:
        _tell(
            ScalesWarning,
            f"the noise is far wider than the data: σ√T = {noise:.3g}, and the mean standard deviation of a column is "
            f"{widest:.3g} at most. The bridge is then nearly the independent coupling, and simulated paths miss ends "
            f"that are small compared with the noise of a step. Use a σ of about {widest:.2g}/√T; if the ends are much "
            "further apart than they are wide, subtract their means first.",
        )


def _warn_of_columns(ends: list[Tensor], reference: Process) -> None:
    """Warns of columns of very different widths; constant columns have no width."""
    if reference.scale(0.0).singular:
        return  # positions of particles with momentum have no noise to be measured in
    noise = reference.inverse_scale(0.0)
    variances = torch.stack([noise.to(rows)(rows).var(0, correction=0) for rows in ends]).mean(0)
    seen = variances.nonzero().flatten()
    if len(seen) < 2:
        return
    narrow, wide = (int(seen[pick(variances[seen])]) for pick in (torch.argmin, torch.argmax))
    ratio = math.sqrt(float(variances[wide] / variances[narrow]))
    if ratio > COLUMN_WIDTHS:
        _tell(
            ScalesWarning,
            f"columns are on very different scales: measured in the noise σ of the reference, column {wide} is "
            f"{ratio:.3g} times as wide as column {narrow} (counted from 0). One σ cannot suit both: the noise hides "
            "the narrow one or hardly moves the wide one. Standardise the columns, drop narrow ones without "
            "information, or give each column its own σ: in Python, BrownianMotion(sigma) with a vector.",
        )


def _width(rows: Tensor) -> float:
    """Returns the root mean square over columns of the standard deviation."""
    return float(rows.var(0, correction=0).mean()) ** 0.5


def _members(merges: np.ndarray, cluster: int, count: int) -> list[int]:
    """Returns the rows of a cluster in a linkage of ``count`` rows."""
    found, waiting = [], [cluster]
    while waiting:
        one = waiting.pop()
        if one < count:
            found.append(one)
        else:
            waiting.extend(int(child) for child in merges[one - count, :2])
    return found


def _radius(rows: Tensor) -> float:
    return float((rows - rows.mean(0)).square().sum(1).mean()) ** 0.5


def _tell(kind: type[SbridgeWarning], message: str) -> None:
    warnings.warn(message, kind, stacklevel=2)
