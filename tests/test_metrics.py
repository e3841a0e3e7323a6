"""Metrics against closed forms and brute force, their invariances, and the sampling floor."""

import math

import ot
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sbridge.errors import InvalidInputError
from sbridge.metrics import (
    MMD,
    STANDARD_METRICS,
    BuresUVP,
    EnergyDistance,
    ExactW2,
    HalfEnergyDistance,
    PairEstimator,
    SlicedW2,
    bures_squared,
    covariance,
    energy_distance,
    median_distance,
    sampling_floor,
)
from sbridge.storage.registry import decode, encode

ALL, DISTINCT = PairEstimator.ALL, PairEstimator.DISTINCT
EVERY_METRIC = (*STANDARD_METRICS, HalfEnergyDistance(), EnergyDistance(DISTINCT), MMD(0.7, DISTINCT))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n, dim, seed=0, dtype=torch.float64, shift=0.0):
    return torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64).to(dtype) + shift


def within_errors(values, truth, bound=4.0):
    """Whether the mean of independent values is within ``bound`` standard errors of the truth."""
    values = torch.tensor(values, dtype=torch.float64)
    return abs(float(values.mean()) - truth) < bound * float(values.std()) / math.sqrt(len(values))


def mean_absolute_normal(mean, std):
    """E|Z| of Z ~ N(mean, std²)."""
    z = mean / (std * math.sqrt(2))
    return std * math.sqrt(2 / math.pi) * math.exp(-z * z) + mean * math.erf(z)


# ---- W2


def test_w2_in_one_dimension_is_by_sorting(dtype):
    x, y = rows(100, 1, 1, dtype), 2 * rows(100, 1, 2, dtype, shift=0.5)
    expected = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert ExactW2()(x, y, seeded()) == pytest.approx(expected, rel=1e-5)
    assert SlicedW2(3)(x, y, seeded()) == pytest.approx(expected, rel=1e-5)


def test_w2_thins_by_the_rule_it_states():
    x, y = rows(300, 2, 1), rows(250, 2, 2)
    limited = ExactW2(max_rows=40)
    value, generator = limited(x, y, seeded(3)), seeded(3)
    index = [torch.randperm(n, generator=generator)[:40] for n in (300, 250)]
    assert value == ExactW2()(x[index[0]], y[index[1]], seeded())
    assert value == limited(x, y, seeded(3))
    assert value != limited(x, y, seeded(4))
    assert "40" in limited.name


def test_w2_uses_every_row_up_to_the_limit():
    x, y = rows(60, 2, 1), rows(50, 2, 2)
    generator = seeded(1)
    assert ExactW2(60)(x, y, generator) == ExactW2(5000)(x, y, seeded(2))
    assert torch.equal(generator.get_state(), seeded(1).get_state())


def test_sliced_w2_of_a_shift():
    # (θ·m)² averages to |m|²/dim over the sphere; 4000 directions, standard error from the directions themselves.
    x, shift = rows(50, 3, 1), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    squared = SlicedW2(4000)(x, x + shift, seeded()) ** 2
    truth = float(shift.square().sum()) / 3
    spread = truth * math.sqrt(4 / 5) / math.sqrt(4000)  # Var (θ·m)² = |m|⁴ (3/15 − 1/9) = (|m|²/3)²·4/5
    assert abs(squared - truth) < 4 * spread


def test_sliced_w2_directions_are_seeded():
    x, y = rows(50, 3, 1), rows(40, 3, 2)
    assert SlicedW2(7)(x, y, seeded(1)) == SlicedW2(7)(x, y, seeded(1))
    assert SlicedW2(7)(x, y, seeded(1)) != SlicedW2(7)(x, y, seeded(2))


# ---- energy distance


@pytest.mark.parametrize("pairs", [ALL, DISTINCT])
def test_energy_distance_by_brute_force(dtype, pairs):
    x, y = rows(1500, 2, 1, dtype, shift=100.0), rows(1100, 2, 2, dtype, shift=100.5)  # more than one block
    inside = [torch.cdist(z.double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist") for z in (x, y)]
    across = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    means = [float(d.sum()) / (len(d) * (len(d) - (pairs is DISTINCT))) for d in inside]
    expected = 2 * float(across.mean()) - sum(means)
    assert energy_distance(x, y, pairs) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert EnergyDistance(pairs)(x, y, seeded()) == energy_distance(x, y, pairs)
    assert HalfEnergyDistance(pairs)(x, y, seeded()) == 0.5 * energy_distance(x, y, pairs)


def test_energy_distance_of_gaussians_in_closed_form():
    # 2E|X−Y| − E|X−X'| − E|Y−Y'| for N(0, 1) and N(1, 4), each difference normal.
    own = mean_absolute_normal(0, math.sqrt(2)), mean_absolute_normal(0, math.sqrt(8))
    truth = 2 * mean_absolute_normal(1, math.sqrt(5)) - sum(own)
    pairs = [(rows(300, 1, 2 * k), 1 + 2 * rows(200, 1, 2 * k + 1)) for k in range(40)]
    unbiased = [energy_distance(x, y, DISTINCT) for x, y in pairs]
    assert within_errors(unbiased, truth)
    # The V-statistic adds E|X−X'|/n + E|Y−Y'|/m.
    bias = own[0] / 300 + own[1] / 200
    assert within_errors([energy_distance(x, y) for x, y in pairs], truth + bias)


def test_energy_distance_of_equal_rows_is_zero(dtype):
    x = rows(1300, 3, 1, dtype, shift=1e3)
    assert abs(energy_distance(x, x.flip(0))) < 1e-6
    assert energy_distance(x, x, DISTINCT) < 0


# ---- MMD


def kernel_mean(gap, variance, width, dim):
    """E exp(−|Z|²/2h²) of Z ~ N(gap·e, variance·I), |e| = 1."""
    total = width**2 + variance
    return (width**2 / total) ** (dim / 2) * math.exp(-0.5 * gap**2 / total)


def test_mmd_of_gaussians_in_closed_form():
    # N(0, I) and N(e, 4I) in three dimensions, h = 1.5.
    terms = [kernel_mean(0, 2, 1.5, 3), kernel_mean(1, 5, 1.5, 3), kernel_mean(0, 8, 1.5, 3)]
    truth = terms[0] - 2 * terms[1] + terms[2]
    shift = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    pairs = [(rows(200, 3, 2 * k), shift + 2 * rows(150, 3, 2 * k + 1)) for k in range(40)]
    assert within_errors([MMD(1.5, DISTINCT)(x, y, seeded()) for x, y in pairs], truth)
    bias = (1 - terms[0]) / 200 + (1 - terms[2]) / 150
    assert within_errors([MMD(1.5)(x, y, seeded()) for x, y in pairs], truth + bias)


@pytest.mark.parametrize("pairs", [ALL, DISTINCT])
def test_mmd_by_brute_force(dtype, pairs):
    x, y = rows(9, 2, 1, dtype), rows(7, 2, 2, dtype)
    k = [(-torch.cdist(a.double(), b.double()).square() / (2 * 0.8**2)).exp() for a, b in ((x, x), (y, y), (x, y))]
    own = [float(m.mean()) if pairs is ALL else float(m.sum() - len(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
    assert MMD(0.8, pairs)(x, y, seeded()) == pytest.approx(sum(own) - 2 * float(k[2].mean()), rel=1e-9)


def test_mmd_bandwidth_is_the_median_distance_of_the_reference(dtype):
    x, y = rows(80, 2, 1, dtype), rows(101, 2, 2, dtype)
    width = float(torch.pdist(y.double()).median())
    assert median_distance(y, seeded()) == pytest.approx(width)
    assert MMD()(x, y, seeded()) == pytest.approx(MMD(width)(x, y, seeded()), rel=1e-9)
    many = rows(5000, 2, 3)
    assert median_distance(many, seeded(1)) == median_distance(many, seeded(1)) != median_distance(many, seeded(2))


def test_mmd_refuses_a_reference_of_equal_rows():
    with pytest.raises(InvalidInputError, match="median distance of the rows is zero"):
        MMD()(rows(5, 2), torch.ones(5, 2, dtype=torch.float64), seeded())
    with pytest.raises(InvalidInputError, match="bandwidth must be positive"):
        MMD(bandwidth=0.0)


# ---- Bures-Wasserstein


def test_bures_in_closed_form():
    one = lambda value: torch.tensor([[value]])  # noqa: E731
    assert bures_squared(torch.zeros(1), torch.ones(1), one(4.0), one(1.0)) == pytest.approx(0.5 * (1 + (2 - 1) ** 2))
    a, b = torch.tensor([1.0, 4.0, 0.0]).diag(), torch.tensor([9.0, 1.0, 0.25]).diag()
    expected = 0.5 * ((1 - 3) ** 2 + (2 - 1) ** 2 + 0.5**2)
    assert bures_squared(torch.zeros(3), torch.zeros(3), a, b) == pytest.approx(expected)


def test_bures_agrees_with_pot():
    x, y = rows(40, 4, 1) @ rows(4, 4, 5), rows(50, 4, 2) @ rows(4, 4, 6) + 1
    a, b = covariance(x), covariance(y)
    theirs = ot.gaussian.bures_wasserstein_distance(x.mean(0), y.mean(0), a, b)
    assert bures_squared(x.mean(0), y.mean(0), a, b) == pytest.approx(0.5 * float(theirs) ** 2, rel=1e-9)


def test_bures_of_singular_covariances():
    # Rank one: N(0, s² uuᵀ) and N(0, r² uuᵀ) are one-dimensional, at distance (s − r)²/2.
    u = rows(30, 1, 1)
    u /= u.norm()
    zero = torch.zeros(30, dtype=u.dtype)
    assert bures_squared(zero, zero, 9 * u @ u.mT, 4 * u @ u.mT) == pytest.approx(0.5, abs=1e-6)
    assert bures_squared(zero, zero, covariance(rows(4, 30, 2)), 0 * u @ u.mT) == pytest.approx(
        0.5 * float(covariance(rows(4, 30, 2)).trace())
    )


def test_bures_is_half_the_transport_cost_of_an_affine_image():
    # y = Mx with M symmetric positive is the optimal map, so W2² is the plain mean of |x − y|².
    x, m = rows(60, 2, 1), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    y = x @ m
    cost = ExactW2()(x, y, seeded()) ** 2
    n = 60 / 59  # unbiased covariances against the mean over rows
    exact = bures_squared(x.mean(0), y.mean(0), covariance(x) / n, covariance(y) / n)
    assert exact == pytest.approx(0.5 * cost, rel=1e-9)


def test_bures_uvp_formula(dtype):
    x, y = rows(500, 2, 1, dtype), 1.5 * rows(400, 2, 2, dtype) + 1
    value = 0.5 * (x.mean(0) - y.mean(0)).double().square().sum()
    a, b = covariance(x), covariance(y)
    # tr (A^½BA^½)^½ is the sum of the roots of the eigenvalues of AB.
    value += 0.5 * (a.trace() + b.trace()) - torch.linalg.eigvals(a @ b).real.sqrt().sum()
    assert BuresUVP()(x, y, seeded()) == pytest.approx(100 * float(value / (0.5 * b.trace())), rel=1e-6)
    # Singular covariances are no obstacle, one row and a constant reference are.
    flat = y.clone()
    flat[:, 1] = 0
    assert BuresUVP()(flat, flat, seeded()) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InvalidInputError, match="all equal"):
        BuresUVP()(x, torch.ones_like(y), seeded())
    with pytest.raises(InvalidInputError, match="at least 2"):
        BuresUVP()(x[:1], y, seeded())


# ---- what all share


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_invariances(seed):
    x, y, shift = rows(30, 3, seed), rows(40, 3, seed + 1, shift=0.3), rows(1, 3, seed + 2)
    rotation = torch.linalg.qr(rows(3, 3, seed + 3)).Q
    order = torch.randperm(30, generator=seeded(seed))
    for metric in EVERY_METRIC:
        value = metric(x, y, seeded())
        assert metric(x[order], y, seeded()) == pytest.approx(value, rel=1e-7, abs=1e-9)
        assert metric(x + shift, y + shift, seeded()) == pytest.approx(value, rel=1e-7, abs=1e-9)
        if not isinstance(metric, SlicedW2):
            assert metric(x @ rotation, y @ rotation, seeded()) == pytest.approx(value, rel=1e-7, abs=1e-9)
        if not isinstance(metric, (BuresUVP, MMD)):
            assert metric(y, x, seeded()) == pytest.approx(value, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("metric", EVERY_METRIC, ids=lambda metric: repr(metric))
def test_every_metric(metric, dtype):
    x, y = rows(50, 2, 1, dtype), rows(60, 2, 2, dtype)
    far = metric(x + 3, y, seeded())
    assert isinstance(far, float)
    assert isinstance(metric.name, str)
    assert far > metric(x, y, seeded())
    assert decode(*encode(metric)) == metric
    before = torch.random.get_rng_state()
    metric(x, y, seeded())
    assert torch.equal(before, torch.random.get_rng_state())
    for bad, message in (
        (rows(5, 3, 1, dtype), "2 columns and y has 3|3 columns and y has 2"),
        (x * math.nan, "NaN"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            metric(bad, y, seeded())
        with pytest.raises(InvalidInputError, match=message):
            metric(y, bad, seeded())


def test_bad_options():
    with pytest.raises(InvalidInputError, match="max_rows must be positive"):
        ExactW2(0)
    with pytest.raises(InvalidInputError, match="projections must be positive"):
        SlicedW2(0)
    with pytest.raises(InvalidInputError, match="at least 2"):
        EnergyDistance(DISTINCT)(rows(1, 2), rows(5, 2), seeded())


# ---- the floor


def test_floor_of_an_unbiased_metric_is_zero():
    y = rows(4000, 2, 1)
    floor = sampling_floor(EnergyDistance(DISTINCT), y, (150, 250), seeded(), repeats=40)
    assert abs(floor.mean) < 4 * floor.standard_error
    assert floor.sizes == (150, 250)
    assert floor.repeats == 40


def test_floor_of_the_energy_distance_in_closed_form():
    # The V-statistic between two samples of one law exceeds zero by E|X−X'|(1/n + 1/m).
    y = rows(20_000, 1, 1)
    floor = sampling_floor(EnergyDistance(), y, (100, 50), seeded(), repeats=60)
    assert abs(floor.mean - 2 / math.sqrt(math.pi) * (1 / 100 + 1 / 50)) < 4 * floor.standard_error


def test_floor_counts_its_repeats_and_is_seeded():
    y, calls = rows(30, 2, 1), []

    class Spy:
        name = "spy"

        def __call__(self, a, b, generator):
            calls.append((a, b))
            return float(len(calls))

    floor = sampling_floor(Spy(), y, (10, 20), seeded(), repeats=4)
    assert floor.mean == 2.5
    assert floor.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    for a, b in calls:  # disjoint, all of the reference
        assert a.shape == (10, 2)
        assert torch.equal(torch.cat([a, b]).sort(0).values, y.sort(0).values)
    assert not torch.equal(calls[0][0], calls[1][0])
    metric = SlicedW2(5)
    assert sampling_floor(metric, y, (10, 9), seeded(1)) == sampling_floor(metric, y, (10, 9), seeded(1))


def test_floor_needs_rows_and_repeats():
    with pytest.raises(InvalidInputError, match="needs 31 reference rows, got 30"):
        sampling_floor(EnergyDistance(), rows(30, 2), (11, 20), seeded())
    with pytest.raises(InvalidInputError, match="repeats must be at least 2"):
        sampling_floor(EnergyDistance(), rows(30, 2), (10, 10), seeded(), repeats=1)
    with pytest.raises(InvalidInputError, match="sizes 0 and 5"):
        sampling_floor(EnergyDistance(), rows(30, 2), (0, 5), seeded())
