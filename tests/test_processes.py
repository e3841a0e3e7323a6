import json
import math
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from families import (
    DIAGONAL,
    DIM,
    FEW,
    LINEAR,
    MEAN,
    RATE,
    SIGMA,
    Lagging,
    is_function_of_time,
    wave,
    wave_matrix,
)
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.linear import LinearMap
from sbridge.processes import (
    BrownianMotion,
    CosineSchedule,
    DriftProcess,
    LinearProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    Pinned,
    RescaledLinearProcess,
    RescaledProcess,
    Transition,
    VarianceExploding,
    VariancePreserving,
    check_process,
    rescale,
)
from sbridge.registry import decode, encode, register
from sbridge.scaling import AffineScaling

OWN = [name for name in LINEAR if name != "third party"]
EPS32 = torch.finfo(torch.float32).eps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(rows: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64, dim: int = DIM) -> Tensor:
    return torch.randn(rows, dim, generator=seeded(seed), dtype=torch.float64).to(dtype)


def dense(law: Transition, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    covariance = law.covariance.expanded(dim)
    return law.map.expanded(dim), law.offset.expand(covariance.shape[:-1]), covariance


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --- every family


@pytest.mark.parametrize("name", LINEAR)
def test_keeps_the_laws_of_linear_processes(name):
    check_process(LINEAR[name], DIM, generator=seeded())


def moment_equations(process: LinearProcess, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Φ, k, Q from ``Φ' = AΦ, k' = Ak + c, Q' = AQ + QAᵀ + σσᵀ``: knows nothing of ``transition``."""

    def slope(r: float, y: np.ndarray) -> np.ndarray:
        a = process.linear(float(r)).expanded(DIM).numpy()
        c = process.offset(float(r)).expand(DIM).numpy()
        sigma = process.scale(float(r)).expanded(DIM).numpy()
        phi, k, q = y[:9].reshape(3, 3), y[9:12], y[12:].reshape(3, 3)
        return np.concatenate([(a @ phi).ravel(), a @ k + c, (a @ q + q @ a.T + sigma @ sigma.T).ravel()])

    start = np.concatenate([np.eye(3).ravel(), np.zeros(12)])
    y = solve_ivp(slope, (s, t), start, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return tensor(y[:9]).reshape(3, 3), tensor(y[9:12]), tensor(y[12:]).reshape(3, 3)


@pytest.mark.parametrize("name", FEW)
def test_transition_solves_the_moment_equations(name):
    process = FEW[name]
    s, t = 0.2 * process.horizon, 0.9 * process.horizon
    for found, wanted in zip(dense(process.transition(s, t)), moment_equations(process, s, t), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", LINEAR)
def test_float32_states_get_float32_numbers_close_to_those_of_float64(name):
    process = LINEAR[name]
    x, y, noise = states(seed=1), states(seed=2), states(seed=3)
    t = torch.linspace(0.05, 0.95, len(x), dtype=torch.float64) * process.horizon
    single, pinned = [v.float() for v in (x, y, noise)], process.pinned(t)
    pairs = [
        (process.drift(t, single[0]), process.drift(t, x)),
        (process.pull(t, *single[:2]), process.pull(t, x, y)),
        (process.push(t, *single[:2]), process.push(t, x, y)),
        (process.log_transition(0.0, single[0], t, single[1]), process.log_transition(0.0, x, t, y)),
        (pinned.sample(*single), pinned.sample(x, y, noise)),
    ]
    for found, wanted in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_log_transition_is_the_log_density_of_the_transition(name):
    process, x, y = FEW[name], states(seed=1), states(seed=2)
    s, t = 0.3 * process.horizon, 0.8 * process.horizon
    phi, k, q = dense(process.transition(s, t))
    wanted = MultivariateNormal(x @ phi.mT + k, q).log_prob(y)
    torch.testing.assert_close(process.log_transition(s, x, t, y), wanted)


@pytest.mark.parametrize("name", OWN)
def test_files_keep_processes(name):
    process = LINEAR[name]
    if is_function_of_time(process):
        with pytest.raises(UnsupportedError, match="sigma is a function"):
            encode(process)
        return
    tree, tensors = encode(process)
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert type(back) is type(process)
    t = 0.7 * process.horizon
    for found, wanted in zip(dense(back.transition(0.1 * t, t)), dense(process.transition(0.1 * t, t)), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(back.drift(t, states()), process.drift(t, states()))


@pytest.mark.parametrize("name", OWN)
def test_a_transition_stays_in_the_horizon_and_runs_forward(name):
    process = LINEAR[name]
    end = process.horizon
    with pytest.raises(InvalidInputError, match="forward in time"):
        process.transition(0.6 * end, tensor([0.7, 0.5]) * end)
    for s, t in ((-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)):
        with pytest.raises(InvalidInputError, match="time must lie in"):
            process.transition(s * end, t * end)
    rounded = process.transition(tensor([end * (1 + 1e-13)]), end)
    assert (rounded.covariance.values == 0).all()


# --- closed forms of pinned bridges (one dimension, so that they can be read)


def pinned_weights(process: LinearProcess, t: float) -> tuple[float, float, float, float]:
    """L, K, the constant and Γ of ``X_t | x_0, x_T ~ N(L x_0 + K x_T + constant, Γ)``."""
    pinned, zero, one = (
        process.pinned(t),
        torch.zeros(1, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
    )
    constant = float(pinned.mean(zero, zero))
    gamma = float(pinned.covariance.values)
    return float(pinned.mean(one, zero)) - constant, float(pinned.mean(zero, one)) - constant, constant, gamma


ENDS = (1e-12, 1e-6, 0.3, 0.8, 1 - 1e-6, 1 - 1e-12)


def check_pinned(process: LinearProcess, t: float, l_wanted: object, k_wanted: object, gamma: object) -> None:
    left, right, _, covariance = pinned_weights(process, t)
    assert left == pytest.approx(float(l_wanted), abs=1e-13, rel=1e-10)
    assert right == pytest.approx(float(k_wanted), abs=1e-13, rel=1e-10)
    assert covariance == pytest.approx(float(gamma), rel=1e-10)


@pytest.mark.parametrize("fraction", ENDS)
def test_pinned_brownian_motion(fraction):
    sigma, end = 0.7, 2.5
    t = fraction * end
    rest = mpmath.mpf(end) - mpmath.mpf(t)
    check_pinned(BrownianMotion(sigma, end), t, rest / end, t / end, sigma**2 * t * rest / end)


@pytest.mark.parametrize("fraction", ENDS)
@pytest.mark.parametrize("rate", [2.0, -1.5, 1e-7, 30.0])
def test_pinned_ornstein_uhlenbeck(rate, fraction):
    sigma, end, mean = 0.7, 2.5, 3.0
    t = fraction * end
    with mpmath.workdps(60):
        up, down = mpmath.sinh(rate * t), mpmath.sinh(rate * (mpmath.mpf(end) - mpmath.mpf(t)))
        whole = mpmath.sinh(mpmath.mpf(rate) * end)
        gamma = sigma**2 / mpmath.mpf(rate) * up * down / whole
        process = OrnsteinUhlenbeck(rate, sigma, mean, end)
        check_pinned(process, t, down / whole, up / whole, gamma)
        constant = mean * (1 - (up + down) / whole)
    assert pinned_weights(process, t)[2] == pytest.approx(float(constant), abs=1e-13)


def test_ornstein_uhlenbeck_with_rate_zero_is_brownian_motion():
    one, other = OrnsteinUhlenbeck(0.0, SIGMA, MEAN, 2.0), BrownianMotion(SIGMA, 2.0)
    for found, wanted in zip(dense(one.transition(0.1, 1.2)), dense(other.transition(0.1, 1.2)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-15, atol=0)


@pytest.mark.parametrize("fraction", ENDS)
def test_pinned_variance_preserving(fraction):
    kappa, end, low, high = 1.6, 2.5, 0.2, 4.0
    t = fraction * end
    with mpmath.workdps(60):

        def gathered(s: object) -> mpmath.mpf:
            return mpmath.mpf(low) * s + (mpmath.mpf(high) - low) * s**2 / (2 * end)

        total, part = gathered(mpmath.mpf(end)), gathered(mpmath.mpf(t))
        a_t, a_end = mpmath.exp(-part), mpmath.exp(-total)
        r = a_end / a_t
        k_wanted = mpmath.sqrt(r) * (1 - a_t) / (1 - a_end)
        l_wanted = mpmath.sqrt(a_t) * (1 - r) / (1 - a_end)
        gamma = kappa**2 * (1 - a_t) * (1 - r) / (1 - a_end)
    check_pinned(VariancePreserving(LinearSchedule(low, high), kappa, end), t, l_wanted, k_wanted, gamma)


@pytest.mark.parametrize("fraction", ENDS)
def test_pinned_variance_exploding_is_brownian_in_its_own_clock(fraction):
    low, high, end = 0.05, 4.0, 2.5
    t = fraction * end
    with mpmath.workdps(60):

        def clock(s: object) -> mpmath.mpf:
            return mpmath.mpf(low) ** 2 * (mpmath.power(mpmath.mpf(high) / low, 2 * s / end) - 1)

        v, whole = clock(mpmath.mpf(t)), clock(mpmath.mpf(end))
        check_pinned(VarianceExploding(low, high, end), t, 1 - v / whole, v / whole, v * (whole - v) / whole)


# --- cancellation


@pytest.mark.parametrize("step", [1e-13, 1e-8, 1e-3])
@pytest.mark.parametrize("rate", [5.0, -3.0, 1e-12, 0.0])
def test_short_steps_of_scalar_processes_keep_their_digits(rate, step):
    with mpmath.workdps(50):
        b, h = mpmath.mpf(rate), mpmath.mpf(step)
        wanted_q = mpmath.mpf(0.49) * ((1 - mpmath.exp(-2 * b * h)) / (2 * b) if rate else h)
        wanted_k = 3 * (1 - mpmath.exp(-b * h))
    law = OrnsteinUhlenbeck(rate, 0.7, 3.0).transition(0.0, step)
    assert float(law.covariance.values) == pytest.approx(float(wanted_q), rel=1e-14, abs=0)
    assert float(law.offset) == pytest.approx(float(wanted_k), rel=1e-14, abs=0)


@pytest.mark.parametrize("begin", [0.0, 0.5, 0.9999])
@pytest.mark.parametrize("step", [2.0**-42, 2.0**-20])
def test_short_steps_of_schedules_keep_their_digits(begin, step):
    with mpmath.workdps(50):
        s, h = mpmath.mpf(begin), mpmath.mpf(step)
        linear = 1 - mpmath.exp(-(mpmath.mpf(0.1) * h + (mpmath.mpf(20.0) - 0.1) / 2 * (2 * s * h + h**2)))
        growth = mpmath.log(mpmath.mpf(3.0) / mpmath.mpf(0.05))
        exploding = mpmath.mpf(0.05) ** 2 * mpmath.exp(2 * s * growth) * mpmath.expm1(2 * h * growth)
        speed = mpmath.pi / 2 / (1 + mpmath.mpf(0.008))
        angles = [speed * (r + mpmath.mpf(0.008)) for r in (s, s + h)]
        cosine = 1 - (mpmath.cos(angles[1]) / mpmath.cos(angles[0])) ** 2
    pairs = [(VariancePreserving(), linear), (VarianceExploding(0.05, 3.0), exploding)]
    if begin < 0.9:
        pairs.append((VariancePreserving(CosineSchedule()), cosine))
    for process, wanted in pairs:
        found = float(process.transition(begin, begin + step).covariance.values)
        assert found == pytest.approx(float(wanted), rel=1e-12, abs=0)


def van_loan(rate: Tensor, sigma: Tensor, duration: float) -> tuple[Tensor, Tensor]:
    """Φ and Q by one block exponential in 120 digits (Van Loan 1978)."""
    dim = len(rate)
    with mpmath.workdps(120):
        a, noise = mpmath.matrix((-rate).tolist()), mpmath.matrix(sigma.tolist())
        noise = noise * noise.T
        block = mpmath.zeros(2 * dim)
        for i in range(dim):
            for j in range(dim):
                block[i, j], block[dim + i, dim + j], block[i, dim + j] = -a[i, j], a[j, i], noise[i, j]
        power = mpmath.expm(block * mpmath.mpf(duration), method="taylor")
        phi = power[dim:, dim:].T
        q = phi * power[:dim, dim:]
    return tensor([[float(v) for v in row] for row in phi.tolist()]), tensor(
        [[float(v) for v in row] for row in q.tolist()]
    )


STIFF = tensor([[40.0, 12.0, -3.0], [5.0, 1.0, 0.4], [-2.0, 0.3, 0.05]])


@pytest.mark.parametrize("rate", [RATE, STIFF, -RATE, tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])])
@pytest.mark.parametrize("duration", [1e-12, 1e-5, 0.1, 1.0])
def test_matrix_rates_keep_their_digits_on_short_and_long_steps(rate, duration):
    law = OrnsteinUhlenbeck(rate, SIGMA).transition(0.0, duration)
    phi, q = van_loan(rate, SIGMA, duration)
    torch.testing.assert_close(law.map.values, phi, rtol=0, atol=1e-13 * float(phi.abs().max()))
    torch.testing.assert_close(law.covariance.values, q, rtol=0, atol=1e-13 * float(q.abs().max()))


def test_the_offset_of_a_matrix_rate_over_a_short_step_keeps_its_digits():
    law = OrnsteinUhlenbeck(RATE, 1.0, MEAN).transition(0.0, 1e-12)
    wanted = 1e-12 * RATE @ tensor(MEAN)
    torch.testing.assert_close(law.offset, wanted, rtol=1e-11, atol=0)


def test_a_stiff_matrix_rate_agrees_with_its_diagonal_form():
    """Rotated, it is diagonal. Φ(T, 0) is singular to rounding, which the pinned bridge must not mind."""
    basis = torch.linalg.qr(states(3, seed=4)).Q
    speeds = tensor([60.0, 3.0, 0.1])
    rotated = OrnsteinUhlenbeck(basis @ speeds.diag() @ basis.mT, 0.8, horizon=2.0)
    plain = OrnsteinUhlenbeck(speeds, 0.8, horizon=2.0)
    x, y, noise = states(seed=1), states(seed=2), states(seed=3)
    for t in (1e-6, 0.3, 1.0, 2.0 - 1e-6):
        found, wanted = rotated.pinned(t), plain.pinned(t)
        gamma = basis.mT @ found.covariance.values @ basis
        torch.testing.assert_close(gamma, wanted.covariance.expanded(3), rtol=1e-9, atol=1e-11 * float(gamma.max()))
        mean = found.mean(x @ basis.mT, y @ basis.mT) @ basis
        torch.testing.assert_close(mean, wanted.mean(x, y), rtol=1e-9, atol=1e-11)
        assert torch.isfinite(found.pull(x, y, noise)).all()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("distance", [1e-3, 1e-6])
def test_float32_holds_up_to_both_ends(name, distance):
    """Errors stay at a few roundings of what is asked for, though that grows like 1/√distance."""
    process = FEW[name]
    x, y, noise = (
        states(seed=1, dtype=torch.float32),
        states(seed=2, dtype=torch.float32),
        states(dtype=torch.float32),
    )
    for t in (distance * process.horizon, (1 - distance) * process.horizon):
        pinned = process.pinned(t)
        for method in (pinned.sample, pinned.pull, pinned.push):
            found, wanted = method(x, y, noise), method(x.double(), y.double(), noise.double())
            assert float((found - wanted).abs().max()) < 20 * EPS32 * float(wanted.abs().max())


@pytest.mark.parametrize("name", FEW)
def test_pinned_ends_are_where_they_were_pinned(name):
    process, x, y = FEW[name], states(seed=1), states(seed=2)
    for t, wanted in ((0.0, x), (process.horizon, y)):
        torch.testing.assert_close(process.pinned(t).sample(x, y, states(seed=3)), wanted, rtol=1e-7, atol=1e-7)


# --- each family's own


def test_the_static_plan_of_scalar_references_is_brownian_with_another_epsilon():
    def epsilon(process: LinearProcess) -> float:
        law = process.transition(0.0, process.horizon)
        return float(law.covariance.values / law.map.values)

    rate, sigma, end, kappa = 1.4, 0.7, 2.5, 1.3
    ou = epsilon(OrnsteinUhlenbeck(rate, sigma, horizon=end))
    assert ou == pytest.approx(sigma**2 / rate * math.sinh(rate * end), rel=1e-13)
    vp = epsilon(VariancePreserving(LinearSchedule(0.3, 2.0), kappa, end))
    assert vp == pytest.approx(kappa**2 * 2 * math.sinh(0.5 * end * (0.3 + 2.0) / 2), rel=1e-13)
    assert epsilon(BrownianMotion(sigma, end)) == pytest.approx(sigma**2 * end, rel=1e-15)


def test_variance_preserving_leaves_its_stationary_law():
    process = VariancePreserving(LinearSchedule(0.5, 4.0), SIGMA, 2.0, MEAN)
    phi, k, q = dense(process.transition(0.3, 1.5))
    stationary = SIGMA @ SIGMA.mT
    torch.testing.assert_close(phi @ stationary @ phi.mT + q, stationary)
    torch.testing.assert_close(phi @ tensor(MEAN) + k, tensor(MEAN))


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_the_cosine_schedule_before_and_after_its_cut_off(horizon):
    offset, most = 0.02, 10.0
    schedule = CosineSchedule(offset, most)
    process = VariancePreserving(schedule, horizon=horizon)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64) * horizon
    rate = -2.0 * process.linear(t).values[:, 0]
    torch.testing.assert_close(process.scale(t).values[:, 0].square(), rate)
    assert float(rate.max()) == pytest.approx(most / horizon, rel=1e-12)
    cut = int((rate < most / horizon * (1 - 1e-12)).sum())
    assert 0 < cut < 1000
    angle = math.pi / 2 * (t / horizon + offset) / (1 + offset)
    torch.testing.assert_close(rate[:cut], (math.pi / (horizon * (1 + offset)) * angle.tan())[:cut])
    assert (rate[cut:] == rate[-1]).all()
    # transitions: the published formula up to the cut, the integral of the cut-off rate everywhere
    gone = process.transition(0.0, t).map.values[:, 0].square()
    torch.testing.assert_close(gone[:cut], ((angle.cos() / angle[0].cos()).square())[:cut])
    trapezoid = torch.cumulative_trapezoid(rate, t)
    torch.testing.assert_close(-gone.log()[1:], trapezoid, rtol=1e-4, atol=1e-5)
    total = float(schedule.integral(t[0], t[-1], horizon))
    assert total == pytest.approx(float(schedule.integral(t[0], t[-1] / horizon, 1.0)), rel=1e-13)


def test_noise_levels_of_variance_exploding():
    low, high, end = 0.1, 5.0, 2.0
    process = VarianceExploding(low, high, end)
    t = torch.linspace(0, end, 5, dtype=torch.float64)
    level = low * (high / low) ** (t / end)
    gathered = process.transition(0.0, t).covariance.values[:, 0]
    torch.testing.assert_close(gathered, level.square() - low**2)
    ratios = process.scale(t).values[1:] / process.scale(t).values[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, (high / low) ** 0.25))


def test_quadrature_is_exact_for_polynomials_of_its_degree_and_follows_fast_rates():
    process = BrownianMotion(lambda t: (1.0 + t**39).sqrt(), 1.5)
    found = float(process.transition(0.2, 1.4).covariance.values)
    assert found == pytest.approx(1.2 + (1.4**40 - 0.2**40) / 40, rel=1e-13)
    fast = OrnsteinUhlenbeck(300.0, lambda t: 2.0 + 0.0 * t).transition(0.0, 1.0)
    assert float(fast.covariance.values) == pytest.approx(4.0 / 600.0, rel=1e-12)


def test_quadrature_in_blocks_is_quadrature_at_once(monkeypatch):
    process, t = OrnsteinUhlenbeck(RATE, wave_matrix), torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
    whole = process.transition(0.0, t).covariance.values
    monkeypatch.setattr("sbridge.processes.coefficients._BLOCK", 100)
    torch.testing.assert_close(process.transition(0.0, t).covariance.values, whole, rtol=1e-13, atol=0)


def test_a_constant_function_is_the_constant():
    for rate in (1.3, RATE):
        for sigma in (0.7, tensor(DIAGONAL), SIGMA):
            constant = OrnsteinUhlenbeck(rate, sigma, MEAN)
            shape = tensor(sigma).shape if isinstance(sigma, float) else sigma.shape
            varying = OrnsteinUhlenbeck(rate, lambda t, s=sigma, n=shape: s * t.new_ones(len(t), *n), MEAN)
            for found, wanted in zip(
                dense(varying.transition(0.1, 0.8)), dense(constant.transition(0.1, 0.8)), strict=True
            ):
                torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "forms",
    [
        [0.7, np.float64(0.7), np.array([0.7]), torch.tensor(0.7, dtype=torch.float64), [0.7], [[0.7]]],
        [DIAGONAL, tuple(DIAGONAL), np.array(DIAGONAL), tensor(DIAGONAL)],
        [SIGMA.tolist(), SIGMA.numpy(), SIGMA],
    ],
)
def test_coefficients_in_any_container(forms):
    laws = [dense(OrnsteinUhlenbeck(form, form, 0.0).transition(0.0, 1.0)) for form in forms]
    for law in laws[1:]:
        for found, wanted in zip(law, laws[0], strict=True):
            assert torch.equal(found, wanted)


def test_a_process_keeps_its_own_numbers():
    mine = SIGMA.clone()
    process = BrownianMotion(mine)
    mine.zero_()
    assert torch.equal(process.scale(0.0).values, SIGMA)


DIMENSIONS = [
    (BrownianMotion(1.0), None),
    (BrownianMotion(DIAGONAL), 3),
    (BrownianMotion(wave), None),
    (BrownianMotion(wave_matrix), 3),
    (OrnsteinUhlenbeck(1.0, 1.0), None),
    (OrnsteinUhlenbeck(1.0, 1.0, MEAN), 3),
    (OrnsteinUhlenbeck(RATE, 1.0), 3),
    (VariancePreserving(), None),
    (VariancePreserving(stationary_std=DIAGONAL), 3),
    (VarianceExploding(0.1, DIAGONAL), 3),
    (DriftProcess(lambda t, x: -x, 1.0), None),
    (DriftProcess(lambda t, x: -x, 1.0, dimension=4), 4),
    (DriftProcess(lambda t, x: -x, SIGMA), 3),
]


@pytest.mark.parametrize(("process", "dim"), DIMENSIONS, ids=map(str, range(len(DIMENSIONS))))
def test_the_dimension_that_coefficients_fix(process, dim):
    assert process.dim == dim


BAD = {
    "sigma zero": (lambda: BrownianMotion(0.0), "sigma must be positive, got 0"),
    "sigma negative": (lambda: BrownianMotion([1.0, -2.0]), "sigma must be positive, got -2"),
    "sigma nan": (lambda: BrownianMotion(float("nan")), "sigma must be finite"),
    "sigma singular": (
        lambda: BrownianMotion([[1.0, 2.0], [2.0, 4.0]]),
        "sigma must be an invertible matrix",
    ),
    "sigma nearly singular": (lambda: BrownianMotion([[1.0, 0.0], [0.0, 1e-9]]), r"1\.0e-09 times"),
    "sigma null": (lambda: BrownianMotion([[0.0, 0.0], [0.0, 0.0]]), "invertible"),
    "sigma shape": (lambda: BrownianMotion([[1.0, 2.0]]), r"got shape \(1, 2\)"),
    "sigma ragged": (lambda: BrownianMotion([[1.0], [1.0, 2.0]]), "sigma must be a number"),
    "sigma text": (lambda: BrownianMotion("wide"), "sigma must be a number"),
    "sigma empty": (lambda: BrownianMotion([]), "sigma must be a number"),
    "sigma(t) of numbers": (lambda: BrownianMotion(lambda t: 1.0), "torch functions"),
    "sigma(t) constant": (lambda: BrownianMotion(lambda t: torch.ones(2)), r"n = 5 it returned \(2,\)"),
    "sigma(t) negative": (
        lambda: BrownianMotion(lambda t: 0.5 - t),
        r"sigma\(t\) must be positive, got -0.5",
    ),
    "sigma(t) singular": (lambda: BrownianMotion(lambda t: torch.ones(len(t), 2, 2)), "invertible"),
    "sigma(t) infinite": (lambda: BrownianMotion(lambda t: 1.0 / t), "finite"),
    "sigma(t) shape": (lambda: BrownianMotion(lambda t: torch.ones(len(t), 2, 3)), "must return a tensor"),
    "horizon zero": (lambda: BrownianMotion(1.0, 0.0), "horizon must be a positive number, got 0.0"),
    "horizon infinite": (lambda: OrnsteinUhlenbeck(1.0, 1.0, 0.0, math.inf), "horizon"),
    "rate text": (lambda: OrnsteinUhlenbeck("fast", 1.0), "rate must be a number"),
    "rate shape": (lambda: OrnsteinUhlenbeck(torch.ones(2, 2, 2), 1.0), "rate .* got shape"),
    "rate explodes": (lambda: OrnsteinUhlenbeck(-400.0, 1.0), "leaves the floating-point range"),
    "rate matrix explodes": (
        lambda: OrnsteinUhlenbeck(-400.0 * torch.eye(2), 1.0),
        "leaves the floating-point",
    ),
    "mean matrix": (
        lambda: OrnsteinUhlenbeck(1.0, 1.0, [[1.0, 2.0], [3.0, 4.0]]),
        "mean must be a number or a vector",
    ),
    "dimensions": (lambda: OrnsteinUhlenbeck(RATE, [1.0, 2.0]), "rate: 3, sigma: 2"),
    "dimension of the mean": (lambda: VariancePreserving(stationary_std=[1.0, 2.0], mean=MEAN), "mean: 3"),
    "kappa": (lambda: VariancePreserving(stationary_std=-1.0), "stationary_std must be positive"),
    "beta": (lambda: LinearSchedule(0.0, 1.0), "beta_min must be a positive number, got 0"),
    "cosine offset": (lambda: CosineSchedule(0.0), "offset must be a positive number"),
    "cosine max_rate": (lambda: CosineSchedule(0.5, 0.5), "max_rate must exceed"),
    "levels equal": (lambda: VarianceExploding(1.0, 1.0), "sigma_min must lie below sigma_max"),
    "levels reversed": (lambda: VarianceExploding([0.1, 2.0], 1.0), "sigma_min must lie below"),
    "level negative": (lambda: VarianceExploding(-1.0, 1.0), "sigma_min must be positive"),
    "drift dimension": (lambda: DriftProcess(lambda t, x: x, SIGMA, dimension=2), "agrees with sigma, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_coefficients(case):
    make, said = BAD[case]
    with pytest.raises(InvalidInputError, match=said):
        make()


# --- a drift of one's own


def double_well(t: float | Tensor, x: Tensor) -> Tensor:
    weight = 1.0 + t if isinstance(t, float) or t.ndim == 0 else (1.0 + t).unsqueeze(-1)
    return -4.0 * weight * x * (x.square() - 1.0)


@pytest.mark.parametrize("sigma", [0.7, DIAGONAL, SIGMA, wave, wave_matrix], ids=map(str, range(5)))
def test_a_drift_of_ones_own(sigma):
    process = DriftProcess(double_well, sigma, 2.0)
    check_process(process, DIM, generator=seeded())
    torch.testing.assert_close(process.drift(0.5, states()), double_well(0.5, states()))


@pytest.mark.parametrize(
    ("drift", "said"),
    [
        (lambda t, x: x.sum(1), r"returned \(6,\) torch.float32"),
        (lambda t, x: x.double(), r"returned \(6, 3\) torch.float64"),
        (lambda t, x: 0.0, "returned float"),
    ],
    ids=["shape", "dtype", "number"],
)
def test_a_drift_must_fit_its_states(drift, said):
    with pytest.raises(InvalidInputError, match=said):
        DriftProcess(drift, 1.0).drift(0.5, states(dtype=torch.float32))


@register
@dataclass(frozen=True)
class Restoring:
    strength: float

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        return -self.strength * x


def test_a_drift_of_a_registered_class_can_be_saved():
    tree, tensors = encode(DriftProcess(Restoring(2.0), SIGMA, 1.5, 3))
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(back.drift(0.1, states()), -2.0 * states())
    assert (back.horizon, back.dim) == (1.5, 3)
    with pytest.raises(UnsupportedError, match="drift_function is a function"):
        encode(DriftProcess(double_well, 1.0))


# --- other units

SCALINGS = {
    "common": AffineScaling(tensor([3.0, -1.0, 0.5]), tensor([2.5])),
    "per coordinate": AffineScaling(tensor([3.0, -1.0, 0.5]), tensor([0.5, 2.0, 7.0])),
}


@pytest.mark.parametrize("units", SCALINGS)
@pytest.mark.parametrize("name", FEW)
def test_rescaling_is_the_change_of_variable(name, units):
    process, scaling = FEW[name], SCALINGS[units]
    scaled = rescale(process, scaling)
    family = RescaledLinearProcess if name == "third party" else type(process)
    assert type(scaled) is family
    assert scaled.horizon == process.horizon
    check_process(scaled, DIM, generator=seeded())
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64) * process.horizon
    x, y = states(seed=1), states(seed=2)
    torch.testing.assert_close(scaled.drift(t, scaling.to_model(x)) * scaling.scale, process.drift(t, x))
    noise = scaled.scale(t)(y) * scaling.scale
    torch.testing.assert_close(noise, process.scale(t)(y))
    law, wanted = scaled.transition(0.3 * t, t), process.transition(0.3 * t, t)
    torch.testing.assert_close(scaling.to_data(law.mean(scaling.to_model(x))), wanted.mean(x))
    size = scaling.scale.expand(3)
    covariance = size[:, None] * law.covariance.expanded(3) * size
    torch.testing.assert_close(covariance, wanted.covariance.expanded(3))


def test_a_common_scale_keeps_a_scalar_sigma_scalar_and_short_steps_exact():
    scaled = rescale(BrownianMotion(2.0), SCALINGS["common"])
    assert scaled.sigma == 0.8
    assert scaled.dim is None
    law = rescale(OrnsteinUhlenbeck(1.0, 2.0, 5.0), SCALINGS["common"]).transition(0.0, 1e-13)
    wanted = 1e-13 * (5.0 - SCALINGS["common"].shift) / 2.5
    torch.testing.assert_close(law.offset, wanted, rtol=1e-12, atol=0)


def test_rescaling_a_drift_of_ones_own(dtype):
    process, scaling = DriftProcess(double_well, SIGMA, 2.0), SCALINGS["per coordinate"]
    scaled = rescale(process, scaling)
    assert isinstance(scaled, RescaledProcess)
    check_process(scaled, DIM, generator=seeded())
    x, t = states(dtype=dtype), 0.7
    found = scaled.drift(t, scaling.to_model(x)) * scaling.scale.to(dtype)
    torch.testing.assert_close(found, process.drift(t, x), rtol=1e-4, atol=1e-4)
    assert rescale(DriftProcess(double_well, 1.0), scaling).dim == 3


def test_files_keep_rescaled_processes():
    scaled = rescale(DriftProcess(Restoring(2.0), SIGMA), SCALINGS["common"])
    tree, tensors = encode(scaled)
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(back.drift(0.1, states()), scaled.drift(0.1, states()))


# --- the conformance check finds what is broken


class Broken(Lagging):
    """:class:`Lagging` with one law broken by ``fault``."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.horizon = -1.0 if fault == "horizon" else 1.7

    @property
    def dim(self) -> int | None:
        return 2 if self.fault == "dim" else None

    def linear(self, t: float | Tensor) -> LinearMap:
        values = super().linear(t).values
        if self.fault == "linear":
            values = 1.1 * values
        return LinearMap(values.float() if self.fault == "linear dtype" else values)

    def offset(self, t: float | Tensor) -> Tensor:
        value = super().offset(t)
        return {"offset": 1.1 * value, "offset shape": value[..., 0]}.get(self.fault, value)

    def scale(self, t: float | Tensor) -> LinearMap:
        value = super().scale(t)
        if self.fault == "scale shape" and isinstance(t, Tensor) and t.ndim:
            return LinearMap(value.values[0])
        if self.fault == "scale order" and isinstance(t, Tensor) and t.ndim:
            return LinearMap(value.values + t.flip(0).unsqueeze(-1))
        return value * {"scale": 1.05, "singular": 0.0}.get(self.fault, 1.0)

    def transition(self, s: float | Tensor, t: float | Tensor) -> Transition:
        law = super().transition(s, t)
        phi, k, q = law.map.values, law.offset, law.covariance.values
        if self.fault == "covariance":
            q = q + 0.05 * q * (torch.as_tensor(t) - torch.as_tensor(s)).unsqueeze(-1)
        if self.fault == "indefinite":
            q = -q
        if self.fault == "map":
            phi = phi * 1.01
        if self.fault == "leap":
            k = k + 0.1
        if self.fault == "transition shape" and phi.ndim == 2:
            q = q[0]
        if self.fault == "order" and phi.ndim == 2:
            q = q.flip(0)
        return Transition(LinearMap(phi), k, LinearMap(q))


FAULTS = {
    "horizon": "horizon is a positive float",
    "dim": "dim is None or the dimension",
    "linear": "map is 1 \\+ linear Δ up to O",
    "linear dtype": "linear is a float64 map",
    "offset": "offset is offset\\(t\\) Δ up to O",
    "offset shape": "offset is a float64 vector",
    "scale": "covariance is scale scaleᵀ Δ up to O",
    "scale shape": "scale is a float64 map with the leading dimensions",
    "scale order": "scale at times \\(batch,\\) is scale time by time",
    "singular": "scale is invertible",
    "covariance": "Chapman–Kolmogorov: transitions compose \\(covariance\\)",
    "indefinite": "covariance is positive definite",
    "map": "Chapman–Kolmogorov: transitions compose \\(map\\)",
    "leap": "Chapman–Kolmogorov: transitions compose \\(offset\\)",
    "transition shape": "transition's covariance is a float64 map",
    "order": "transition at times \\(batch,\\) is transition time by time",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_names_the_broken_law(fault):
    with pytest.raises(InvalidInputError, match=f"Broken breaks the law .*{FAULTS[fault]}"):
        check_process(Broken(fault), DIM, generator=seeded())


def test_the_check_finds_a_drift_that_mixes_rows():
    process = DriftProcess(lambda t, x: x - x.mean(0), 1.0)
    with pytest.raises(InvalidInputError, match="row by row"):
        check_process(process, DIM, generator=seeded())


# The methods that follow from ``transition`` are final, so their faults are put into the package's own classes.
FINAL = {
    "pull is the gradient of log_transition": [(LinearProcess, "pull"), (Pinned, "pull")],
    "push is the gradient of log_transition": [(LinearProcess, "push"), (Pinned, "push")],
    "pinned.pull is pull at the sampled point": [(Pinned, "pull")],
    "pinned.push is push at the sampled point": [(Pinned, "push")],
    "pinned mean is the conditional mean": [(Pinned, "mean")],
    "drift is linear": [(LinearProcess, "drift")],
}


@pytest.mark.parametrize("law", FINAL)
def test_the_check_covers_what_follows_from_the_transition(law, monkeypatch):
    process = OrnsteinUhlenbeck(RATE, SIGMA)
    check_process(process, DIM, generator=seeded())
    for owner, method in FINAL[law]:
        right = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda self, *args, f=right: 1.01 * f(self, *args))
    with pytest.raises(InvalidInputError, match=law):
        check_process(process, DIM, generator=seeded())


def test_the_check_covers_the_pinned_covariance(monkeypatch):
    monkeypatch.setattr(Pinned, "covariance", property(lambda self: self.behind.covariance))
    with pytest.raises(InvalidInputError, match="pinned covariance is the conditional covariance"):
        check_process(OrnsteinUhlenbeck(RATE, SIGMA), DIM, generator=seeded())
