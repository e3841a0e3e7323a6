"""Identities of samplers, objectives and control learning: they hold, and a damaged function is seen."""

import importlib

import pytest
import torch
from damages import scaled, sde_velocity

import sbridge.identities.control as control
import sbridge.identities.sampling as sampling
import sbridge.objectives.control as losses
from sbridge.diffusion import Action, AncestralSampler, Denoising, DiscreteDenoising, Implicit, TweedieCovariance
from sbridge.identities import Setting, identities, standard_settings
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.laws import Samples
from sbridge.measures import importance_weights

OWN = {one.name: one for one in identities() if one.body.__module__ in (sampling.__name__, control.__name__)}
ACTION = importlib.import_module("sbridge.functionals.action")


def test_they_are_all_there():
    assert len(OWN) == 10
    assert {one.group for one in OWN.values()} == {"reversal", "action"}


@pytest.mark.parametrize("name", OWN)
def test_they_hold(name):
    rows = mixture(2).sample(40, torch.Generator().manual_seed(1))
    points = Setting("points", PROCESSES["VP"], Samples(rows), samples=800, seed=1)
    for one in (standard_settings(seed=11, samples=1000)[-1], points):  # matrix coefficients, and points
        for check in OWN[name](one):
            assert check.holds, check


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_they_hold_in_all_settings(name):
    for one in standard_settings(seed=3):
        for check in OWN[name](one):
            assert check.holds, check


def doubled_drift(patch):
    """σσᵀs for ½σσᵀs."""
    original = sampling.langevin

    def langevin(process, score, t, x, **options):
        return original(process, lambda t, x: 2.0 * score(t, x), t, x, **options)

    patch.setattr(sampling, "langevin", langevin)


def forward_variance(patch):
    """β for β̃."""
    patch.setattr(AncestralSampler, "_root", lambda self, process, s, t: process.transition(s, t).root)


def equal_weights(patch):
    """Paths of any control count equally."""
    patch.setattr(losses, "importance_weights", lambda logs: importance_weights(torch.zeros_like(logs)))


def half_energy(patch):
    """¼|u|² for ½|u|² in the action."""
    original = ACTION.control_value
    patch.setattr(ACTION, "control_value", lambda u, t, x: 0.7 * original(u, t, x))


def no_curvature(patch):
    """½ tr(σσᵀ∇²J) is lost."""
    original = ACTION.divergence

    def divergence(*a, **k):
        values, trace = original(*a, **k)
        return values, 0.0 * trace

    patch.setattr(ACTION, "divergence", divergence)


BREAKS = [
    ("samplers_return_the_noised_data", sde_velocity),
    ("ancestral_step_of_one_point_is_exact", forward_variance),
    ("langevin_step_keeps_the_law", doubled_drift),
    ("guided_score_of_a_gaussian_is_exact", scaled(TweedieCovariance, "__call__", 1.01)),
    ("training_objectives_are_score_matching", scaled(Denoising, "__call__", 1.2)),
    ("training_objectives_are_score_matching", scaled(Implicit, "__call__", 1.4)),
    ("training_objectives_are_score_matching", scaled(Action, "__call__", 1.2)),
    ("training_objectives_are_score_matching", scaled(DiscreteDenoising, "__call__", 2.0)),
    ("action_along_paths_has_its_closed_form", half_energy),
    ("action_along_paths_has_its_closed_form", no_curvature),
    ("path_weights_have_the_mean_of_the_potential", scaled(control, "log_weight", 0.9)),
    ("control_losses_have_one_gradient", scaled(control, "log_variance", 1.2)),
    ("control_losses_have_one_gradient", scaled(control, "moment", 1.2)),
    ("control_losses_have_one_gradient", scaled(control, "relative_entropy", 1.2)),
    ("cross_entropy_is_free_of_the_sampling", equal_weights),
    ("adjoint_states_average_to_the_score", scaled(control, "lean_adjoint", 1.1)),
    ("adjoint_states_average_to_the_score", scaled(control, "mixed_targets", 1.05)),
]


@pytest.mark.parametrize(("name", "damage"), BREAKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BREAKS)])
def test_damage_is_seen(name, damage, monkeypatch):
    one = Setting("d=2, VP", PROCESSES["VP"], mixture(2), seed=3, samples=2000)
    damage(monkeypatch)
    assert not all(check.holds for check in OWN[name](one))


def test_every_identity_is_damaged():
    assert {name for name, _ in BREAKS} == set(OWN)
