"""The identities of the action hold where they should, and turn red when either side is broken."""

import dataclasses
import math

import pytest
import torch

from sbridge.controls import MLP
from sbridge.diffusion.conversions import ScoreControl
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.diffusion.times import NoiseTimes
from sbridge.functionals import explicit_score_matching
from sbridge.identities import action, gradients, killing, likelihood
from sbridge.identities.base import Identity, Kind, identities
from sbridge.identities.settings import PROCESSES, Setting, mixture
from sbridge.identities.tools import monte_carlo
from sbridge.laws import Samples
from sbridge.measures import log_ratio
from sbridge.objectives import score_matching as losses
from sbridge.processes import OrnsteinUhlenbeck
from sbridge.random import generator

MODULES = (action, likelihood, killing, gradients)
NAMES = [one.name for one in identities() if one.body.__module__ in {module.__name__ for module in MODULES}]


def named(name) -> Identity:
    return next(one for one in identities() if one.name == name)


def setting(dim=1, kind="OU", points=0, samples=1500, **options):
    data = mixture(dim)
    if points:
        data = Samples(data.sample(points, generator(3)).float())
    return Setting(f"test d={dim} {kind}", PROCESSES[kind], data, samples=samples, **options)


def holds(name, where=None):
    return all(check.holds for check in named(name)(where or setting()))


def precise_enough(check):
    o = check.outcome
    return check.identity.kind is not Kind.EQUALITY or o.standard_error <= 1.2 * max(0.01 * abs(o.left), 0.01)


@pytest.fixture
def coarse(monkeypatch):
    """Five percent instead of one: enough to see a side that is broken."""
    monkeypatch.setattr(monte_carlo, "RELATIVE", 0.05)
    monkeypatch.setattr(monte_carlo, "ABSOLUTE", 0.05)


# Their errors are as large as ``samples`` make them, or as the cap on added draws.
COARSE = (
    "likelihood_ratio",
    "killed_ratio",
    "feynman",
    "partitions",
    "elbo_of",
    "losses_agree",
    "kernel_ratio",
    "path_kl_of",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_holds(name):
    checks = named(name)(setting())
    assert checks
    for check in checks:
        assert check.holds, check
        assert precise_enough(check) or name.startswith(COARSE), check


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kernel_ratio_has_mean_one"])  # needs a density
def test_it_holds_for_points(name, coarse):
    where = setting(2, "VP", points=60)
    assert holds(name, where), named(name)(where)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("dim", [2, 8, 50])
@pytest.mark.parametrize("points", [0, 300])
def test_it_holds_in_more_dimensions(kind, dim, points):
    where = setting(dim, kind, points, samples=4000)
    for name in NAMES:
        assert holds(name, where), (name, named(name)(where))


def test_dense_noise(coarse):
    data = mixture(2)
    rate = torch.tensor([[1.0, 0.3], [-0.2, 0.7]])
    process = OrnsteinUhlenbeck(rate, torch.tensor([[1.0, 0.4], [0.0, 0.6]]), horizon=1.5)
    where = Setting("dense", process, data, samples=300)
    for name in ("action_gap_is_explicit_score_matching", "path_kl_is_explicit_score_matching", "entropy_balance"):
        assert holds(name, where), named(name)(where)


def test_a_network_is_judged_too(coarse):
    network = NetworkScore(MLP(16, 1), PROCESSES["VP"], 2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator(1)))
    network.requires_grad_(requires_grad=False)
    where = setting(2, "VP", network=network, samples=1000)
    for name in (
        "action_gap_is_explicit_score_matching",
        "path_kl_is_explicit_score_matching",
        "denoising_is_explicit_score_matching",
        "likelihood_ratio_has_mean_one",
        "gradients_agree",
    ):
        checks = named(name)(where)
        assert len(checks) == (4 if name == "gradients_agree" else 2)
        assert all(check.holds for check in checks), checks
    assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())


def test_halving_the_step_brings_girsanov_closer():
    where = setting(1, "VP")
    ((_, score),) = monte_carlo.scores_to_check(where)
    best, control = (ScoreControl(where.process, one) for one in (where.exact, score))
    paths = monte_carlo.noising(where, 32).sample(3000, seed=1)
    right = monte_carlo.explicit(where, score).value
    ratios = [log_ratio(monte_carlo.reversed_paths(paths, every), best, control) for every in (4, 2, 1)]
    errors = [abs(float(ratio.mean()) - right) for ratio in ratios]
    assert errors[2] < errors[1] < errors[0]


def no_martingale(paths, p, q):
    return log_ratio(dataclasses.replace(paths, noise=torch.zeros_like(paths.noise)), p, q)


def half_martingale(paths, p, q):
    return log_ratio(dataclasses.replace(paths, noise=0.5 * paths.noise), p, q)


def far_end(paths, p, q):
    """The controls where a step ends, not where it starts: another stochastic integral."""
    moved = torch.cat([paths.x[1:], paths.x[-1:]])
    return log_ratio(dataclasses.replace(paths, x=moved), p, q)


@pytest.mark.parametrize("broken", [no_martingale, half_martingale, far_end])
@pytest.mark.parametrize("name", ["path_kl_is_explicit_score_matching", "likelihood_ratio_has_mean_one"])
def test_girsanov_without_its_terms_is_seen(coarse, monkeypatch, broken, name):
    monkeypatch.setattr(action, "log_ratio", broken)
    assert not holds(name)


def scaled(function, factor):
    return lambda *arguments, **named: factor * function(*arguments, **named)


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize(
    ("module", "target", "name"),
    [
        (action, "action_difference", "action_gap_is_explicit_score_matching"),
        (losses, "explicit", "action_gap_is_explicit_score_matching"),
        (losses, "explicit", "path_kl_is_explicit_score_matching"),
        (losses, "explicit", "denoising_is_explicit_score_matching"),
        (losses, "explicit", "implicit_is_explicit_score_matching"),
        (losses, "explicit", "gradients_agree"),
        (losses, "denoising", "denoising_constant_is_the_loss_of_the_true_score"),
        (action, "target_mean", "denoising_constant_is_the_loss_of_the_true_score"),
        (losses, "implicit_constant", "implicit_constant_is_the_loss_of_the_true_score"),
        (losses, "implicit_constant", "entropy_balance"),
        (likelihood, "_drift_divergence", "entropy_balance"),
        (likelihood, "_drift_divergence", "elbo_of_the_true_score_is_the_log_likelihood"),
        (likelihood, "_bulk", "elbo_of_the_true_score_is_the_log_likelihood"),
        (likelihood, "_partition", "partitions_tend_to_the_pathwise_kl"),
        (killing, "killed_log_ratio", "killing_adds_to_the_path_kl"),
    ],
)
def test_a_wrong_factor_is_seen(coarse, monkeypatch, module, target, name, factor):
    original = getattr(module, target)
    if target == "_bulk":

        def broken(*arguments, **named):
            found = original(*arguments, **named)
            return dataclasses.replace(found, value=factor * found.value)

        monkeypatch.setattr(module, target, broken)
    elif target in ("action_difference", "killed_log_ratio"):
        monkeypatch.setattr(module, target, lambda *arguments, **named: original(*arguments, **named) * factor)
    else:
        monkeypatch.setattr(module, target, scaled(original, factor))
    assert not holds(name)


def test_a_wrong_constant_is_seen(monkeypatch):
    constant = losses.denoising_constant

    def without_true_score(process, t, noise, true_score):
        return constant(process, t, noise, torch.zeros_like(true_score))

    for broken in (without_true_score, scaled(constant, 0.5), scaled(constant, 2.0), scaled(constant, -1.0)):
        monkeypatch.setattr(losses, "denoising_constant", broken)
        assert not holds("denoising_is_explicit_score_matching")


def test_targets_of_the_wrong_sign_are_seen(coarse, monkeypatch):
    target = losses.denoising_target
    monkeypatch.setattr(losses, "denoising_target", scaled(target, -1.0))
    assert not holds("denoising_is_explicit_score_matching")
    assert not holds("gradients_agree")


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_wrong_divergence_is_seen(coarse, monkeypatch, factor):
    divergence = losses.divergence

    def broken(*arguments):
        values, trace = divergence(*arguments)
        return values, factor * trace

    monkeypatch.setattr(losses, "divergence", broken)
    for name in (
        "implicit_is_explicit_score_matching",
        "implicit_constant_is_the_loss_of_the_true_score",
        "gradients_agree",
    ):
        assert not holds(name)


def test_state_costs_of_the_wrong_sign_or_size_are_seen(coarse, monkeypatch):
    rate, kill = killing.Well.rate, killing.kill
    # Death needs V ≥ 0: it goes on as it should while the weights are broken.
    monkeypatch.setattr(
        killing,
        "kill",
        lambda paths, _, **named: kill(paths, lambda t, x: rate(killing.Well.of(setting()), t, x), **named),
    )
    for factor in (-1.0, 0.0, 0.5, 2.0):
        monkeypatch.setattr(killing.Well, "rate", scaled(rate, factor))
        assert not holds("feynman_kac_is_the_closed_form"), factor
        assert not holds("killed_ratio_has_the_mean_of_the_surviving_mass"), factor
        assert not holds("killing_adds_to_the_path_kl"), factor
    monkeypatch.setattr(killing.Well, "rate", scaled(rate, 0.0))
    assert not holds("free_energy_bounds_the_killed_path_kl")


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_deaths_at_the_wrong_rate_are_seen(coarse, monkeypatch, factor):
    kill = killing.kill
    monkeypatch.setattr(
        killing, "kill", lambda paths, rate, **named: kill(paths, lambda t, x: factor * rate(t, x), **named)
    )
    assert [check.holds for check in named("feynman_kac_is_the_closed_form")(setting())] == [True, False]


def test_bounds_can_be_broken(coarse, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "_drift_divergence", lambda where, t: torch.zeros_like(t))
        assert not holds("elbo_is_below_the_log_likelihood")
    with monkeypatch.context() as patch:
        patch.setattr(losses, "explicit", scaled(losses.explicit, 0.5))
        assert not holds("path_kl_bounds_the_likelihood")
    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "_partition", lambda where, p, q, n, kl=likelihood._partition: -kl(where, p, q, n))
        assert not holds("static_kl_is_below_pathwise_kl")


def test_the_gaussian_model_is_what_its_chain_generates():
    where = setting(2, "OU")
    model = likelihood.GaussianModel(where)

    grid = monte_carlo.matched_grid(where, 400)
    bridge = reverse_diffusion(where.process, where.data, model, prior=model.prior, grid=grid)
    rows = bridge.backward.marginals([where.s_min], 20_000, seed=1)[0]
    assert torch.allclose(rows.mean(0), model.generated.mean, atol=0.03)
    assert torch.allclose(rows.T.cov(), model.generated.covariance, atol=0.04)


def test_random_times_and_path_integrals_agree():
    where = setting(2, "VE")
    ((_, score),) = monte_carlo.scores_to_check(where)
    exact = monte_carlo.explicit(where, score)
    paths = monte_carlo.noising(where, 80).sample(4000, seed=2)

    other = explicit_score_matching(paths, score, where.exact, s_min=where.s_min)
    error = math.hypot(exact.standard_error, other.estimate.standard_error)
    assert abs(exact.value - other.estimate.value) < 4 * error + other.allowance


def test_control_variates_leave_means_alone():
    where = setting(2, "VP")
    one = monte_carlo.noised(where, 200_000, 0.0, "controls")
    values = monte_carlo.chi_square_controls(where)(one)
    assert values.shape == (200_000, 8)
    assert bool((values.mean(0).abs() < 4.5 * values.std(0) / math.sqrt(200_000)).all())


def test_remembered_answers_from_memory_only_for_equal_states():
    calls = []

    def score(t, x):
        calls.append(t)
        return 2.0 * x

    kept, x = monte_carlo.Cached(score), torch.randn(4, 2, generator=generator(0))
    assert torch.equal(kept(0.5, x), kept(0.5, x.clone()))
    assert len(calls) == 1
    assert torch.equal(kept(0.5, x + 1.0), 2.0 * (x + 1.0))
    t = torch.full((4,), 0.5)
    kept(t, x)
    kept(t, x)
    assert len(calls) == 3
    kept(t, x.clone())
    assert len(calls) == 4


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("width", [0.0, 0.3, 2.0])
def test_times_for_scores_of_some_width(kind, width):
    """Density ``∝ tr(σσᵀ (width² ΦΦᵀ + Q)⁻¹)``, as it is said to be; quantiles cut it into equal parts."""
    process, times = PROCESSES[kind], NoiseTimes(width)
    s_min, horizon = 0.01 * process.horizon, process.horizon
    t, density = times.draw(process, s_min, 20_000, generator(0))
    assert abs(float((1.0 / density).mean()) / (horizon - s_min) - 1.0) < 2e-3
    law = process.transition(0.0, t)
    rate = process.scale(t).values.square() / (width**2 * law.map.values.square() + law.covariance.values)
    ratio = density / rate[:, 0]
    assert float(ratio.std() / ratio.mean()) < 0.05
    knots = times.quantiles(process, s_min, 10)
    assert float(knots[0]) == s_min
    assert float(knots[-1]) == horizon
    shares = torch.histogram(t, knots).hist / len(t)
    assert torch.allclose(shares, torch.full_like(shares, 0.1), atol=1e-3)
