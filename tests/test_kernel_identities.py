"""Identities of kernels, flows and equilibrium: they hold in every setting, and a damaged side is seen."""

import dataclasses

import pytest
import torch
from damages import sde_velocity

import sbridge.identities.equilibrium as equilibrium
import sbridge.identities.flows as flows
import sbridge.identities.kernels as kernels
from sbridge.controls import Probes
from sbridge.diffusion import ExactScore
from sbridge.diffusion.ddpm import DiscreteNoise
from sbridge.diffusion.pinned import pinned_kernel
from sbridge.identities import Setting, identities, standard_settings
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.laws import Samples
from sbridge.linear import LinearMap
from sbridge.processes import LinearProcess, OrnsteinUhlenbeck

OWN = {
    one.name: one
    for one in identities()
    if one.body.__module__ in (kernels.__name__, flows.__name__, equilibrium.__name__)
}
DENSE = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.3], [-0.2, 0.7]]), sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3
)


def setting(process="VP", **options):
    reference = PROCESSES[process] if isinstance(process, str) else process
    return Setting(f"mixture, {process}", reference, mixture(2), **{"samples": 1500, "seed": 3, "steps": 50} | options)


def test_they_are_all_there():
    assert len(OWN) == 15
    assert all(one.group == "reversal" for one in OWN.values())


@pytest.mark.parametrize("name", OWN)
def test_they_hold(name):
    settings = [one for one in standard_settings(seed=11, samples=1000) if OWN[name].applies(one)]
    assert settings
    for one in settings[::3]:  # d = 1, OU; d = 2, VP; matrix coefficients
        one = dataclasses.replace(one, steps=60)
        for check in OWN[name](one):
            assert check.holds, check


@pytest.mark.parametrize("name", OWN)
def test_they_hold_for_matrix_coefficients_and_points(name):
    rows = mixture(2).sample(40, torch.Generator().manual_seed(1))
    for one in (
        setting(DENSE),
        Setting("points", PROCESSES["VP"], Samples(rows), samples=800, steps=50, seed=1),
        Setting("points", DENSE, Samples(rows.float()), samples=400, steps=50),
    ):
        if OWN[name].applies(one):
            for check in OWN[name](one):
                assert check.holds, check


def moved_pin(patch):
    """The kernel is pinned to a state nearby."""
    original = kernels.log_pinned_kernel
    patch.setattr(kernels, "log_pinned_kernel", lambda p, s, t, a, x, y: original(p, s, t, a, x, 1.001 * y))


def naive_drift(patch):
    """+b for −b in the reverse drift."""
    original = LinearProcess.drift
    patch.setattr(LinearProcess, "drift", lambda self, t, x: -original(self, t, x))


def unconditioned_starts(patch):
    """Starts are drawn from the data, not from their posterior."""

    def draw_earlier(exact, s, t, x, *, seed):
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(x.shape, dtype=x.dtype, generator=g)
        return pinned_kernel(exact.process, s, t).sample(exact.data.sample(len(x), g), x, noise)

    patch.setattr(kernels, "draw_earlier", draw_earlier)


def quartered_bound(patch):
    """½ for its root in |Γ^{−½}L(x_0 − x̂_0)|²."""
    original = kernels.pinned_kl
    patch.setattr(kernels, "pinned_kl", lambda p, s, t, a, b: 0.25 * original(p, s, t, a, b))


def scaled_score(factor):
    def scaled(patch):
        original = ExactScore.__call__
        patch.setattr(ExactScore, "__call__", lambda self, t, x: factor * original(self, t, x))

    return scaled


def scaled_weights(factor):
    def scaled(patch):
        original = DiscreteNoise.weights
        patch.setattr(DiscreteNoise, "weights", lambda self, variance: factor * original(self, variance))

    return scaled


def scaled_noise(patch):
    """ε_θ of the ODE is not that of the step."""
    original = flows.noise_from_score
    patch.setattr(flows, "noise_from_score", lambda p, t, s: 1.001 * original(p, t, s))


def short_divergence(patch):
    """Half of ∇·v is lost."""
    original = Probes.__call__

    def call(self, field, t, x):
        values, divergence = original(self, field, t, x)
        return values, 0.5 * divergence

    patch.setattr(Probes, "__call__", call)


def wide_noise(patch):
    """Another σ than that of the transitions."""
    wide = LinearMap(torch.full((1,), 1.5, dtype=torch.float64))
    patch.setattr(OrnsteinUhlenbeck, "scale", lambda self, t: wide)


def steep_density(patch):
    """1.2 log ρ is differentiated."""
    original = ExactScore.log_density
    patch.setattr(ExactScore, "log_density", lambda self, t, x: 1.2 * original(self, t, x))


STEPS = ("noised", "posterior_mean", "ancestral_mean", "ddim", "step_variances", "weights")


def scaled_step(name):
    def scaled(patch):
        original = getattr(DiscreteNoise, name)
        patch.setattr(DiscreteNoise, name, lambda *a: 1.001 * original(*a))

    return scaled


BREAKS = [
    ("pinned_kernel_is_bayes", moved_pin),
    ("pinned_kernel_flows_back", naive_drift),
    ("averaged_kernels_reverse", unconditioned_starts),
    ("kernel_bound", quartered_bound),
    ("ancestral_mean_is_exact", scaled_score(0.8)),
    *(("discrete_steps_are_those_of_the_process", scaled_step(name)) for name in STEPS),
    ("ddpm_objective_is_score_matching", scaled_weights(1.1)),
    ("ddpm_objective_order", scaled_weights(1.1)),
    ("ddim_is_an_euler_step", scaled_noise),
    ("ddim_order", sde_velocity),
    ("flow_likelihood_is_exact", short_divergence),
    ("hutchinson_likelihood_is_unbiased", short_divergence),
    ("equilibrium_force_keeps_the_law", scaled_score(2.0)),
    ("drift_is_the_equilibrium_force", wide_noise),
    ("noise_averages_to_the_score", steep_density),
]


@pytest.mark.parametrize(("name", "damage"), BREAKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BREAKS)])
def test_damage_is_seen(name, damage, monkeypatch):
    one = setting("OU" if damage is wide_noise else "VP", steps=100 if "ddpm" in name else 50)
    assert all(check.holds for check in OWN[name](one))
    damage(monkeypatch)
    assert not all(check.holds for check in OWN[name](one))


def test_every_identity_is_damaged():
    assert {name for name, _ in BREAKS} == set(OWN)
