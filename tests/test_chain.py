import math
from itertools import pairwise

import pytest
import torch
from families import DIM, FEW, LINEAR, MEAN, RATE, SIGMA
from torch import Tensor

from sbridge.errors import UnsupportedError
from sbridge.processes import (
    BrownianMotion,
    Chain,
    Direction,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    OrnsteinUhlenbeck,
    Process,
    default_rule,
)
from sbridge.time import TimeGrid

LIKE = torch.zeros((), dtype=torch.float64)
FRACTIONS = (0.0, 0.03, 0.1, 0.45, 0.5, 0.97, 1.0)
FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def chain(process: Process, direction=FORWARD, rule=None, grid=None, like=LIKE) -> Chain:
    times = (grid or TimeGrid(FRACTIONS)).times(process.horizon)
    return Chain(process, times, direction, rule or default_rule(process), like)


def states(rows: int = 5, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def affine(one: Chain, j: int) -> tuple[Tensor, Tensor]:
    """The matrix and offset of an affine step, read off by running it."""
    offset = one.mean(j, torch.zeros(1, DIM, dtype=torch.float64))[0]
    return (one.mean(j, torch.eye(DIM, dtype=torch.float64)) - offset).mT, offset


def law(one: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """Φ, k, Q of the whole uncontrolled chain, by adding up its steps."""
    phi = torch.eye(DIM, dtype=torch.float64)
    k, q = torch.zeros_like(phi[0]), torch.zeros_like(phi)
    for j in range(one.length):
        step, offset = affine(one, j)
        root = one.root(j).expanded(DIM)
        phi, k, q = step @ phi, step @ k + offset, step @ q @ step.mT + root @ root.mT
    return phi, k, q


@pytest.mark.parametrize("name", FEW)
def test_exact_steps_make_the_transition_whatever_the_grid(name):
    process = FEW[name]
    whole = process.transition(0.0, process.horizon)
    wanted = whole.map.expanded(DIM), whole.offset.expand(DIM), whole.covariance.expanded(DIM)
    for grid in (TimeGrid.uniform(1), TimeGrid.uniform(17), TimeGrid(FRACTIONS), TimeGrid.refined(30)):
        for found, right in zip(law(chain(process, grid=grid)), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FEW)
def test_exact_backward_steps_undo_the_forward_mean(name):
    forward, backward = chain(FEW[name]), chain(FEW[name], BACKWARD)
    x = y = states()
    for j in range(forward.length):
        y = forward.mean(j, y)
    for j in range(backward.length):
        y = backward.mean(j, y)
    torch.testing.assert_close(y, x)


def log_kernel(one: Chain, j: int, x: Tensor, y: Tensor) -> Tensor:
    """``log`` of the density at ``y`` of step ``j`` from ``x``."""
    noise = one.shift(j, x, y)
    constant = one.root(j).log_abs_det(DIM) + 0.5 * DIM * math.log(2 * math.pi)
    return -0.5 * noise.square().sum(1) - constant


@pytest.mark.parametrize("name", FEW)
def test_exact_kernels_of_both_directions_differ_by_the_volume_factor_alone(name):
    """``N(y; Φx + c, Q) = |Φ|⁻¹ N(x; Φ⁻¹(y − c), Φ⁻¹QΦ⁻ᵀ)``: the sum of ``log |Φ|`` is the integral of ``∇·b``."""
    process = FEW[name]
    forward, backward = chain(process), chain(process, BACKWARD)
    total = 0.0
    for j in range(forward.length):
        k = forward.interval(j)
        x, y = states(seed=1), states(seed=2)
        there = log_kernel(forward, j, x, y)
        back = log_kernel(backward, forward.length - 1 - j, y, x)
        assert backward.interval(forward.length - 1 - j) == k
        gap = there - back
        step = process.transition(forward.times[k], forward.times[k + 1])
        torch.testing.assert_close(gap, -step.map.log_abs_det(DIM).expand(5), rtol=1e-7, atol=1e-7)
        total += float(gap[0])
    t = torch.linspace(0, process.horizon, 20001, dtype=torch.float64)
    divergence = process.linear(t).expanded(DIM).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert -total == pytest.approx(float(torch.trapezoid(divergence, t)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()], ids=["exact", "Euler"])
@pytest.mark.parametrize("name", FEW)
def test_shift_undoes_push(name, rule, direction, dtype):
    one = chain(FEW[name], direction, rule, like=torch.zeros((), dtype=dtype))
    x, noise = states(dtype=dtype), states(seed=1, dtype=dtype)
    for j in range(one.length):
        y = one.push(j, x, noise)
        assert y.dtype == dtype
        torch.testing.assert_close(y, one.mean(j, x) + one.root(j)(noise))
        found = one.shift(j, x, y)
        assert found.dtype == dtype
        # a short step is a small difference of states: in float32 it has fewer digits
        torch.testing.assert_close(found, noise, rtol=0, atol=1e-7 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()], ids=["exact", "Euler"])
@pytest.mark.parametrize("name", FEW)
def test_move_is_the_mean_and_the_control(name, rule, direction):
    one, x, u = chain(FEW[name], direction, rule), states(), states(seed=1)
    for j in range(one.length):
        torch.testing.assert_close(x + one.move(j, x), one.mean(j, x))
        wanted = one.push(j, x, one.root_durations[j] * u)
        torch.testing.assert_close(x + one.move(j, x, u), wanted)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()], ids=["exact", "Euler"])
@pytest.mark.parametrize("name", FEW)
def test_a_short_step_in_float32_keeps_its_digits(name, rule, direction):
    grid, x = TimeGrid((0.0, 0.5, 0.5 + 1e-7, 1.0)), states()
    single, double = (chain(FEW[name], direction, rule, grid, x.to(kind)) for kind in (torch.float32, torch.float64))
    found, wanted = single.move(1, x.float()), double.move(1, x)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_euler_steps_are_the_formula(name):
    process, x = FEW[name], states()
    forward, backward = (chain(process, direction, EulerMaruyama()) for direction in (FORWARD, BACKWARD))
    for j in range(forward.length):
        t, delta = float(forward.times[j]), float(forward.times[j + 1] - forward.times[j])
        torch.testing.assert_close(forward.mean(j, x), x + delta * process.drift(t, x))
        mirrored = backward.length - 1 - j
        torch.testing.assert_close(backward.mean(mirrored, x), x - delta * process.drift(t, x))
        root = process.scale(t).expanded(DIM) * delta**0.5
        for one, k in ((forward, j), (backward, mirrored)):
            torch.testing.assert_close(one.root(k).expanded(DIM), root)


def test_order_of_steps_and_times():
    process = BrownianMotion(1.0, 2.0)
    forward, backward = chain(process), chain(process, BACKWARD)
    knots = [2.0 * f for f in FRACTIONS]
    assert forward.visited.tolist() == pytest.approx(knots)
    assert backward.visited.tolist() == pytest.approx(knots[::-1])
    assert forward.step_times == pytest.approx(knots[:-1])
    assert backward.step_times == pytest.approx(knots[:0:-1])
    lengths = [(b - a) ** 0.5 for a, b in pairwise(knots)]
    assert forward.root_durations == pytest.approx(lengths)
    assert backward.root_durations == pytest.approx(lengths[::-1])
    assert [forward.interval(j) for j in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [backward.interval(j) for j in range(6)] == [5, 4, 3, 2, 1, 0]
    assert forward.length == backward.length == 6


STEPS = (16, 32, 64, 128)


def slope(errors: list[float]) -> float:
    """The order of convergence between the two finest grids."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("name", ["OU, matrix rate, matrix σ", "VP linear, long", "third party"])
def test_euler_converges_with_order_one(name, direction):
    process = LINEAR[name]
    exact = chain(process, direction, ExactTransition(), TimeGrid.uniform(64))
    wanted = law(exact)
    errors: list[list[float]] = [[], [], []]
    for steps in STEPS:
        found = law(chain(process, direction, EulerMaruyama(), TimeGrid.uniform(steps)))
        for kept, value, right in zip(errors, found, wanted, strict=True):
            kept.append(float((value - right).abs().max()))
    for kept in errors:
        assert 0.85 < slope(kept) < 1.15


def test_uncontrolled_exact_chain_has_the_law_of_the_process():
    """By simulation, within four standard errors."""
    process = OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 1.5)
    one, generator = chain(process), torch.Generator().manual_seed(3)
    x = x0 = states(1).expand(40_000, DIM)
    for j in range(one.length):
        x = one.push(j, x, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    whole = process.transition(0.0, 1.5)
    error = (x.mean(0) - whole.mean(x0[:1])[0]) / (x.std(0) / len(x) ** 0.5)
    assert float(error.abs().max()) < 4
    products = (x - x.mean(0)).unsqueeze(2) * (x - x.mean(0)).unsqueeze(1)
    error = (products.mean(0) - whole.covariance.expanded(DIM)) / (products.std(0) / len(x) ** 0.5)
    assert float(error.abs().max()) < 4


def test_exact_steps_need_a_linear_process():
    process = DriftProcess(lambda t, x: -x, 1.0)
    with pytest.raises(UnsupportedError, match=r"needs a LinearProcess, got DriftProcess; use EulerMaruyama\(\)"):
        chain(process, rule=ExactTransition()).root(0)
    assert isinstance(default_rule(process), EulerMaruyama)
    assert isinstance(default_rule(BrownianMotion(1.0)), ExactTransition)
