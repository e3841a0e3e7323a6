"""Bridges with momentum through Gaussian snapshots: splines, proportional scaling, consistency, control and draws."""

import math

import numpy as np
import pytest
import torch

from sbridge.errors import InvalidInputError
from sbridge.exact import GaussianMomentumCourse
from sbridge.laws import Gaussian
from sbridge.processes import UnderdampedLangevin
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

TIMES = (1.0, 1.6, 3.0, 3.5)


def laws(count, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(count, dim, 2 * dim + 2, generator=g, dtype=torch.float64)
    means = torch.randn(count, dim, generator=g, dtype=torch.float64)
    return tuple(Gaussian(m, r @ r.mT / (2 * dim + 2)) for m, r in zip(means, roots, strict=True))


def course(friction=0.6, sigma=1.0, speed=0.8, count=4, dim=2, stiffness: float | list[float] = 0.0, mean=0.0):
    process = UnderdampedLangevin(friction, sigma, stiffness, mean, horizon=2.5, positions=dim)
    return GaussianMomentumCourse(laws(count, dim), TIMES[:count], process, speed)


PULLED = course(stiffness=[0.7, 0.2], mean=0.5)


def line(means, variances, times, process, speed=math.inf):
    moments = zip(means, variances, strict=True)
    snapshots = [Gaussian(torch.tensor([m]).double(), torch.tensor([[v]]).double()) for m, v in moments]
    return GaussianMomentumCourse(tuple(snapshots), times, process, speed)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 4.0])
def test_the_mean_is_the_natural_spline(sigma):
    found = line((0.0, 1.0, 0.0), (0.3, 0.5, 0.2), (0.0, 1.0, 2.0), UnderdampedLangevin(0.0, sigma, horizon=2.0))
    assert float(found.law(0.5).mean[0]) == pytest.approx(0.6875, abs=1e-9)
    assert float(found.law(1.5).mean[0]) == pytest.approx(0.6875, abs=1e-9)


@pytest.mark.parametrize("speed", [math.inf, 0.5])
def test_with_friction_the_mean_is_a_tension_spline(speed):
    """Pieces in 1, t, e^{±γt}, twice differentiable; ``m̈ + γṁ`` is 0 at the last time, (σ²/s²)ṁ at the first."""
    friction, sigma, knots, times = 1.3, 0.7, (0.0, 1.0, -0.5), (0.0, 1.0, 2.5)

    def row(t, order):
        powers = [[1.0, t], [0.0, 1.0], [0.0, 0.0]][order]
        return [*powers, friction**order * math.exp(friction * t), (-friction) ** order * math.exp(-friction * t)]

    zero, system, right = [0.0] * 4, [], []
    for place, t in ((0, 0), (0, 1), (1, 1), (1, 2)):
        system.append([*(row(times[t], 0) if place == 0 else zero), *(row(times[t], 0) if place == 1 else zero)])
        right.append(knots[t])
    for order in (1, 2):
        system.append([*row(times[1], order), *(-np.array(row(times[1], order)))])
        right.append(0.0)
    pull = 0.0 if math.isinf(speed) else sigma**2 / speed**2
    system.append([*(np.array(row(0.0, 2)) + (friction - pull) * np.array(row(0.0, 1))), *zero])
    system.append([*zero, *(np.array(row(2.5, 2)) + friction * np.array(row(2.5, 1)))])
    pieces = np.linalg.solve(np.array(system), np.array([*right, 0.0, 0.0])).reshape(2, 4)
    process = UnderdampedLangevin(friction, sigma, horizon=2.5)
    found = line(knots, (0.3, 0.5, 0.2), times, process, speed)
    for t in (0.3, 0.9, 1.7, 2.4):
        wanted = np.dot(row(t, 0), pieces[int(t > 1.0)])
        assert float(found.law(t).mean[0]) == pytest.approx(wanted, abs=1e-8)


def scaled_blocks(one, tolerance=1e-11):
    """Covariance of all positions by proportional scaling; the reference by forward covariances, given the first."""
    d, process, times = one.process.dim // 2, one.process, one.times
    count = len(times)
    steps = [process.transition(0.0, t - times[0]) for t in times[1:]]
    first = torch.block_diag(torch.zeros(d, d), one.speed**2 * torch.eye(d)).double()
    after = [first, *(s.map.values @ first @ s.map.values.mT + s.covariance.values for s in steps)]
    noise = torch.empty(count - 1, d, count - 1, d, dtype=torch.float64)
    for i in range(1, count):
        for j in range(1, i + 1):
            block = (process.transition(times[j] - times[0], times[i] - times[0]).map.values @ after[j])[:d, :d]
            noise[i - 1, :, j - 1], noise[j - 1, :, i - 1] = block, block.mT
    moves = torch.cat([-s.map.values[:d, :d] for s in steps])
    gap = torch.cat([moves, torch.eye(d * (count - 1)).double()], 1)
    precision = gap.mT @ torch.linalg.solve(noise.reshape(d * (count - 1), -1), gap)
    wanted = [torch.linalg.inv(law.covariance) for law in one.snapshots]
    whole = precision + torch.block_diag(*wanted)
    for _ in range(20_000):
        change = 0.0
        for i in range(count):
            own = slice(i * d, (i + 1) * d)
            update = wanted[i] - torch.linalg.inv(torch.linalg.inv(whole)[own, own])
            whole[own, own] += update
            change = max(change, float(update.abs().max()))
        if change < tolerance:
            return torch.linalg.inv(whole).reshape(count, d, count, d)
    raise AssertionError("proportional scaling did not converge")


@pytest.mark.parametrize("one", [course(), PULLED, course(friction=0.0, sigma=2.0, dim=1)])
def test_it_is_proportional_scaling(one):
    d, blocks = one.process.dim // 2, scaled_blocks(one)
    for i, s in enumerate(one.times):
        for j, t in enumerate(one.times):
            torch.testing.assert_close(one.covariance(s, t)[:d, :d], blocks[i, :, j], atol=1e-8, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("speed", [math.inf, 0.8])
def test_snapshots_are_reached(sigma, speed):
    one = course(sigma=sigma, speed=speed)
    for t, law in zip(one.times, one.snapshots, strict=True):
        torch.testing.assert_close(one.law(t).mean[:2], law.mean, atol=1e-9, rtol=0)
        torch.testing.assert_close(one.law(t).covariance[:2, :2], law.covariance, atol=1e-8, rtol=0)


@pytest.mark.parametrize("one", [course(speed=math.inf), PULLED])
def test_a_snapshot_of_its_own_changes_nothing(one):
    """The law at any time, by another route: there, the law is a snapshot with the potential zero."""
    t = 2.2
    own = Gaussian(one.law(t).mean[:2], one.law(t).covariance[:2, :2])
    more = GaussianMomentumCourse(
        (*one.snapshots[:2], own, *one.snapshots[2:]), (*one.times[:2], t, *one.times[2:]), one.process, one.speed
    )
    for s in (1.0, 1.3, 2.2, 2.9, 3.5):
        torch.testing.assert_close(more.law(s).mean, one.law(s).mean, atol=1e-9, rtol=0)
        torch.testing.assert_close(more.law(s).covariance, one.law(s).covariance, atol=1e-8, rtol=0)


def test_the_control_moves_the_law():
    """The moment equations of ``dz = (Az + c + σu) dt + σ dW``, by central differences."""
    for t in (1.3, 2.5, 3.4):
        before, here, after = (PULLED.law(s) for s in (t - 1e-4, t, t + 1e-4))
        origin = PULLED.control(t, torch.zeros(1, 4).double())
        gain = (PULLED.control(t, torch.eye(4).double()) - origin).mT
        scale = PULLED.process.scale(0.0).expanded(4)
        drift = PULLED.process.linear(0.0).values + scale @ gain
        mean = drift @ here.mean + PULLED.process.offset(0.0) + scale @ origin[0]
        spread = drift @ here.covariance
        torch.testing.assert_close((after.mean - before.mean) / 2e-4, mean, atol=1e-5, rtol=1e-5)
        rate = (after.covariance - before.covariance) / 2e-4
        torch.testing.assert_close(rate, spread + spread.mT + scale @ scale, atol=1e-5, rtol=1e-5)


def test_simulated_paths_pass_the_snapshots():
    paths = PULLED.forward(TimeGrid.uniform(500)).sample(2000, seed=0)
    assert not bool(paths.v[:, :, :2].any())  # no control of positions
    for t, law in zip(PULLED.times, PULLED.snapshots, strict=True):
        x = paths.x[round((t - 1.0) * 200), :, :2]
        assert torch.allclose(x.mean(0), law.mean, atol=0.08)
        assert torch.allclose(x.mT.cov(), law.covariance, atol=0.12)


@pytest.mark.parametrize("t", [1.0, 1.3, 3.0, 3.2])
def test_rows_are_interpolated(t):
    n, start = 20_000, 1.6
    rows = PULLED.snapshots[1].sample(n, torch.Generator().manual_seed(1))
    found = PULLED.interpolate(rows, start, t, seed=2)
    law = PULLED.law(t)
    errors = (law.covariance.diagonal() / n).sqrt()
    assert bool(((found.mean(0) - law.mean).abs() < 4.0 * errors).all())
    both = torch.cat([rows, found], 1).mT.cov()
    assert torch.allclose(both[2:, 2:], law.covariance, atol=0.06)
    assert torch.allclose(both[:2, 2:], PULLED.covariance(start, t)[:2], atol=0.05)
    again = PULLED.interpolate(rows.float(), start, t, seed=2)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.double(), found, atol=1e-5, rtol=1e-5)


def test_states_keep_their_velocity():
    states = torch.tensor([[0.3, -0.2, 2.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(PULLED.interpolate(states, 1.3, 1.3, seed=0), states)
    moved = PULLED.interpolate(states, 1.3, 1.3001, seed=0) - states
    torch.testing.assert_close(moved[:, :2], 1e-4 * states[:, 2:], atol=1e-5, rtol=0)


def test_rows_give_the_snapshots():
    g = torch.Generator().manual_seed(0)
    arrays = [law.sample(500, g) for law in laws(3, 2)]
    one = GaussianMomentumCourse.of_rows(
        [arrays[0].numpy(), *arrays[1:]], (0, 1, 2), UnderdampedLangevin(0.5, 1.0, horizon=2.0, positions=2)
    )
    torch.testing.assert_close(one.law(1.0).mean[:2], arrays[1].mean(0))
    torch.testing.assert_close(one.law(1.0).covariance[:2, :2], arrays[1].mT.cov())
    with pytest.raises(InvalidInputError, match="fewer dimensions"):
        GaussianMomentumCourse.of_rows([torch.ones(5, 2), arrays[0]], (0, 1), PULLED.process)


def test_it_is_saved():
    again = decode(*encode(PULLED))
    assert torch.equal(again.law(2.0).covariance, PULLED.law(2.0).covariance)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"times": (0.0,)}, "two or more snapshots with one time each"),
        ({"snapshots": laws(1, 2), "times": (0.0,)}, "two or more snapshots"),
        ({"times": (1.0, 0.5)}, "times must increase"),
        ({"times": (0.0, math.nan)}, "times must increase"),
        ({"times": (0.0, 9.0)}, "give it a longer horizon"),
        ({"snapshots": laws(2, 3)}, "of the 2 positions"),
        ({"speed": 0.0}, "speed must be positive"),
        ({"speed": math.nan}, "speed must be positive"),
    ],
)
def test_bad_input_is_refused(changes, said):
    good = {"snapshots": laws(2, 2), "times": (0.0, 1.0), "process": UnderdampedLangevin(1.0, 1.0, positions=2)}
    with pytest.raises(InvalidInputError, match=said):
        GaussianMomentumCourse(**good | changes)


def test_bad_questions_are_refused():
    with pytest.raises(InvalidInputError, match=r"outside the course, 1 … 3\.5"):
        PULLED.law(0.5)
    with pytest.raises(InvalidInputError, match="rows need 2 positions, or 4 columns"):
        PULLED.interpolate(torch.zeros(3, 3), 1.0, 2.0, seed=0)
