"""Heat, work and entropy production against closed forms and fluctuation theorems, at coarse steps too."""

import dataclasses
import math

import pytest
import torch

from sbridge.diffusion.conversions import ScoreControl
from sbridge.diffusion.exact import ExactScore
from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.functionals import (
    dissipation,
    entropy_production,
    excess_heat,
    explicit_score_matching,
    heat,
    housekeeping_heat,
    reversal_cost,
    work,
)
from sbridge.identities import Setting, identities, thermodynamics
from sbridge.identities.settings import PROCESSES, mixture as standard_mixture
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.measures import Direction, Estimate, PathMeasure, kernel_log_ratio
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    EulerMaruyama,
    OrnsteinUhlenbeck,
)
from sbridge.time import TimeGrid

KAPPA = 1.0
EYE = torch.eye(2, dtype=torch.float64)
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
SIGMA = torch.tensor([[1.0, 0.4], [-0.2, 0.6]], dtype=torch.float64)
SPREAD = torch.tensor([[0.7, 0.2], [0.2, 0.4]], dtype=torch.float64)


def rotating(omega=0.6, horizon=2.0):
    """Isotropic, σ = 1: stationary in N(0, 1/(2κ))."""
    return OrnsteinUhlenbeck(KAPPA * EYE - omega * TURN, 1.0, horizon=horizon)


def general(strength=0.2, horizon=1.0):
    """Dense σ and an offset, stationary in N(MEAN, SPREAD) for the rate ``(D + strength J) SPREAD⁻¹``."""
    rate = (0.5 * SIGMA @ SIGMA.mT + strength * TURN) @ torch.linalg.inv(SPREAD)
    return OrnsteinUhlenbeck(rate, SIGMA, mean=MEAN, horizon=horizon)


def stationary_velocity(strength=0.2):
    gain = strength * TURN @ torch.linalg.inv(SPREAD)
    return lambda t, x: -(x - MEAN.to(x)) @ gain.mT.to(x)


STILL, MOVED = Gaussian(MEAN, SPREAD), Gaussian(MEAN + 0.2, 0.7 * SPREAD)


def constant(law):
    return lambda t, x: law.log_density(x)


def paths_of(process, start, steps, n=4000, seed=0, control=None, rule=None):
    return PathMeasure(process, control, start, grid=TimeGrid.uniform(steps), rule=rule).sample(n, seed=seed)


def agrees(values, expected, sigmas=3.0):
    found = values if isinstance(values, Estimate) else Estimate.of(values)
    return abs(found.value - expected) <= sigmas * found.standard_error


def exponential(values):
    return Estimate.of((-values.values).exp())


def detailed(values):
    """``P(ΔS < 0) − E[e^{−ΔS}; ΔS > 0]``, zero if ``P(ΔS = s) = e^s P(ΔS = −s)``."""
    s = values.values
    return (s < 0).double() - torch.where(s > 0, (-s).exp(), 0.0)


def test_entropy_production_of_rotation_is_its_closed_form():
    """``2ω²T/κ``; along a chain of exact steps of length Δ each gives ``4 sin²(ωΔ)/(e^{2κΔ} − 1)``."""
    omega, steps = 1.0, 50
    process, start = rotating(omega), Gaussian(torch.zeros(2).double(), EYE / (2 * KAPPA))
    paths = paths_of(process, start, steps, n=50_000, seed=3)
    made = entropy_production(paths, None, constant(start))
    for values, n in ((made.values, steps), (made.coarse, steps // 2)):
        span = process.horizon / n
        assert agrees(values, 4.0 * n * math.sin(omega * span) ** 2 / math.expm1(2.0 * KAPPA * span))
    limit = 2.0 * omega**2 * process.horizon / KAPPA
    assert abs(made.estimate.value - limit) < 2.0 * made.estimate.standard_error + made.allowance
    without_step = Estimate.of(2.0 * made.values - made.coarse)
    assert without_step.standard_error < 0.005 * limit
    assert abs(without_step.value / limit - 1.0) < 0.01
    assert agrees(without_step, limit, sigmas=2.0)
    other = dissipation(paths, lambda t, x: omega * x @ TURN.mT)
    assert abs(other.estimate.value / limit - 1.0) < 0.01
    assert agrees(other.values, limit, sigmas=2.0)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_fluctuation_theorem_holds_at_any_step(steps):
    start = Gaussian(torch.zeros(2).double(), EYE / (2 * KAPPA))
    made = entropy_production(paths_of(rotating(), start, steps, n=20_000, seed=4), None, constant(start))
    assert made.estimate.value > 10 * made.estimate.standard_error
    assert agrees(exponential(made), 1.0)
    assert agrees(detailed(made), 0.0)


@pytest.mark.parametrize("rule", [None, EulerMaruyama()])
def test_any_end_density_keeps_the_mean_exponential(rule):
    def density(t, x):
        return (MOVED if t == 0.0 else STILL).log_density(x)

    made = entropy_production(paths_of(general(), MOVED, 6, n=20_000, rule=rule), None, density)
    assert agrees(exponential(made), 1.0)
    assert not agrees(exponential(made * 0.5), 1.0)


def test_detailed_balance_produces_no_entropy_on_any_path():
    paths = paths_of(general(strength=0.0), STILL, 9, n=50)
    made = entropy_production(paths, None, constant(STILL))
    assert float(made.values.abs().max()) < 1e-11
    assert float(made.coarse.abs().max()) < 1e-11
    assert float(housekeeping_heat(paths, None, constant(STILL)).values.abs().max()) < 1e-11


def test_parts_of_the_entropy_production():
    process, velocity = general(), stationary_velocity()
    exact = ExactScore(process, MOVED)
    paths = paths_of(process, MOVED, 60, n=6000, seed=5)
    whole = entropy_production(paths, None, exact.log_density)
    kept = housekeeping_heat(paths, None, constant(STILL))
    rest = whole - kept
    for part in (whole, kept, rest):
        assert part.estimate.value > 10 * part.estimate.standard_error
        assert agrees(exponential(part), 1.0)
    excess = excess_heat(paths, constant(STILL))
    torch.testing.assert_close(excess.values, STILL.log_density(paths.x[-1]) - STILL.log_density(paths.x[0]))
    torch.testing.assert_close((heat(paths) - kept).values, excess.values)

    def current(t, x):
        return process.drift(t, x) - 0.5 * exact(t, x) @ (SIGMA @ SIGMA.mT)

    routes = {
        "whole": (whole, current),
        "housekeeping": (kept, velocity),
        "rest": (rest, lambda t, x: current(t, x) - velocity(t, x)),
    }
    for name, (part, field) in routes.items():
        gap = part - dissipation(paths, field)
        assert abs(gap.estimate.value) < 3 * gap.estimate.standard_error + gap.allowance, name
        assert gap.allowance < 0.03, name


def dragged(rate=1.5, speed=0.8, diffusion=0.5):
    """The trap ``U = ½k|x − ct|²`` with the drift ``−DkU'``, from equilibrium."""
    centre = lambda t: speed * torch.as_tensor(t, dtype=torch.float64)  # noqa: E731
    drift = lambda t, x: -diffusion * rate * (x - centre(t).to(x))  # noqa: E731
    process = DriftProcess(drift, sigma=math.sqrt(2 * diffusion), dimension=1)
    start = Gaussian(torch.zeros(1).double(), torch.eye(1).double() / rate)
    return process, start, lambda t, x: 0.5 * rate * (x - centre(t)).square().sum(1)


@pytest.mark.parametrize("steps", [3, 200])
def test_work_of_a_dragged_trap(steps):
    process, start, energy = dragged()
    done = work(paths_of(process, start, steps, n=20_000, seed=6), None, energy)
    assert agrees(exponential(done), 1.0), "Jarzynski: the free energy does not change"
    if steps == 200:
        k, c, d = 1.5, 0.8, 0.5
        mean = c**2 / d * (1.0 + math.expm1(-d * k) / (d * k))
        assert abs(done.estimate.value - mean) < 3 * done.estimate.standard_error + done.allowance
        variance = float(done.values.var())
        assert abs(variance - 2 * mean) < 4 * variance * math.sqrt(2 / 20_000) + 2 * done.allowance


def test_a_control_is_a_drift():
    """Euler steps of Brownian motion under ``u = σ⁻¹b`` are those of the drift ``b``."""
    pull = torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)
    field = lambda t, x: -x @ pull.mT + t  # noqa: E731
    control = lambda t, x: field(t, x) @ torch.linalg.inv(SIGMA).mT  # noqa: E731
    one = paths_of(BrownianMotion(SIGMA), STILL, 11, n=40, control=control, rule=EulerMaruyama())
    two = paths_of(DriftProcess(field, SIGMA, dimension=2), STILL, 11, n=40)
    torch.testing.assert_close(one.x, two.x)
    for a, b in zip(*(vars(heat(p, u)).values() for p, u in ((one, control), (two, None))), strict=True):
        torch.testing.assert_close(a, b)
    midpoint = sum(
        ((field(float(t), x) + field(float(t), y)) @ torch.linalg.inv(SIGMA @ SIGMA.mT) * (y - x)).sum(1)
        for t, x, y in zip(two.t[:-1], two.x[:-1], two.x[1:], strict=True)
    )
    fine = paths_of(DriftProcess(field, SIGMA, dimension=2), STILL, 200, n=40)
    assert float((heat(two).values - midpoint).abs().max()) > 0.01
    stratonovich = sum(
        ((field(float(t), x) + field(float(t), y)) @ torch.linalg.inv(SIGMA @ SIGMA.mT) * (y - x)).sum(1)
        for t, x, y in zip(fine.t[:-1], fine.x[:-1], fine.x[1:], strict=True)
    )
    assert float((heat(fine).values - stratonovich).abs().max()) < 0.2


def test_backward_paths_count_in_the_order_visited():
    """``dY = (−b + σû) ds`` with ``û = 2σ⁻¹b`` is the process with drift ``b``, in reversed time."""
    process = general()
    twice = lambda t, x: 2.0 * process.drift(t, x) @ torch.linalg.inv(SIGMA).mT  # noqa: E731
    grid = TimeGrid((0.0, 0.3, 0.4, 0.8, 0.9, 1.0))
    back = PathMeasure(process, twice, STILL, Direction.BACKWARD, grid, EulerMaruyama()).sample(30, seed=1)
    mirror = TimeGrid((0.0, 0.1, 0.2, 0.6, 0.7, 1.0))
    there = PathMeasure(process, None, STILL, grid=mirror, rule=EulerMaruyama()).sample(30, seed=1)
    torch.testing.assert_close(back.x, there.x)
    one, two = heat(back, twice), heat(there)
    torch.testing.assert_close(one.values, two.values)
    torch.testing.assert_close(one.coarse, two.coarse)


def test_the_control_that_made_the_paths_does_not_matter():
    made = paths_of(general(), STILL, 8, n=30, control=lambda t, x: torch.sin(x))
    blank = dataclasses.replace(made, noise=torch.zeros_like(made.noise), v=torch.zeros_like(made.v))
    assert torch.equal(heat(made).values, heat(blank).values)


def mixture():
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.6, 0.4], dtype=torch.float64), means, torch.stack([0.2 * EYE, 0.3 * EYE]))


def test_reversal_cost_is_the_error_of_the_score():
    process, data = OrnsteinUhlenbeck(1.0, math.sqrt(2.0)), mixture()
    exact, grid, rule = ExactScore(process, data), TimeGrid.uniform(100), EulerMaruyama()
    forward = PathMeasure(process, None, data, grid=grid, rule=rule)
    paths = forward.sample(3000, seed=2)

    def cost(score, prior):
        control = ScoreControl(process, score)
        return reversal_cost(paths, forward, PathMeasure(process, control, prior, Direction.BACKWARD, grid, rule))

    end = exact.marginal(process.horizon)
    wrong = lambda t, x: exact(t, x) + torch.sin(x @ SIGMA.to(x))  # noqa: E731
    right = explicit_score_matching(paths, wrong, exact, s_min=0.0)
    none, some = cost(exact, end), cost(wrong, end)
    assert agrees(exponential(none), 1.0)
    assert abs(none.estimate.value) < 0.05, "a step error, of first order"
    excess = (some - none).estimate
    assert abs(excess.value - right.estimate.value) < 3 * excess.standard_error + 0.03 * right.estimate.value
    prior = Gaussian(torch.ones(2).double(), EYE)
    added = end.log_density(paths.x[-1]) - prior.log_density(paths.x[-1])
    torch.testing.assert_close((cost(exact, prior) - none).values, added)


def test_reversal_cost_along_paths_of_the_model():
    """``E_B e^{log dF/dB} = 1``, and ``E_B log dF/dB = −KL(B ‖ F)``."""
    process, start = general(), Gaussian(MEAN + 0.5, SPREAD)
    forward = PathMeasure(process, None, MOVED, grid=TimeGrid.uniform(5))
    control = ScoreControl(process, lambda t, x: -(x - MEAN) @ torch.linalg.inv(SPREAD))
    backward = PathMeasure(process, control, start, Direction.BACKWARD, forward.grid)
    paths = backward.sample(20_000, seed=1)
    cost = reversal_cost(paths, forward, backward)
    ends = MOVED.log_density(paths.x[-1]) - start.log_density(paths.x[0])
    torch.testing.assert_close(cost.values, kernel_log_ratio(paths, forward, backward) + ends)
    assert agrees(cost.values.exp(), 1.0)
    assert cost.estimate.value < -10 * cost.estimate.standard_error


def test_the_reversal_with_its_own_force_costs_the_entropy_production():
    """``û = 2σ⁻¹b`` turns the backward process into the process itself."""
    process = general()
    exact = ExactScore(process, MOVED)
    twice = lambda t, x: 2.0 * process.drift(t, x) @ torch.linalg.inv(SIGMA).mT  # noqa: E731
    forward = PathMeasure(process, None, MOVED, grid=TimeGrid.uniform(20), rule=EulerMaruyama())
    backward = PathMeasure(process, twice, exact.marginal(1.0), Direction.BACKWARD, forward.grid, EulerMaruyama())
    paths = forward.sample(100, seed=1)
    cost, made = reversal_cost(paths, forward, backward), entropy_production(paths, None, exact.log_density)
    torch.testing.assert_close(cost.values, made.values)


def test_single_precision_gives_the_same():
    paths = paths_of(general(), STILL, 50, n=100)
    single = dataclasses.replace(paths, x=paths.x.float(), chain=dataclasses.replace(paths.chain, like=torch.empty(0)))
    for found, expected in ((heat(single), heat(paths)), (dissipation(single, stationary_velocity()),) * 2):
        assert found.values.dtype == torch.float64
        torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)


OWN = {one.name: one for one in identities() if one.body.__module__ == thermodynamics.__name__}
SETTINGS = (
    Setting("VP", PROCESSES["VP"], standard_mixture(1), samples=1000),
    Setting("dense", general(horizon=1.5), standard_mixture(2), samples=1000),
    Setting("VE", PROCESSES["VE"], standard_mixture(3), samples=400),
)


@pytest.mark.parametrize("where", SETTINGS, ids=lambda where: where.name)
@pytest.mark.parametrize("name", OWN)
def test_identities_hold(name, where):
    if OWN[name].applies(where):
        for check in OWN[name](where):
            assert check.holds, check


def scaled(name, factor):
    def damage(patch):
        original = getattr(thermodynamics, name)
        patch.setattr(thermodynamics, name, lambda *a, **k: original(*a, **k) * factor)

    return damage


def no_ends(patch):
    """The heat for the entropy production."""
    patch.setattr(thermodynamics, "entropy_production", lambda paths, control, density: heat(paths, control))


BREAKS = {
    "entropy_production_of_rotation": [scaled("entropy_production", 0.7), scaled("dissipation", 1.3)],
    "fluctuation_theorems": [
        scaled("entropy_production", 0.7),
        scaled("entropy_production", -1.0),
        scaled("housekeeping_heat", 0.5),
        no_ends,
    ],
    "entropy_production_of_noising": [scaled("entropy_production", 0.7), scaled("dissipation", 0.5), no_ends],
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [pytest.param(n, d, id=f"{n} {i}") for n, damages in BREAKS.items() for i, d in enumerate(damages)],
)
def test_a_damaged_identity_is_seen(monkeypatch, name, damage):
    damage(monkeypatch)
    where = SETTINGS[2 if name == "entropy_production_of_noising" else 1]
    assert not all(check.holds for check in OWN[name](where))


def test_every_identity_is_broken_once():
    assert BREAKS.keys() == OWN.keys()


def test_bad_input_is_told():
    paths = paths_of(general(), STILL, 4, n=5)
    with pytest.raises(InvalidInputError, match="the log density must return one number per row"):
        entropy_production(paths, None, lambda t, x: x)
    with pytest.raises(NonFiniteError, match="the energy U is NaN or infinite"):
        work(paths, None, lambda t, x: x[:, 0] / 0.0)
    with pytest.raises(InvalidInputError, match="one number per row"):
        excess_heat(paths, lambda t, x: x)
    with pytest.raises(InvalidInputError, match="shape of its states"):
        dissipation(paths, lambda t, x: x[:, 0])
    forward = PathMeasure(general(), None, Samples(torch.zeros(3, 2)), grid=TimeGrid.uniform(4))
    backward = PathMeasure(forward.process, None, STILL, Direction.BACKWARD, forward.grid)
    with pytest.raises(InvalidInputError, match="cost of a reversal needs"):
        reversal_cost(paths, forward, backward)
