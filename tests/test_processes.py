import json
import math

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
    dense,
    is_function_of_time,
    states,
    tensor,
    wave_matrix,
)
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.processes import (
    BrownianMotion,
    CosineSchedule,
    LinearProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
    check_process,
)
from sbridge.storage.registry import decode, encode

OWN = [name for name in LINEAR if name != "third party"]


# --- every family


@pytest.mark.parametrize("name", LINEAR)
def test_keeps_the_laws_of_linear_processes(name):
    check_process(LINEAR[name], DIM, seed=0)


@pytest.mark.parametrize("name", [name for name in LINEAR if "matrix rate" in name])
def test_covariances_under_a_matrix_rate_are_symmetric_to_the_last_bit(name):
    times = torch.linspace(0.1, 1.0, 7, dtype=torch.float64) * LINEAR[name].horizon
    found = LINEAR[name].transition(0.0 * times, times).covariance.values
    assert torch.equal(found, found.mT)


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
        (process.guiding_term(t, *single[:2]), process.guiding_term(t, x, y)),
        (process.conditional_score(t, *single[:2]), process.conditional_score(t, x, y)),
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
