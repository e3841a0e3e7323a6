"""References that forget their start, or grow beyond all bounds, before their horizon."""

import math

import pytest
import torch

import sbridge as sb
from sbridge.errors import InvalidInputError, SbridgeWarning
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck, VariancePreserving
from sbridge.processes.chain import Direction, check_growth
from sbridge.solvers import SinkhornBridge
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.solvers.mixture.components import Components, Coordinates
from sbridge.solvers.mixture.likelihood import Likelihood, Rows
from sbridge.solvers.mixture.optimise import fit_lbfgs
from sbridge.time import TimeGrid

MATRIX = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
FORGETFUL = {
    "rate × T = 100": OrnsteinUhlenbeck(1.0, 1.0, 0.3, 100.0),
    "rate × T = 1000": OrnsteinUhlenbeck(1.0, 1.0, 0.3, 1000.0),
    "rates 1 and 1/50": OrnsteinUhlenbeck([1.0, 0.02], 0.7, 0.0, 3000.0),
    "a matrix": OrnsteinUhlenbeck(MATRIX, [[1.0, 0.2], [0.0, 0.5]], 0.0, 1000.0),
    "preserving": VariancePreserving(horizon=50.0),
    "growing": OrnsteinUhlenbeck(-0.1, 1.0, 0.3, 1000.0),
    "much noise": BrownianMotion(1e20),
}
SOLVERS = {"Gaussian": GaussianBridge(), "plug-in": SinkhornBridge(), "mixture": MixtureBridge(components=(2,))}
pytestmark = pytest.mark.filterwarnings("ignore::sbridge.errors.SbridgeWarning")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def ends(dtype):
    x = randn(300, 2, seed=1).to(dtype)
    return x, (0.3 * randn(300, 2, seed=2) + randn(300, 1, seed=3).sign() * torch.tensor([1.0, 2.0])).to(dtype)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", FORGETFUL)
def test_the_plan_of_a_reference_that_has_forgotten_its_start_is_independent(name, solver, dtype):
    """The conditional mean is the target's mean whatever the row, and ``X_t`` far from both ends is the reference's."""
    (x, y), reference = ends(dtype), FORGETFUL[name]
    bridge = sb.fit(x, y, reference=reference, solver=SOLVERS[solver])
    for one, rows, far in ((bridge, x, y), (bridge.reversed(), y, x)):
        means = one.conditional_mean(rows, seed=0)
        spread = float(far.std())
        # Means of Sinkhorn's plan are exact for independent ends: the first iteration ends it.
        torch.testing.assert_close(means, means[:1].expand_as(means), rtol=0, atol=1e-6 * spread)
        close = 0.1 * spread if solver == "mixture" and one is bridge else 1e-5 * spread
        torch.testing.assert_close(means[0], far.mean(0), rtol=0, atol=close)
        drawn = one.transport(rows, seed=1)
        assert bool(drawn.isfinite().all())
        for share in (1e-3, 0.5, 0.999):
            assert bool(one.interpolate(rows, share * reference.horizon, seed=1).isfinite().all())


def test_half_way_of_a_long_horizon_is_the_stationary_law(dtype):
    x, y = ends(dtype)
    bridge = sb.fit(x, y, reference=FORGETFUL["rate × T = 1000"], solver=GaussianBridge())
    middle = bridge.interpolate(torch.zeros(20_000, 2, dtype=dtype), 500.0, seed=0).double()
    assert float((middle.mean(0) - 0.3).abs().max()) < 4 * math.sqrt(0.5 / 20_000)
    assert float((middle.var(0) - 0.5).abs().max()) < 4 * 0.5 * math.sqrt(2 / 20_000)


def pinned_ou(rate, sigma, mean, horizon, t, x0, xT):
    """Mean and variance by ``sinh``, written with exponentials of negative numbers only."""
    size = abs(rate)
    early, late, whole = (-math.expm1(-2 * size * d) for d in (t, horizon - t, horizon))
    stay, gain = math.exp(-size * t) * late / whole, math.exp(-size * (horizon - t)) * early / whole
    variance = sigma**2 / (2 * size) * early * late / whole
    return mean + stay * (x0 - mean) + gain * (xT - mean), variance


@pytest.mark.parametrize("rate", [-0.1, -0.01, 0.1, 1.0])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("share", [1e-6, 0.01, 0.5, 0.99, 1 - 1e-6])
def test_pinned_bridges_over_a_long_horizon(rate, dense, share, dtype):
    """A matrix rate ``rate·I + skew`` turns the states as well: in turned coordinates it is the scalar process."""
    horizon, sigma, mean = 1000.0, 0.7, 0.3
    t = share * horizon
    turn = torch.tensor([[0.0, 0.05], [-0.05, 0.0]], dtype=torch.float64)
    matrix = rate * torch.eye(2, dtype=torch.float64) + turn
    given = OrnsteinUhlenbeck(matrix if dense else rate, sigma, 0.0 if dense else mean, horizon)
    x0, xT, noise = randn(5, 2, seed=1), randn(5, 2, seed=2), randn(5, 2, seed=3)
    if dense:
        back, ahead = (torch.matrix_exp(turn * d) for d in (t, t - horizon))
        wanted, variance = pinned_ou(rate, sigma, 0.0, horizon, t, x0 @ back, xT @ ahead)
    else:
        wanted, variance = pinned_ou(rate, sigma, mean, horizon, t, x0, xT)
    pinned = given.pinned(t)
    found = pinned.mean(x0.to(dtype), xT.to(dtype))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-11}
    torch.testing.assert_close(found, wanted.to(dtype), **tolerance)
    covariance = pinned.covariance.expanded(2)
    torch.testing.assert_close(covariance, variance * torch.eye(2).double(), rtol=1e-8, atol=1e-10 * variance)
    assert bool(pinned.sample(x0.to(dtype), xT.to(dtype), noise.to(dtype)).isfinite().all())


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_gradients_of_a_pinned_bridge_over_a_long_horizon(rate, dtype):
    """``pull + push`` is the score of ``X_t | X_0, X_T``, which is Gaussian."""
    process = OrnsteinUhlenbeck(rate, 0.7, 0.3, 1000.0)
    x0, xT, noise = (randn(5, 2, seed=seed).to(dtype) for seed in (1, 2, 3))
    for t in (1.0, 500.0, 999.0):
        pinned = process.pinned(t)
        x = pinned.sample(x0, xT, noise)
        total = pinned.guiding_term(x0, xT, noise) + pinned.conditional_score(x0, xT, noise)
        score = -(x - pinned.mean(x0, xT)) / pinned.covariance.values.to(x)
        torch.testing.assert_close(total, score, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(
            process.guiding_term(t, x, xT) + process.conditional_score(t, x, x0), score, rtol=1e-4, atol=2e-5
        )


@pytest.mark.parametrize("name", FORGETFUL)
def test_controls_of_a_gaussian_bridge_add_up_to_the_score(name):
    reference, eye = FORGETFUL[name], torch.eye(2, dtype=torch.float64)
    coupling = GaussianCoupling(torch.zeros(2), eye, torch.ones(2), 0.5 * eye, reference)
    for share in (0.0, 1e-3, 0.5, 0.999, 1.0):
        t = share * reference.horizon
        (forward, _), (backward, _) = coupling.forward_gain(t), coupling.backward_gain(t)
        sigma, (_, covariance) = reference.scale(t).expanded(2), coupling.marginal(t)
        scale = float(torch.linalg.solve(covariance, sigma).abs().max() + forward.abs().max())
        torch.testing.assert_close(
            forward + backward, -sigma.mT @ torch.linalg.inv(covariance), rtol=1e-8, atol=1e-8 * scale
        )


@pytest.mark.parametrize("direction", Direction)
def test_a_grid_too_coarse_for_the_reference_is_refused(direction):
    """On the grid that the message names, simulated ends have about the right spread."""
    rate = 1.0 if direction is Direction.BACKWARD else -1.0
    x, y = ends(torch.float64)
    process = OrnsteinUhlenbeck(rate, 1.0, 0.0, 60.0)
    with pytest.raises(InvalidInputError, match=r"e\^1.5. .*TimeGrid.uniform\(n\) with n = 240 or more"):
        check_growth(process, TimeGrid.uniform(40).times(60.0), direction)
    check_growth(process, TimeGrid.uniform(40).times(60.0), direction.opposite)
    solver = GaussianBridge(TimeGrid.uniform(240))
    bridge = sb.fit(x, y, reference=process, solver=solver)
    measure, far = (bridge.backward, x) if direction is Direction.BACKWARD else (bridge.forward, y)
    found = measure.sample(2000, seed=0).x[-1]
    assert float((found.std(0) / far.std(0)).log().abs().max()) < 0.25
    coarse = sb.fit(x, y, reference=process, solver=GaussianBridge(TimeGrid.uniform(40)))
    measure = coarse.backward if direction is Direction.BACKWARD else coarse.forward
    with pytest.raises(InvalidInputError, match="finer grid"):
        measure.sample(10, seed=0)
    with pytest.raises(InvalidInputError, match="finer grid"):
        sb.fit(x, y, reference=process, solver=sb.IMF(grid=TimeGrid.uniform(40)))


def test_growth_that_a_matrix_cannot_hold_is_refused():
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    rate = turn @ torch.diag(torch.tensor([-0.1, 1.0], dtype=torch.float64)) @ turn.mT
    OrnsteinUhlenbeck(rate, 1.0, 0.0, 100.0)
    with pytest.raises(InvalidInputError, match=r"in the eigenvectors of the rate"):
        OrnsteinUhlenbeck(rate, 1.0, 0.0, 300.0)
    OrnsteinUhlenbeck([-0.1, 1.0], 1.0, 0.0, 300.0)


def test_a_component_that_cannot_be_factorised_is_a_rejected_step():
    """Where a line search meets one, the fit goes on from a shorter step."""
    x, y = randn(58, 3, seed=1), randn(53, 3, seed=2)
    c = Coordinates.of(BrownianMotion(1.0), x, y, diagonal=False)
    likelihood = Likelihood(c, Rows(c.source(x)), Rows(c.target(y)))
    start = likelihood.start(3, seeded())
    seen = []

    class Trap(Likelihood):
        def statistics(self, parts):
            """Beyond a certain size the likelihood is no number."""
            seen.append(float(parts.means.detach().abs().max()))
            value, *statistics = super().statistics(parts)
            return (float("nan") if seen[-1] > 1.02 * seen[0] else value), *statistics

    best, found, _ = fit_lbfgs(Trap(c, likelihood.source, likelihood.target), start, 20, 1e-9)
    assert math.isfinite(best)
    assert max(seen) > 1.02 * seen[0] > float(found.means.abs().max())
    assert best >= likelihood.value(start)
    singular = Components(start.logits, start.means, start.covariances - start.covariances)
    assert not singular.have_densities
    assert start.have_densities


def test_warnings_are_the_packages_own():
    x, y = ends(torch.float32)
    with pytest.warns(SbridgeWarning):
        sb.fit(x, y, reference=FORGETFUL["much noise"], solver=GaussianBridge())
