"""Linear references learned from snapshots: exact snapshots give back the process, samples do within their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.errors import IdentifiabilityWarning, InvalidInputError
from sbridge.exact.references import LinearDrift, Snapshots

RATE = torch.tensor([[1.0, 0.8], [-0.9, 0.6]], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.3], dtype=torch.float64)
SIGMA = 0.6


def exact(times: list[float], start: sb.Gaussian | None = None) -> list[sb.Gaussian]:
    """Returns the distributions of the process at ``times``, from a start far from equilibrium."""
    mean, covariance = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([0.3, 0.6]).double().diag()
    if start is not None:
        mean, covariance = start.mean, start.covariance
    process, laws = sb.OrnsteinUhlenbeck(RATE, SIGMA, MEAN, horizon=30.0), list[sb.Gaussian]()
    for t in times:
        step = process.transition(0.0, t) if t else None
        if step is None:
            laws.append(sb.Gaussian(mean, covariance))
            continue
        phi = step.map.expanded(2)
        around = phi @ covariance @ phi.mT + step.covariance.expanded(2)
        laws.append(sb.Gaussian(phi @ mean + step.offset, 0.5 * (around + around.mT)))
    return laws


def samples(times: list[float], count: int, seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [law.sample(count, g) for law in exact(times)]


@pytest.mark.parametrize("sigma", [SIGMA, None])
def test_exact_snapshots_give_back_the_process(sigma: float | None) -> None:
    times = [0.0, 0.4, 1.0, 1.5, 2.1]
    learned = sb.learn_reference(exact(times), times, sigma=sigma)
    assert torch.allclose(learned.rate, RATE, rtol=0, atol=1e-6)
    assert torch.allclose(learned.mean, MEAN, rtol=0, atol=1e-6)
    assert learned.sigma == pytest.approx(SIGMA, abs=1e-6)
    fallen = np.diff(learned.divergences)
    assert (fallen <= 1e-12).all()
    assert learned.divergences[0] > 1.0
    assert abs(learned.divergences[-1]) < 1e-10


def test_a_round_stands_still_exactly_where_the_divergence_does() -> None:
    # The regression of the bridge's drift is the gradient of min KL by the envelope theorem; so is the round of σ.
    laws, times = exact([0.0, 0.5, 1.3]), [0.0, 0.5, 1.3]
    given = Snapshots([one.mean for one in laws], [one.covariance for one in laws], times, fit_sigma=True)
    drift = LinearDrift(-1.3 * RATE, 0.7 * RATE @ MEAN, 0.8)
    fixed = Snapshots(given.means, given.covariances, times, fit_sigma=False)
    moved = fixed.round(drift)[1].flat() - drift.flat()
    steps, slopes = 1e-5 * torch.eye(7, dtype=torch.float64), []
    for step in steps:
        slopes.append((given.divergence(drift.moved(step)) - given.divergence(drift.moved(-step))) / 2e-5)
    squares = 0.0  # ∫E z zᵀ dt, which turns the change of a round into a gradient
    for coupling in given.couplings(drift):
        t = torch.linspace(0.0, coupling.process.horizon, 2001, dtype=torch.float64)
        mean, covariance = coupling.marginal(t)
        row = torch.cat([mean, torch.ones(len(t), 1, dtype=torch.float64)], 1)
        second = row[:, :, None] * row[:, None, :]
        second[:, :2, :2] += covariance
        squares = squares + torch.trapezoid(second, t, dim=0)
    change = torch.cat([moved[:4].reshape(2, 2), moved[4:6, None]], 1)
    gradient = -change @ squares / drift.sigma**2
    expected = torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(gradient[:, :2].reshape(-1), expected[:4], rtol=1e-5)
    assert torch.allclose(gradient[:, 2], expected[4:6], rtol=1e-5)
    shares = [one.mean_square_residual for one in given.couplings(drift)]
    assert 4.0 - sum(shares) == pytest.approx(float(expected[6]), rel=1e-5)  # ∂/∂log σ, two legs in two dimensions


def test_samples_give_back_the_process_within_their_errors() -> None:
    times = [0.0, 0.5, 1.0, 1.5]
    learned = sb.learn_reference(samples(times, 1500, seed=1), times, resamples=10, seed=2)
    assert ((learned.rate - RATE).abs() < 4.0 * learned.rate_error).all()
    assert ((learned.mean - MEAN).abs() < 4.0 * learned.mean_error).all()
    better = learned.corrected()
    assert abs(better.sigma - SIGMA) < 4.0 * learned.sigma_error < 0.2
    assert float(learned.rate_error.max()) < 0.3
    assert learned.rate_draws.shape == (10, 2, 2)


def test_units_of_rows_and_times_do_not_matter() -> None:
    times = [0.0, 0.4, 0.9, 1.4]
    rows = samples(times, 300, seed=3)
    first = sb.learn_reference(rows, times, sigma=SIGMA, resamples=0)
    second = sb.learn_reference([50.0 + 10.0 * one for one in rows], [3.0 + 2.0 * t for t in times],
                                sigma=10.0 * SIGMA / 2.0**0.5, resamples=0)  # fmt: skip
    assert torch.allclose(second.rate, first.rate / 2.0, rtol=1e-4, atol=1e-6)
    assert torch.allclose(second.mean, 50.0 + 10.0 * first.mean, rtol=1e-4)
    assert second.divergences[-1] == pytest.approx(first.divergences[-1], rel=1e-6)


def test_courses_take_the_learned_reference() -> None:
    times = [0.0, 0.4, 0.9]
    rows = [one.float() for one in samples(times, 200, seed=4)]
    learned = sb.learn_reference(rows, times, sigma=SIGMA, rounds=4, resamples=0)
    course = sb.fit_course(rows, times, reference=learned, solver=sb.GaussianBridge())
    assert [type(one.reference).__name__ for one in course.bridges] == ["OrnsteinUhlenbeck"] * 2
    assert course.interpolate(rows[0], 0.0, 0.7, seed=0).dtype == torch.float32


def test_snapshots_that_determine_no_rate_are_named() -> None:
    times = [0.0, 0.5, 1.0, 1.5]
    settled = exact([30.0])[0]
    with pytest.warns(IdentifiabilityWarning, match="does not change"):
        sb.learn_reference([settled] * 4, times, sigma=SIGMA)
    g = torch.Generator().manual_seed(0)
    with pytest.warns(IdentifiabilityWarning, match="do not determine"):
        sb.learn_reference([settled.sample(300, g) for _ in times], times, sigma=SIGMA, rounds=10, resamples=4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arrays": 2}, "At least three"),
        ({"sigma": -1.0}, "positive number"),
        ({"rounds": 0}, "rounds must be an integer of at least 1"),
        ({"flat": True}, "full rank"),
        ({"times": [0.0, 1.0, 0.5]}, "increase"),
    ],
)
def test_bad_input(change: dict[str, object], told: str) -> None:
    times = [0.0, 0.5, 1.0]
    rows = samples(times, 50, seed=5)
    if "arrays" in change:
        rows, times = rows[:2], times[:2]
    if "flat" in change:
        rows[1] = torch.cat([rows[1][:, :1], rows[1][:, :1]], 1)
    options = {key: value for key, value in change.items() if key in {"sigma", "rounds"}}
    with pytest.raises(InvalidInputError, match=told):
        sb.learn_reference(rows, change.get("times", times), **options)  # type: ignore[arg-type]


def test_weighted_rows_are_resampled() -> None:
    times = [0.0, 0.5, 1.0, 1.5]
    weights = torch.linspace(0.5, 1.5, 100) / 100.0
    rows = [sb.Samples(one.float(), weights) for one in samples(times, 100, seed=6)]
    learned = sb.learn_reference(rows, times, sigma=SIGMA, rounds=4, resamples=2)
    assert bool(learned.rate_error.isfinite().all())


def test_a_correction_needs_resamples() -> None:
    times = [0.0, 0.5, 1.0]
    learned = sb.learn_reference(samples(times, 100, seed=7), times, sigma=SIGMA, rounds=2, resamples=0)
    assert bool(learned.rate_error.isnan().all())
    with pytest.raises(InvalidInputError, match="resamples=20"):
        learned.corrected()


def test_columns_of_frames_must_agree() -> None:
    pandas = pytest.importorskip("pandas")
    times = [0.0, 0.5, 1.0]
    frames = [pandas.DataFrame(one.numpy(), columns=["a", "b"]) for one in samples(times, 50, seed=8)]
    frames[1] = frames[1][["b", "a"]]
    with pytest.raises(InvalidInputError, match="snapshot 1 has the columns b, a"):
        sb.learn_reference(frames, times, sigma=SIGMA)
