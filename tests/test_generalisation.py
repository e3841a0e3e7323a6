"""Identities on memorisation: they hold, and each turns red when one of its sides is broken."""

from dataclasses import replace

import pytest
import torch

from sbridge.diffusion import ExactScore
from sbridge.identities import Setting, generalisation, identities
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.laws import Gaussian, Samples
from sbridge.processes import OrnsteinUhlenbeck, VariancePreserving
from sbridge.processes.base import LinearProcess

MINE = {one.name: one for one in identities() if one.group == "generalisation"}
NAMES = {
    "dirac_start",
    "empirical_start",
    "empirical_law_returns",
    "support_containment",
    "last_step",
    "trained_network",
}


def setting(dim=2, process="VP", **options):
    return Setting(f"d={dim}, {process}", PROCESSES[process], mixture(dim), **{"samples": 600, "steps": 60, **options})


def verdicts(name, *args, **options):
    return [check.holds for check in MINE[name](setting(*args, **options))]


@pytest.fixture
def reversal_with(monkeypatch):
    """Breaks the simulated side: the reversal is driven by another score."""
    honest = generalisation.reverse_diffusion

    def put(change):
        monkeypatch.setattr(
            generalisation,
            "reverse_diffusion",
            lambda process, law, score, **more: honest(process, law, change(process, law, score), **more),
        )

    return put


def test_all_are_there_and_say_what_they_do():
    assert set(MINE) == NAMES
    assert all(one.statement and one.equation and one.left and one.right for one in MINE.values())


@pytest.mark.parametrize(("dim", "process"), [(1, "OU"), (2, "VP"), (2, "VE"), (8, "VP")])
@pytest.mark.parametrize("name", sorted(NAMES - {"trained_network"}))
def test_they_hold(name, dim, process):
    assert all(verdicts(name, dim, process))


def test_they_hold_for_the_rows_of_a_user():
    rows = mixture(2).sample(300, torch.Generator().manual_seed(3)).float()
    user = Setting("rows", VariancePreserving(), Samples(rows), samples=400, steps=60)
    for name in sorted(NAMES - {"trained_network", "dirac_start"}):
        assert all(check.holds for check in MINE[name](user)), name
    assert not MINE["trained_network"].applies(setting(1))
    learned = replace(user, network=ExactScore(user.process, mixture(2)))
    assert MINE["trained_network"].applies(learned)
    assert all(check.holds for check in MINE["trained_network"](learned))
    memorised = replace(user, network=user.exact, start_time=1e-6)
    assert not all(check.holds for check in MINE["trained_network"](memorised))


def test_a_trained_network_is_found_to_make_new_points(monkeypatch):
    (check,) = MINE["trained_network"](setting())
    assert check.holds
    assert check.outcome.left < 0.05
    monkeypatch.setattr(generalisation, "_generated", lambda setting, memory: memory.points.repeat(5, 1))
    assert verdicts("trained_network") == [False]


def test_the_pinned_bridge_turns_red_with_another_score(reversal_with):
    reversal_with(lambda process, law, score: lambda t, x: 0.7 * score(t, x))
    assert not all(verdicts("dirac_start", samples=2000))


def test_the_pinned_bridge_turns_red_with_another_bridge(monkeypatch):
    honest = LinearProcess.pinned
    monkeypatch.setattr(VariancePreserving, "pinned", lambda self, t: honest(self, 1.15 * t), raising=False)
    assert not all(verdicts("dirac_start", samples=2000))


@pytest.mark.parametrize("name", ["empirical_start", "support_containment"])
def test_ends_leave_the_points_under_the_score_of_a_smooth_law(reversal_with, name):
    def smooth(process, law, score):
        return ExactScore(process, Gaussian(law.rows.mean(0), law.rows.T.cov()))

    reversal_with(smooth)
    assert verdicts(name) == [False]


def test_points_that_weigh_too_much_are_noticed(reversal_with):
    def tilted(process, law, score):
        weights = torch.where(law.rows[:, 0] < law.rows[:, 0].median(), 1.3, 0.7).double()
        return ExactScore(process, Samples(law.rows, weights / weights.sum()))

    assert verdicts("empirical_law_returns", process="OU") == [True]
    reversal_with(tilted)
    assert verdicts("empirical_law_returns", process="OU") == [False]


def test_a_wrong_last_step_is_noticed(monkeypatch):
    honest = generalisation.start_from_score
    monkeypatch.setattr(generalisation, "start_from_score", lambda p, t, x, s: honest(p, t, x, 0.5 * s))
    assert verdicts("last_step") == [False, False]


def test_the_time_of_a_noise_level():
    process = OrnsteinUhlenbeck(rate=1.0, sigma=0.5)
    t = generalisation._time_of_noise(process, 1e-3)
    step = process.transition(0.0, t)
    assert abs(float(step.covariance.values) ** 0.5 / float(step.map.values) / 1e-3 - 1.0) < 1e-6
