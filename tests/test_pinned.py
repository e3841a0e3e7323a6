import mpmath
import pytest
import torch
from families import (
    FEW,
    MEAN,
    RATE,
    SIGMA,
    dense,
    states,
    tensor,
)
from torch import Tensor

from sbridge.processes import (
    BrownianMotion,
    CosineSchedule,
    LinearProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)

EPS32 = torch.finfo(torch.float32).eps


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
        assert torch.isfinite(found.guiding_term(x, y, noise)).all()


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
        for method in (pinned.sample, pinned.guiding_term, pinned.conditional_score):
            found, wanted = method(x, y, noise), method(x.double(), y.double(), noise.double())
            assert float((found - wanted).abs().max()) < 20 * EPS32 * float(wanted.abs().max())


@pytest.mark.parametrize("name", FEW)
def test_pinned_ends_are_where_they_were_pinned(name):
    process, x, y = FEW[name], states(seed=1), states(seed=2)
    for t, wanted in ((0.0, x), (process.horizon, y)):
        torch.testing.assert_close(process.pinned(t).sample(x, y, states(seed=3)), wanted, rtol=1e-7, atol=1e-7)
