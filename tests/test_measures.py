"""Path measures: which numbers a seed gives, exact log ratios, divergences against closed forms."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from sbridge.controls import MLP, seeded_control
from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.measures import (
    Direction,
    Estimate,
    PathMeasure,
    effective_sample_size,
    energy,
    importance_weights,
    jeffreys,
    kernel_log_ratio,
    log_ratio,
    path_kl,
)
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    LinearSchedule,
    OrnsteinUhlenbeck,
    VariancePreserving,
)
from sbridge.random import ROW_BLOCK, NormalNoise, derive, generator
from sbridge.simulation import Backprop
from sbridge.storage.registry import decode, encode, register
from sbridge.time import TimeGrid

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
GRID = TimeGrid((0.0, 0.05, 0.3, 0.5, 0.9, 1.0))
MATRIX = torch.tensor([[1.0, 0.2], [0.2, 0.6]], dtype=torch.float64)
SIGMA = torch.tensor([[0.8, 0.0], [0.5, 1.1]], dtype=torch.float64)
OU = OrnsteinUhlenbeck(torch.tensor([[1.0, 0.6], [-0.4, 0.3]]), SIGMA, 0.7, horizon=1.7)
NORMAL = Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), MATRIX)
DRIFTING = DriftProcess(lambda t, x: torch.sin(x) - t, SIGMA, horizon=1.3)
CASES = [(OU, ExactTransition()), (OU, EulerMaruyama()), (DRIFTING, EulerMaruyama())]


def net(seed, dim=2):
    control = seeded_control(MLP(8, 1), dim, 1.7, 1.0, torch.Generator().manual_seed(seed)).double()
    nn.init.normal_(control.network.last.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    return control


def measure(control=None, process=OU, direction=FORWARD, start=NORMAL, **options):
    return PathMeasure(process, control, start, direction, options.pop("grid", GRID), **options)


def within(values, exact, errors=3.0):
    """Whether the mean of independent values is within so many standard errors of ``exact``."""
    estimate = Estimate.of(values)
    return abs(estimate.value - exact) < errors * estimate.standard_error


# Which numbers a seed gives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_marginals_are_states_of_the_sample_whatever_the_chunk(direction):
    n = 2 * ROW_BLOCK + 300
    p = measure(net(0), direction=direction)
    paths = p.sample(n, seed=3)
    times = [1.7, 0.51, 0.0, 0.51, 0.085]
    wanted = torch.stack([paths.x[int((paths.t - t).abs().argmin())] for t in times])
    for chunk in (None, 1, ROW_BLOCK + 1, 10 * ROW_BLOCK):
        found = p.marginals(times, n, seed=3, chunk=chunk)
        assert found.shape == (5, n, 2)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert torch.equal(p.marginals(torch.tensor(times, dtype=torch.float64), n, seed=3), p.marginals(times, n, seed=3))
    assert p.marginals([], 5, seed=0).shape == (0, 5, 2)


def test_marginals_off_the_grid_have_the_exact_law():
    n, t = 20_000, 0.77
    found = measure(grid=TimeGrid.uniform(2)).marginals([t], n, seed=5)[0]
    law = OU.transition(0.0, t)
    mean = law.mean(NORMAL.mean[None])[0]
    covariance = law.map.values @ MATRIX @ law.map.values.mT + law.covariance.values
    assert ((found.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    errors = ((covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n).sqrt()
    assert ((torch.cov(found.mT) - covariance).abs() < 4 * errors).all()


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_one_seed_is_one_path(direction, dtype):
    n = ROW_BLOCK + 20
    control = net(1).to(dtype)
    p = measure(control, direction=direction)
    x = NORMAL.sample(n, torch.Generator().manual_seed(0)).to(dtype)
    paths = p.simulate(x, seed=9)
    assert paths.x.dtype == paths.noise.dtype == paths.v.dtype == dtype
    assert torch.equal(paths.x[0], x)
    assert torch.equal(paths.t, GRID.times(1.7) if direction is FORWARD else GRID.times(1.7).flip(0))
    tolerance = {"rtol": 0.0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    for chunk in (None, ROW_BLOCK):
        torch.testing.assert_close(p.transport(x, seed=9, chunk=chunk), paths.x[-1], **tolerance)
    for t, state in zip(paths.t.tolist(), paths.x, strict=True):
        torch.testing.assert_close(p.interpolate(x, t, seed=9), state, **tolerance)
    # Whole blocks of rows do not depend on what comes after them.
    torch.testing.assert_close(p.transport(x[:ROW_BLOCK], seed=9), paths.x[-1, :ROW_BLOCK], **tolerance)
    assert not torch.equal(p.transport(x, seed=10), paths.x[-1])
    # The states of the sample are those of a simulation from its start states.
    sample = p.sample(7, seed=4)
    again = p.simulate(p.starts(7, seed=4), seed=4)
    assert torch.equal(sample.x, again.x)
    assert sample.x.dtype == torch.float64


def test_interpolation_off_the_grid_stops_there():
    n = 20_000
    x = torch.full((n, 2), 0.8, dtype=torch.float64)
    for direction in (FORWARD, BACKWARD):
        found = measure(direction=direction).interpolate(x, 1.1, seed=1)
        law = OU.transition(0.0, 1.1) if direction is FORWARD else OU.transition(1.1, 1.7)
        mean, covariance = law.mean(x[:1])[0], law.covariance.values
        if direction is BACKWARD:
            inverse = torch.linalg.inv(law.map.values)
            mean, covariance = inverse @ (x[0] - law.offset), inverse @ covariance @ inverse.mT
        assert ((found.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
        assert ((found.var(0) / covariance.diagonal() - 1).abs() < 4 * math.sqrt(2 / n)).all()


@dataclasses.dataclass(frozen=True, eq=False)
class OwnEnd:
    """The far end under the process itself."""

    process: OrnsteinUhlenbeck

    def draw(self, x, generator):
        law = self.process.transition(0.0, self.process.horizon)
        return law.mean(x) + law.root(torch.randn(x.shape, generator=generator, dtype=x.dtype))

    def mean(self, x):
        return self.process.transition(0.0, self.process.horizon).mean(x)


@pytest.mark.parametrize("kernel", [None, OwnEnd(OU)], ids=["simulated", "end kernel"])
def test_states_at_several_times_belong_to_one_path(kernel):
    """``Cov(X_s, X_t | X_0) = Cov(X_s) Φ(t, s)ᵀ`` for ``s < t`` under the process itself, in any order of times."""
    n, times = 20_000, (1.2, 0.0, 0.4, 1.7, 0.4)
    p = measure(rule=ExactTransition(), end_kernel=kernel)
    x = torch.full((n, 2), 0.8, dtype=torch.float64)
    for asked in (times, np.array(times), torch.tensor(times, dtype=torch.float64)):
        found = p.interpolate(x, asked, seed=1)
    late, start, early, end, again = found
    assert torch.equal(start, x)
    assert torch.equal(early, again)
    torch.testing.assert_close(early, p.interpolate(x, 0.4, seed=1), rtol=0, atol=0 if kernel else math.inf)
    torch.testing.assert_close(end, p.transport(x, seed=1), rtol=0, atol=0 if kernel else math.inf)
    for (s, first), (t, second) in (((0.4, early), (1.2, late)), ((0.4, early), (1.7, end)), ((1.2, late), (1.7, end))):
        behind, ahead = OU.transition(0.0, s), OU.transition(s, t)
        before = behind.covariance.values
        exact = before @ ahead.map.values.mT
        joint = torch.cov(torch.cat([first, second], 1).mT)
        after = OU.transition(0.0, t).covariance.values
        errors = ((exact.square() + torch.outer(before.diagonal(), after.diagonal())) / n).sqrt()
        assert ((joint[:2, 2:] - exact).abs() < 4 * errors).all()
        mean = OU.transition(0.0, t).mean(x[:1])[0]
        assert ((second.mean(0) - mean).abs() < 4 * (after.diagonal() / n).sqrt()).all()


@pytest.mark.parametrize("kernel", [False, True])
def test_backward_states_at_several_times_belong_to_one_path(kernel):
    """A backward Brownian motion from ``x`` at ``T``: ``Cov(X_s, X_t) = σ²(T − max(s, t))``."""
    process, n = BrownianMotion(0.5, 2.0), 20_000
    p = measure(None, process, BACKWARD, end_kernel=GaussianEnd(0.0, 0.5) if kernel else None)
    x = torch.full((n, 2), 0.3, dtype=torch.float64)
    near, far = p.interpolate(x, [1.5, 0.5], seed=3) - 0.3
    for found, exact in ((near * near, 0.125), (far * far, 0.375), (near * far, 0.125)):
        assert within(found.flatten(), exact, 4)


def test_times_of_interpolation_are_checked_and_its_rows_are_copies():
    x = torch.ones(3, 2, dtype=torch.float64)
    p = measure()
    for times in (0.0, [0.0], [0.0, 0.0]):
        found = p.interpolate(x, times, seed=0)
        found += 1.0
        assert torch.equal(x, torch.ones_like(x))
    for bad, said in (
        ([], "at least one time"),
        (np.array([[0.5]]), "got shape"),
        ([0.5, 1.8], "got 1.8"),
        (np.array([-0.1]), "got -0.1"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            p.interpolate(x, bad, seed=0)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class GaussianEnd:
    """``far | near ~ N(near + shift, variance)``."""

    shift: float
    variance: float

    def draw(self, x, generator):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + self.shift + math.sqrt(self.variance) * noise

    def mean(self, x):
        return x + self.shift


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_an_end_kernel_replaces_simulation(direction):
    """A Brownian motion with drift has the Brownian bridges: ends from the kernel, the rest pinned."""
    process, shift = BrownianMotion(0.5, 2.0), 1.5
    kernel = GaussianEnd(shift, 0.5**2 * 2.0)
    p = measure(None, process, direction, end_kernel=kernel)
    n = ROW_BLOCK + 5000
    x = torch.full((n, 2), 0.3, dtype=torch.float64)
    end = p.transport(x, seed=2)
    assert torch.equal(end, p.transport(x, seed=2, chunk=1))
    assert torch.equal(end[:ROW_BLOCK], p.transport(x[:ROW_BLOCK], seed=2))
    assert not (end[:ROW_BLOCK] == end[ROW_BLOCK : 2 * ROW_BLOCK]).any()
    assert torch.equal(p.conditional_mean(x, seed=0), x + shift)
    near, far = (0.0, 2.0) if direction is FORWARD else (2.0, 0.0)
    assert torch.equal(p.interpolate(x, near, seed=2), x)
    assert torch.equal(p.interpolate(x, far, seed=2), end)
    for t in (0.5, 1.9):
        elapsed = abs(t - near)
        found = p.interpolate(x, t, seed=2)
        assert within(found[:, 0], 0.3 + shift * elapsed / 2.0, 4)
        assert within((found[:, 0] - 0.3 - shift * elapsed / 2.0).square(), 0.25 * elapsed, 4)
        # Together with the end: Cov(X_t, X_far) = σ² · elapsed.
        product = (found[:, 1] - 0.3 - shift * elapsed / 2.0) * (end[:, 1] - 0.3 - shift)
        assert within(product, 0.25 * elapsed, 4)


def test_conditional_mean_without_a_kernel():
    x = NORMAL.sample(300, torch.Generator().manual_seed(0))
    found = measure().conditional_mean(x, seed=0, draws=400)
    law = OU.transition(0.0, 1.7)
    errors = (found - law.mean(x)) / (law.covariance.values.diagonal() / 400).sqrt()
    assert abs(errors.square().mean() - 1) < 4 * math.sqrt(2 / errors.numel())
    single = [measure().transport(x, seed=derive(0, "mean", draw)) for draw in range(2)]
    torch.testing.assert_close(measure().conditional_mean(x, seed=0, draws=2), (single[0] + single[1]) / 2)


def test_gradients_only_where_they_are_asked_for():
    control = net(3)
    p, x = measure(control), torch.zeros(3, 2, dtype=torch.float64)
    assert not p.simulate(x, seed=0).x.requires_grad
    assert not p.transport(x, seed=0).requires_grad
    assert not p.marginals([1.0], 3, seed=0).requires_grad
    p.simulate(x, seed=0, gradient=Backprop()).x[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in control.parameters())


def test_a_measure_is_saved_field_by_field():
    p = measure(net(2), direction=BACKWARD, rule=EulerMaruyama(), end_kernel=GaussianEnd(1.0, 2.0))
    loaded = decode(*encode(p))
    assert torch.equal(loaded.sample(9, seed=1).x, p.sample(9, seed=1).x)
    assert loaded.end_kernel.variance == 2.0
    assert path_kl(p, loaded, 10, seed=0).value == 0.0  # the same process, though another object


# Log ratios -----------------------------------------------------------------------------------------------------


def log_density_of_path(paths, control):
    """Σ log N(x_{j+1}; m_j + √Δ L u, L Lᵀ), from the states alone."""
    chain, total = paths.chain, 0.0
    for j in range(chain.length):
        root = chain.root(j).expanded(2)
        u = torch.zeros_like(paths.x[j]) if control is None else control(chain.step_times[j], paths.x[j])
        mean = chain.mean(j, paths.x[j]) + chain.root_durations[j] * u @ root.mT
        total = total + torch.distributions.MultivariateNormal(
            mean, scale_tril=torch.linalg.cholesky(root @ root.mT)
        ).log_prob(paths.x[j + 1])
    return total


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("process", "rule"), CASES)
def test_log_ratio_is_the_ratio_of_the_densities(process, rule, direction):
    p, q, behaviour = net(0), net(1), net(2)
    paths = measure(behaviour, process, direction, rule=rule).sample(50, seed=1)
    for a, b in [(p, q), (None, q), (p, None), (behaviour, None)]:
        with torch.no_grad():
            exact = log_density_of_path(paths, a) - log_density_of_path(paths, b)
            torch.testing.assert_close(log_ratio(paths, a, b), exact, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        widths = torch.tensor(paths.chain.root_durations, dtype=torch.float64)[:, None, None]
        girsanov = widths * paths.v * paths.noise + 0.5 * widths**2 * paths.v.square()
        torch.testing.assert_close(log_ratio(paths, behaviour, None), girsanov.sum((0, 2)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("process", "rule"), CASES)
def test_inverse_likelihood_ratio_has_mean_one(process, rule, direction):
    p, q = net(4), net(5)
    paths = measure(p, process, direction, rule=rule).sample(20_000, seed=6)
    with torch.no_grad():
        ratio = log_ratio(paths, p, q)
    assert ratio.std() > 0.2
    assert within(torch.exp(-ratio), 1.0)
    # Reweighted to q, the end has q's mean.
    weights = importance_weights(-ratio)
    end = measure(q, process, direction, rule=rule).sample(20_000, seed=7).x[-1]
    reweighted = torch.exp(-ratio)[:, None] * (paths.x[-1] - end.mean(0))
    assert within(reweighted[:, 0] - (end - end.mean(0))[:, 0], 0.0)
    assert 1.0 < weights.effective_sample_size < 20_000


def test_log_ratio_can_be_differentiated():
    control = net(0)
    paths = measure(None).sample(5, seed=0)
    log_ratio(paths, control, None).var().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in control.network.last.parameters())


def test_float32_ratios_stay_float32_and_accurate():
    wide, narrow = net(0), net(0).float()
    paths = measure(wide, grid=TimeGrid.uniform(200)).sample(100, seed=0)
    narrow_paths = dataclasses.replace(
        measure(narrow, grid=TimeGrid.uniform(200)).simulate(paths.x[0].float(), seed=1),
        x=paths.x.float(), noise=paths.noise.float(), v=paths.v.float(),
    )  # fmt: skip
    with torch.no_grad():
        a, b = log_ratio(paths, wide, None), log_ratio(narrow_paths, narrow, None)
    assert b.dtype == torch.float32
    assert float((a - b).abs().max()) < 1e-4


# Path KL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_path_kl_of_constant_controls_is_exact(direction):
    a, b = torch.tensor([0.3, -0.4], dtype=torch.float64), torch.tensor([1.0, 0.2], dtype=torch.float64)
    p = measure(lambda t, x: a.expand_as(x), direction=direction)
    q = measure(lambda t, x: b.expand_as(x), direction=direction)
    kl = path_kl(p, q, 5000, seed=0)
    exact = 0.5 * 1.7 * float((a - b).square().sum())
    assert abs(kl.value - exact) < 1e-12
    assert kl.standard_error < 1e-12
    assert path_kl(p, measure(direction=direction), 3, seed=0).value == pytest.approx(0.5 * 1.7 * 0.25)
    assert path_kl(measure(direction=direction), p, 3, seed=0).value == pytest.approx(0.5 * 1.7 * 0.25)
    # Log-normal weights: n / ESS estimates exp(variance of the log) = e^{2 KL}.
    assert kl.effective_sample_size == pytest.approx(5000 * math.exp(-2 * exact), rel=0.15)


def test_path_kl_of_affine_controls():
    """Brownian motion with u = −κx from N(μ, s²): the chain's second moments obey a recursion."""
    kappa, sigma, mean, variance = 1.2, 0.7, 0.5, 0.8
    process = BrownianMotion(sigma, 1.7)
    start = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64))
    p, q = measure(lambda t, x: -kappa * x, process, start=start), measure(None, process, start=start)
    exact, second = 0.0, mean**2 + variance
    for span in GRID.times(1.7).diff().tolist():
        exact += 0.5 * span * kappa**2 * second
        second = (1 - span * sigma * kappa) ** 2 * second + sigma**2 * span
    kl = path_kl(p, q, 20_000, seed=1)
    assert abs(kl.value - exact) < 3 * kl.standard_error
    assert kl.standard_error < 0.02 * exact
    paths = p.sample(20_000, seed=1)
    assert energy(paths).value == pytest.approx(kl.value, rel=1e-12)
    assert energy(paths).standard_error == pytest.approx(kl.standard_error, rel=1e-12)
    assert within(log_ratio(paths, p.control, None), exact)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_path_kl_is_the_mean_log_ratio(direction):
    p, q = measure(net(0), direction=direction), measure(net(1), direction=direction)
    paths, kl = p.sample(4000, seed=3), path_kl(p, q, 4000, seed=3)
    with torch.no_grad():
        ratio = log_ratio(paths, p.control, q.control)
    assert within(ratio, kl.value)
    assert kl.standard_error < 0.8 * Estimate.of(ratio).standard_error  # what leaving out the martingale is for
    assert kl.effective_sample_size == pytest.approx(effective_sample_size(-ratio), rel=1e-9)
    for chunk in (1, ROW_BLOCK):
        assert path_kl(p, q, 4000, seed=3, chunk=chunk).value == pytest.approx(kl.value, rel=1e-9)


def test_path_kl_adds_that_of_the_starts():
    other = Gaussian(torch.tensor([0.0, 0.3], dtype=torch.float64), 2 * torch.eye(2, dtype=torch.float64))
    difference = other.mean - NORMAL.mean
    exact = 0.5 * float(MATRIX.trace() / 2 + difference.square().sum() / 2 - 2 + math.log(4) - MATRIX.logdet())
    kl = path_kl(measure(), measure(start=other), 20_000, seed=0)
    assert abs(kl.value - exact) < 3 * kl.standard_error
    ones = torch.full((2,), 0.5, dtype=torch.float64)
    mixture = GaussianMixture(ones, torch.stack([other.mean] * 2), torch.stack([other.covariance] * 2))
    assert path_kl(measure(), measure(start=mixture), 20_000, seed=0).value == pytest.approx(kl.value)
    for law in (Samples(torch.randn(4, 2, dtype=torch.float64)), Density(lambda x: -x.square().sum(1), 2)):
        with pytest.raises(InvalidInputError, match="no normalised density"):
            path_kl(measure(), measure(start=law), 10, seed=0)
    copied = Samples(torch.ones(3, 2, dtype=torch.float64)), Samples(torch.ones(3, 2, dtype=torch.float64))
    assert path_kl(measure(start=copied[0]), measure(start=copied[1]), 4, seed=0).value == 0.0


# Forward against backward ---------------------------------------------------------------------------------------


def reversal(process, law):
    """The backward control ``σᵀ∇log p_t`` of a linear process from a Gaussian, and the law at its end."""

    def at(t):
        step = process.transition(0.0, t)
        phi, covariance = step.map.expanded(2), step.covariance.expanded(2)
        return step.mean(law.mean[None])[0], phi @ law.covariance @ phi.mT + covariance

    def control(t, x):
        mean, covariance = at(t)
        return -torch.linalg.solve(covariance, (x - mean).mT).mT @ process.scale(t).expanded(2)

    return control, Gaussian(*at(process.horizon))


VP = VariancePreserving(LinearSchedule(0.1, 1.5), horizon=1.0)


@pytest.mark.parametrize("process", [OU, VP])
@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()])
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_inverse_direction_ratio_has_mean_one(process, rule, direction):
    """E_f exp(−(ℓ + log p_0 − log p_T)) = 1 at any step size, and the same from the other side."""
    score, end = reversal(process, NORMAL)
    grid = TimeGrid.uniform(6)
    forward = measure(lambda t, x: 0.3 * torch.cos(x), process, rule=rule, grid=grid)
    backward = measure(lambda t, x: score(t, x) - 0.2 * torch.sin(x), process, BACKWARD, end, rule=rule, grid=grid)
    sign = direction.value
    paths = (forward if direction is FORWARD else backward).sample(20_000, seed=2)
    first, last = (paths.x[0], paths.x[-1]) if direction is FORWARD else (paths.x[-1], paths.x[0])
    ratio = kernel_log_ratio(paths, forward, backward) + NORMAL.log_density(first) - end.log_density(last)
    assert ratio.std() > 0.1
    assert within(torch.exp(-sign * ratio), 1.0)
    # And it is the ratio of the kernels' own densities.
    k, other = paths.chain.length, (backward if direction is FORWARD else forward)
    mirrored = dataclasses.replace(paths, x=paths.x.flip(0), chain=other.chain(paths.x))
    here = log_density_of_path(paths, (forward if direction is FORWARD else backward).control)
    exact = sign * (here - log_density_of_path(mirrored, other.control))
    assert k == 6
    torch.testing.assert_close(kernel_log_ratio(paths, forward, backward), exact, rtol=1e-9, atol=1e-9)
    # Another control may have made the paths.
    paths = dataclasses.replace(
        paths, noise=paths.noise + paths.chain.root_durations[0] * (paths.v - 1.0), v=paths.v * 0 + 1.0
    )
    torch.testing.assert_close(kernel_log_ratio(paths, forward, backward), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()])
def test_divergences_of_an_exact_reversal_vanish_with_the_step(rule):
    """KL both ways and Jeffreys are of first order; the two KLs, whose log ratio itself vanishes, show it sharply."""
    score, end = reversal(OU, NORMAL)
    divergences, n = {}, 20_000
    for steps in (8, 16, 32, 64):
        grid = TimeGrid.uniform(steps)
        forward = measure(None, rule=rule, grid=grid)
        backward = measure(score, OU, BACKWARD, end, rule=rule, grid=grid)
        kls = []
        for p in (forward, backward):
            paths = p.sample(n, seed=steps)
            first, last = (paths.x[0], paths.x[-1]) if p is forward else (paths.x[-1], paths.x[0])
            ratio = kernel_log_ratio(paths, forward, backward)
            kls.append(Estimate.of(p.direction.value * (ratio + NORMAL.log_density(first) - end.log_density(last))))
        divergences[steps] = [*kls, jeffreys(forward, backward, n, seed=5)]
    for which in range(3):
        coarse, fine = (divergences[steps][which] for steps in ((16, 64) if which < 2 else (8, 32)))
        slope = math.log2(coarse.value / fine.value) / 2
        relative = math.hypot(coarse.standard_error / coarse.value, fine.standard_error / fine.value)
        error = relative / math.log(2) / 2
        assert abs(slope - 1) < 3 * error + 0.1, f"order {slope:.3f} ± {error:.3f}"
        assert error < (0.1 if which < 2 else 0.3)


def test_jeffreys_streams_what_kernel_log_ratio_sums():
    score, end = reversal(OU, NORMAL)
    forward, backward = measure(net(0)), measure(score, OU, BACKWARD, end)
    found = jeffreys(forward, backward, 2500, seed=8)
    for chunk in (1, 10 * ROW_BLOCK):
        assert jeffreys(forward, backward, 2500, seed=8, chunk=chunk).value == pytest.approx(found.value, rel=1e-9)
    fresh = [kernel_log_ratio(p.sample(2500, seed=s), forward, backward) for s, p in enumerate((forward, backward))]
    direct = [Estimate.of(values.detach()) for values in fresh]
    error = math.hypot(*(e.standard_error for e in direct))
    assert found.standard_error == pytest.approx(error, rel=0.1)
    assert abs(found.value - direct[0].value + direct[1].value) < 4 * error
    assert found.value > 10 * found.standard_error


def test_jeffreys_of_a_displaced_reversal():
    """N(0, I) under Brownian motion, against its reversal with a constant ``c`` added to the control.

    By Girsanov each KL is ½|c|². The reversal ends displaced by ``m``, where ``dm/ds = −m/(2 − s) + c``, so
    ``m = c log 2``, and the start terms, which `jeffreys` leaves out, are ½|m|².
    """
    process, shift = BrownianMotion(1.0), torch.tensor([0.8, -0.6], dtype=torch.float64)
    start = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    score, end = reversal(process, start)
    grid = TimeGrid.uniform(64)
    forward = measure(None, process, start=start, grid=grid)
    backward = measure(lambda t, x: score(t, x) + shift, process, BACKWARD, end, grid=grid)
    found = jeffreys(forward, backward, 20_000, seed=1)
    exact = 1.0 - 0.5 * math.log(2) ** 2
    assert found.standard_error < 0.02
    assert abs(found.value - exact) < 3 * found.standard_error + 0.01  # first order in the step: 0.6/64


# Estimates and weights ------------------------------------------------------------------------------------------


def test_estimates():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    estimate = Estimate.of(values)
    assert estimate.value == 3.0
    assert estimate.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert str(Estimate(1.23456, 0.0123, 400)) == "1.235 ± 0.012 (s.e., n = 400)"
    assert str(Estimate(123.4, 25.0, 400, 37.2)) == "123 ± 25 (s.e., n = 400, effective 37)"
    assert str(Estimate(0.5, 0.0, 9)) == "0.5 ± 0 (s.e., n = 9)"
    for bad in (torch.ones(1), torch.ones(3, 2)):
        with pytest.raises(InvalidInputError, match="at least two"):
            Estimate.of(bad)


def test_importance_weights(dtype):
    logs = torch.tensor([0.0, math.log(3.0), -math.inf], dtype=dtype)
    for shift in (0.0, 5000.0, -5000.0):
        weights = importance_weights(logs + shift)
        torch.testing.assert_close(weights.values, torch.tensor([0.25, 0.75, 0.0], dtype=dtype), atol=1e-3, rtol=0)
        assert weights.values.dtype == dtype
        assert weights.effective_sample_size == pytest.approx(1.6, rel=1e-3)
        assert weights.log_mean == pytest.approx(math.log(4 / 3) + shift, abs=1e-3)
    assert effective_sample_size(torch.zeros(12)) == pytest.approx(12.0)
    for bad in (torch.tensor([0.0, math.nan]), torch.tensor([0.0, math.inf])):
        with pytest.raises(NonFiniteError, match="NaN"):
            importance_weights(bad)
    with pytest.raises(InvalidInputError, match="every weight is zero"):
        importance_weights(torch.full((3,), -math.inf))
    with pytest.raises(InvalidInputError, match="shape"):
        importance_weights(torch.zeros(3, 1))


def test_the_standard_error_of_a_log_normaliser_is_that_of_the_delta_method():
    weights = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    found = importance_weights(weights.log()).log_normaliser
    assert found.value == pytest.approx(math.log(3.0))
    spread = float(weights.var(correction=0)) ** 0.5
    assert found.standard_error == pytest.approx(spread / 3.0 / 4.0**0.5)


# What is refused, and what is left alone ------------------------------------------------------------------------


def test_measures_that_do_not_fit_together():
    with pytest.raises(InvalidInputError, match="dimension 2, its start distribution has 3"):
        measure(start=Samples(torch.zeros(2, 3)))
    p = measure()
    differing = {
        "process": measure(process=OrnsteinUhlenbeck(1.0, 1.0, horizon=1.7)),
        "grid": measure(grid=TimeGrid.uniform(3)),
        "step rule": measure(rule=EulerMaruyama()),
    }
    for name, q in differing.items():
        with pytest.raises(InvalidInputError, match=f"differ in {name}"):
            path_kl(p, q, 10, seed=0)
        with pytest.raises(InvalidInputError, match=f"differ in {name}"):
            jeffreys(p, dataclasses.replace(q, direction=BACKWARD), 10, seed=0)
    assert path_kl(p, measure(rule=ExactTransition()), 10, seed=0).value == 0.0
    with pytest.raises(InvalidInputError, match="use jeffreys"):
        path_kl(p, measure(direction=BACKWARD), 10, seed=0)
    with pytest.raises(InvalidInputError, match="got BACKWARD and FORWARD"):
        jeffreys(measure(direction=BACKWARD), p, 10, seed=0)
    with pytest.raises(InvalidInputError, match="another grid"):
        kernel_log_ratio(differing["grid"].sample(4, seed=0), p, measure(direction=BACKWARD))


@pytest.mark.parametrize("time", [-0.1, 1.8, math.nan])
def test_times_outside_the_horizon(time):
    p = measure()
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match=r"\[0, 1.7\]"):
        p.interpolate(x, time, seed=0)
    with pytest.raises(InvalidInputError, match=r"\[0, 1.7\]"):
        p.marginals([0.0, time], 3, seed=0)


def test_other_bad_arguments():
    p, x = measure(), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="3 columns"):
        p.transport(torch.zeros(2, 3), seed=0)
    with pytest.raises(InvalidInputError, match="NaN"):
        p.simulate(x + math.nan, seed=0)
    with pytest.raises(InvalidInputError, match="seed"):
        p.sample(3, seed=-1)
    for call in (lambda: p.sample(0, seed=0), lambda: p.marginals([0.0], 0, seed=0)):
        with pytest.raises(InvalidInputError, match="n must be"):
            call()
    with pytest.raises(InvalidInputError, match="draws must be"):
        p.conditional_mean(x, seed=0, draws=0)
    with pytest.raises(InvalidInputError, match="chunk must be"):
        p.transport(x, seed=0, chunk=0)
    with pytest.raises(InvalidInputError, match="at least two"):
        path_kl(p, p, 1, seed=0)
    with pytest.raises(NonFiniteError, match=r"step 2 \(t = 0.51\)"):
        measure(lambda t, x: x * (math.inf if t > 0.4 else 0.0)).transport(x + 1, seed=0)


def test_one_row_and_arrays_will_do():
    p = measure()
    assert p.transport(torch.zeros(1, 2, dtype=torch.float64), seed=0).shape == (1, 2)
    assert p.simulate(torch.zeros(1, 2), seed=0).x.shape == (6, 1, 2)
    assert p.marginals([0.3], 1, seed=0).shape == (1, 1, 2)


def test_a_generator_serves_as_a_seed_and_the_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    p, q = measure(net(0)), measure(None)
    x = torch.zeros(2, 2, dtype=torch.float64)
    source = torch.Generator().manual_seed(3)
    first, second = p.sample(4, seed=source).x, p.sample(4, seed=source).x
    assert not torch.equal(first, second)
    assert torch.equal(p.sample(4, seed=torch.Generator().manual_seed(3)).x, first)
    p.marginals([0.2, 1.0], 5, seed=0)
    p.conditional_mean(x, seed=0, draws=2)
    p.interpolate(x, 0.2, seed=0)
    path_kl(p, q, 4, seed=0)
    jeffreys(p, measure(direction=BACKWARD), 4, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()  # noqa: NPY002


def test_start_and_noise_of_a_sample_have_seeds_of_their_own():
    """Anyone who knows the seed can draw either again."""
    paths = measure().sample(6, seed=12)
    assert torch.equal(paths.x[0], NORMAL.sample(6, generator(derive(12, "start"))))
    assert torch.equal(paths.noise, NormalNoise(derive(12, "noise"), 5, 6, 2, dtype=torch.float64).stored())
