"""Kinds of data that are no smooth cloud: the default solver against the plug-in bridge of the same rows."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

import sbridge as sb
from sbridge.errors import DisconnectedWarning, HeavyTailsWarning, SbridgeWarning
from sbridge.fitting import prepare
from sbridge.fitting.choice import SolverChoice
from sbridge.fitting.samples import unlike_mixtures
from sbridge.metrics import PairEstimator, energy_distance
from sbridge.solvers.mixture.components import Components, Coordinates
from sbridge.solvers.mixture.optimise import Chart, LocalChart

FRESH, BLOCKS = 2000, 20
Kind = Callable[[int, int, torch.Generator], Tensor]
"""Rows ``(n, dim)`` of end 0 or 1, in float64."""


def _uniform(n: int, columns: int, g: torch.Generator) -> Tensor:
    return torch.rand(n, columns, generator=g, dtype=torch.float64)


def _normal(n: int, columns: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, columns, generator=g, dtype=torch.float64)


def continuous_and_binary(n: int, end: int, g: torch.Generator) -> Tensor:
    ones = (_uniform(n, 1, g) < (0.5, 0.7)[end]).double()
    return torch.cat([_normal(n, 1, g) + end * (1.0 + 0.8 * ones), ones], 1)


def narrow_binary(n: int, end: int, g: torch.Generator) -> Tensor:
    rows = continuous_and_binary(n, end, g)
    return rows + torch.tensor([0.0, 1e-3]) * _normal(n, 2, g)


def continuous_and_three_levels(n: int, end: int, g: torch.Generator) -> Tensor:
    levels = (_uniform(n, 1, g) * (3.0, 2.2)[end] + 0.8 * end).floor()
    return torch.cat([_normal(n, 1, g) + end * levels, levels], 1)


def all_binary(n: int, end: int, g: torch.Generator) -> Tensor:
    return (_uniform(n, 2, g) < torch.tensor([[0.5, 0.4], [0.7, 0.3]][end])).double()


def all_three_levels(n: int, end: int, g: torch.Generator) -> Tensor:
    return (_uniform(n, 2, g) * torch.tensor([[3.0, 3.0], [2.2, 3.0]][end])).floor()


def one_binary(n: int, end: int, g: torch.Generator) -> Tensor:
    return (_uniform(n, 1, g) < (0.5, 0.7)[end]).double()


def one_hot(n: int, end: int, g: torch.Generator) -> Tensor:
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]][end])
    which = torch.multinomial(shares, n, replacement=True, generator=g)
    return torch.cat([torch.nn.functional.one_hot(which, 3).double(), _normal(n, 1, g) + end], 1)


def counts(n: int, end: int, g: torch.Generator) -> Tensor:
    return torch.poisson(torch.tensor([[2.0, 2.0], [3.0, 2.0]][end], dtype=torch.float64).expand(n, 2), generator=g)


def rounded(n: int, end: int, g: torch.Generator) -> Tensor:
    return (5.0 * (_normal(n, 2, g) * torch.tensor([1.0, 1.0 + end]) + end)).round() / 5.0


def zero_inflated(n: int, end: int, g: torch.Generator) -> Tensor:
    zero = _uniform(n, 2, g) < (0.5, 0.3)[end]
    return torch.where(zero, 0.0, (0.5 * _normal(n, 2, g) + 0.5 * end).exp())


def duplicated(n: int, end: int, g: torch.Generator) -> Tensor:
    return (_normal(n // 10, 2, g) + end).repeat(10, 1)


def small_cluster(n: int, end: int, g: torch.Generator) -> Tensor:
    far = _uniform(n, 1, g) < 0.01
    return torch.where(far, 8.0 + 0.3 * _normal(n, 2, g), _normal(n, 2, g) + end)


def near_collinear(n: int, end: int, g: torch.Generator) -> Tensor:
    first = _normal(n, 1, g) + end
    return torch.cat([first, first * (1.0 + end) + 1e-3 * _normal(n, 1, g)], 1)


def student(n: int, end: int, g: torch.Generator) -> Tensor:
    return _normal(n, 2, g) / (_normal(n, 6, g).square().reshape(n, 2, 3).mean(2)).sqrt() + end


def log_normal(n: int, end: int, g: torch.Generator) -> Tensor:
    return (_normal(n, 2, g) * (0.8 + 0.2 * end)).exp()


def one_column(n: int, end: int, g: torch.Generator) -> Tensor:
    return _normal(n, 1, g) + 2.0 * end * (2.0 * (_uniform(n, 1, g) < 0.5).double() - 1.0)


KINDS: tuple[Kind, ...] = (
    continuous_and_binary,
    narrow_binary,
    continuous_and_three_levels,
    all_binary,
    all_three_levels,
    one_binary,
    one_hot,
    counts,
    rounded,
    zero_inflated,
    duplicated,
    small_cluster,
    near_collinear,
    student,
    log_normal,
    one_column,
)


@dataclass(frozen=True)
class Comparison:
    """How much worse the default is than the plug-in, in standard errors of the fresh rows."""

    cell: str
    what: str
    worse: float
    error: float
    plug_in: float


def compare(kind: Kind, n: int, dtype: torch.dtype, seed: int) -> list[Comparison]:
    """Energy distance to fresh rows, means and shares of columns: default and plug-in, both directions.

    Errors of the energy distance are those of its mean over blocks of the fresh rows; those of means and shares are
    of the rows that arrive. Where the default is the plug-in, it is no worse than itself and the list is empty.
    """
    g = torch.Generator().manual_seed(1000 * seed + n)
    ends = [kind(n, end, g).to(dtype) for end in (0, 1)]
    fresh = [kind(FRESH, end, g).to(dtype) for end in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbridgeWarning)
        default = sb.fit(*ends, seed=seed)
        if prepare(*ends, seed=seed).solver == sb.SinkhornBridge():
            return []
        plug_in = sb.fit(*ends, solver=sb.SinkhornBridge(), seed=seed)
    found = []
    for name, start in (("forward", 0), ("backward", 1)):
        one, other = (bridge if start == 0 else bridge.reversed() for bridge in (default, plug_in))
        d, p, y = one.transport(fresh[start], seed=seed), other.transport(fresh[start], seed=seed), fresh[1 - start]
        cell = f"{kind.__name__} {str(dtype)[6:]} n={n} seed={seed} {name}"
        found += _compared(cell, d.double(), p.double(), y.double(), ends[1 - start].double())
    return found


def _compared(cell: str, d: Tensor, p: Tensor, y: Tensor, seen: Tensor) -> list[Comparison]:
    scores = torch.tensor(
        [
            [energy_distance(a, c, PairEstimator.DISTINCT) for a in (b, q)]
            for b, q, c in zip(*(rows.chunk(BLOCKS) for rows in (d, p, y)), strict=True)
        ]
    )
    gaps = scores[:, 0] - scores[:, 1]
    means = scores.mean(0).tolist()
    error = float(gaps.std()) / BLOCKS**0.5
    found = [Comparison(cell, "energy", float(gaps.mean()) / error if error else 0.0, *means)]
    for what, feature in _features(cell, seen, y).items():
        a, b, c = (feature(rows) for rows in (d, p, y))
        scale = float(((a.var() + b.var()) / len(a)).sqrt())
        own, other = (abs(float(one.mean() - c.mean())) for one in (a, b))
        found.append(Comparison(cell, what, (own - other) / scale if scale else 0.0, own, other))
    return found


def _features(cell: str, seen: Tensor, y: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is averaged over rows: columns, being nearest to one of a few levels, being in the small cluster, zeros."""
    features: dict[str, Callable[[Tensor], Tensor]] = {}
    for j in range(y.shape[1]):
        features[f"mean of column {j}"] = partial(_column, j)
        levels = torch.unique(torch.cat([seen[:, j], y[:, j]]))
        for k in range(1, len(levels)) if len(levels) <= 4 else ():
            features[f"share of {float(levels[k]):g} in column {j}"] = partial(_nearest, j, levels, k)
        if cell.startswith("zero_inflated"):
            features[f"share of 0 in column {j}"] = partial(_near, j, 0.0, 0.05)
    if cell.startswith("small_cluster"):
        features["share of the cluster"] = partial(_near, 0, 8.0, 3.0)
    return features


def _column(j: int, rows: Tensor) -> Tensor:
    return rows[:, j]


def _nearest(j: int, levels: Tensor, k: int, rows: Tensor) -> Tensor:
    return ((rows[:, j : j + 1] - levels).abs().argmin(1) == k).double()


def _near(j: int, value: float, width: float, rows: Tensor) -> Tensor:
    return ((rows[:, j] - value).abs() < width).double()


# --- the grid


def _said(comparisons: list[Comparison]) -> str:
    worst = sorted(comparisons, key=lambda one: -one.worse)
    return "\n".join(
        f"{c.cell}, {c.what}: {c.worse:.1f} s.e. worse ({c.error:.4f}, plug-in {c.plug_in:.4f})" for c in worst[:20]
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (continuous_and_binary, torch.float64),
        (narrow_binary, torch.float32),
        (near_collinear, torch.float32),
    ],
)
def test_the_default_is_no_worse_than_the_plug_in(kind, dtype):
    found = compare(kind, 500, dtype, 0)
    assert found, "the default of this kind is the plug-in"
    assert max(one.worse for one in found) < 4.0, _said(found)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 500, 5000])
def test_all_kinds_and_dtypes(n):
    """Over three seeds: ``pytest -m slow tests/test_data_kinds.py -k all_kinds``; 5000 rows take the longest by far."""
    grid = itertools.product(KINDS, (torch.float32, torch.float64), range(3))
    found = [one for kind, dtype, seed in grid for one in compare(kind, n, dtype, seed)]
    assert sum(one.worse > 2.0 for one in found) <= 0.05 * len(found), _said(found)
    assert max((one.worse for one in found), default=0.0) < 4.0, _said(found)  # 50 rows always get the plug-in


# --- the mixture by itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_mixture_carries_the_shares_of_a_column_with_two_values(noise, dtype):
    """Its masses move although components are as narrow as they may be; 4 s.e. of shares drawn from 2000 rows."""
    g = torch.Generator().manual_seed(1)
    x0, x1 = (
        (continuous_and_binary(2000, end, g) + torch.tensor([0.0, noise]) * _normal(2000, 2, g)).to(dtype)
        for end in (0, 1)
    )
    bridge = sb.fit(x0, x1, solver=sb.MixtureBridge(components=(1, 2, 5)), seed=1)
    for ends, start, wanted in ((bridge, x0, x1), (bridge.reversed(), x1, x0)):
        arrived = ends.transport(start, seed=2)
        shares = [float((rows[:, 1] > 0.5).double().mean()) for rows in (arrived, wanted)]
        assert abs(shares[0] - shares[1]) < 4.0 * (0.25 / 2000) ** 0.5


def test_diagonal_components_carry_the_shares_of_a_column_with_two_values():
    g = torch.Generator().manual_seed(2)
    x0, x1 = (continuous_and_binary(2000, end, g) for end in (0, 1))
    solver = sb.MixtureBridge(components=(1, 2, 5), covariance=sb.solvers.Covariance.DIAGONAL)
    arrived = sb.fit(x0, x1, solver=solver, seed=1).transport(x0, seed=2)
    shares = [float((rows[:, 1] > 0.5).double().mean()) for rows in (arrived, x1)]
    assert abs(shares[0] - shares[1]) < 4.0 * (0.25 / 2000) ** 0.5


def test_a_local_chart_is_another_view_of_the_same_components():
    """Its origin is the base, and what its points are has the pull of any chart."""
    g = torch.Generator().manual_seed(3)
    process = sb.BrownianMotion(sigma=0.3)
    coordinates = Coordinates.of(process, _normal(50, 3, g), 2.0 * _normal(50, 3, g) + 1.0, diagonal=False)
    roots = _normal(4 * 3, 3, g).reshape(4, 3, 3)
    base = Components(_normal(4, 1, g)[:, 0], _normal(4, 3, g), roots @ roots.mT + 0.1 * torch.eye(3))
    chart, plain, pulls = LocalChart(coordinates, 4, base), Chart(coordinates, 4), torch.ones(4, dtype=torch.float64)
    back = chart.components(chart.point(base))
    for name in ("logits", "means", "covariances"):
        torch.testing.assert_close(getattr(back, name), getattr(base, name))
    point = chart.point(base) + 0.1 * _normal(1, len(chart.point(base)), g)[0]
    expected = plain.penalty(plain.point(chart.components(point)), pulls)
    torch.testing.assert_close(chart.penalty(point, pulls), expected)


def test_a_step_to_singular_components_is_rejected():
    """These rows once ended in a LinAlgError of the line search."""
    g = torch.Generator().manual_seed(1500)
    with pytest.warns(HeavyTailsWarning):
        bridge = sb.fit(student(500, 0, g), student(500, 1, g), solver=sb.MixtureBridge(), seed=1)
    assert bool(bridge.transport(student(10, 0, g), seed=1).isfinite().all())


# --- the choice


def _choice(kind: Kind) -> SolverChoice:
    g = torch.Generator().manual_seed(0)
    source, target = (sb.Samples(kind(1000, end, g)) for end in (0, 1))
    return sb.choose_solver(sb.BridgeProblem(source, target, sb.BrownianMotion(sigma=1.0)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (all_binary, "the source takes few distinct values in every column"),
        (one_binary, "the source takes few distinct values in every column"),
        (one_hot, "the source has discrete columns that follow from others (as of a one-hot code), first 0"),
        (counts, "the source takes few distinct values in every column"),
        (zero_inflated, "the source has the value 0 in 5"),
        (student, "the source has heavy tails: a hundredth of its samples carries "),
        (log_normal, "the source has heavy tails: a hundredth of its samples carries "),
    ],
)
def test_samples_unlike_a_mixture_get_the_plug_in(kind, reason):
    choice = _choice(kind)
    assert choice.solver == sb.SinkhornBridge()
    assert choice.reason.startswith(f"since {reason}")


@pytest.mark.parametrize("kind", [continuous_and_binary, narrow_binary, near_collinear, duplicated, one_column])
def test_samples_like_a_mixture_get_one(kind):
    assert _choice(kind).solver == sb.MixtureBridge()


def test_an_atom_is_a_twentieth_of_the_samples():
    rows = torch.arange(1000, dtype=torch.float64)[:, None]
    assert unlike_mixtures(torch.where(rows < 50, 7.5, rows)) is not None
    assert unlike_mixtures(torch.where(rows < 49, 7.5, rows)) is None


def test_the_gap_between_two_values_has_no_radius():
    g = torch.Generator().manual_seed(0)
    with pytest.warns(DisconnectedWarning, match="each part is a single value, and the gap is"):
        prepare(one_binary(500, 0, g), one_binary(500, 1, g), reference=sb.BrownianMotion(sigma=0.1))
