"""What a verdict is, that every identity holds, and that the verdicts can fail."""

import dataclasses
import json
import math

import pytest
import torch
from scipy.stats import binomtest

from sbridge.diffusion.conversions import ScoreControl
from sbridge.diffusion.reverse import reverse_diffusion
from sbridge.errors import InvalidInputError, NonFiniteError, UnknownNameError, UnsupportedError
from sbridge.identities import (
    Check,
    Identity,
    Kind,
    Outcome,
    Setting,
    confirmed,
    identities,
    identity,
    listing,
    run,
    standard_settings,
    verify,
)
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.identities.tools.components import Components, Waves
from sbridge.laws import Density, Gaussian, Samples
from sbridge.measures import path_kl
from sbridge.processes import VariancePreserving

ALWAYS = math.erfc(3 / math.sqrt(2))


def stub(body=None, kind=Kind.EQUALITY, name="stub"):
    return Identity(
        name, "action", "a = a", "none", kind, "l", "r", lambda setting: True, body or (lambda s: Outcome(0))
    )


def check(kind, left, right, error=0.0, allowance=0.0):
    return Check(stub(kind=kind), "a setting", Outcome(left, right, error, allowance))


def quick(dim=2, process="VP", seed=0, samples=600, steps=60, data=None):
    return Setting(f"quick d={dim} {process}", PROCESSES[process], data or mixture(dim), seed, samples, steps)


def points(count=40, dim=2):
    return Samples(mixture(dim).sample(count, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (Kind.EQUALITY, (1.0, 1.3, 0.1, 0.001), (1.0, 1.302, 0.1, 0.001)),
        (Kind.EQUALITY, (1.3, 1.0, 0.1, 0.001), (1.302, 1.0, 0.1, 0.001)),
        (Kind.INEQUALITY, (1.3, 1.0, 0.1, 0.001), (1.302, 1.0, 0.1, 0.001)),
        (Kind.INEQUALITY, (-5.0, 1.0, 0.1, 0.0), (1.1, 1.0, 0.0, 0.0)),
        (Kind.ORDER, (1.9, 2.0, 0.0, 0.11), (1.88, 2.0, 0.0, 0.11)),
        (Kind.RESIDUAL, (-1e-7, 0.0, 0.0, 1e-6), (-2e-6, 0.0, 0.0, 1e-6)),
        (Kind.DIFFERENCE, (2.002, 1.0, 0.1, 0.001), (1.998, 1.0, 0.1, 0.0)),
        (Kind.DIFFERENCE, (0.0, 1.1, 0.1, 0.0), (1.0, 1.0, 0.0, 0.0)),
    ],
)
def test_verdict_turns_at_its_boundary(kind, inside, outside):
    assert check(kind, *inside).holds
    assert not check(kind, *outside).holds


def test_numbers_that_are_not_finite_are_refused():
    for values in ((math.nan,), (0.0, math.inf), (0.0, 0.0, math.nan), (0.0, 0.0, 0.0, math.inf)):
        with pytest.raises(NonFiniteError, match=r"is (nan|inf)"):
            Outcome(*values)


def test_a_miss_is_repeated_with_other_draws_and_four_times_as_many():
    seen = []

    def body(setting):
        seen.append((setting.seed, setting.samples))
        return [Outcome(1.0 if len(seen) == 1 else 0.1, 0.0, 0.1, note="a"), Outcome(5.0, 0.0, note="deterministic")]

    setting = quick()
    rows = confirmed(stub(body), setting)
    assert rows[0].holds
    assert rows[0].first == Outcome(1.0, 0.0, 0.1, note="a")
    assert not rows[1].holds
    assert rows[1].first is None
    assert seen[0] == (0, 600)
    assert seen[1][0] != 0
    assert seen[1][1] == 2400
    assert {row.setting for row in rows} == {setting.name}
    false = confirmed(stub(lambda s: Outcome(1.0, 0.0, 0.1)), setting)
    assert not false[0].holds
    assert false[0].first is not None
    seen.clear()
    assert confirmed(stub(lambda s: seen.append(1) or Outcome(0.0, 0.0, 0.1)), setting)[0].holds
    assert len(seen) == 1


def test_names_and_groups_are_checked():
    def reverse_sde_marginals(setting):
        return Outcome(0.0)

    words = {"statement": "", "equation": "", "kind": Kind.EQUALITY, "left": "", "right": ""}
    with pytest.raises(InvalidInputError, match="exists already"):
        identity(group="reversal", **words)(reverse_sde_marginals)
    with pytest.raises(InvalidInputError, match="one of equations"):
        identity(group="reversals", **words)
    with pytest.raises(UnknownNameError, match="Did you mean 'reverse_sde_marginals'"):
        list(run([], ["reverse_sde_marginal"]))


def test_errors_say_where():
    def body(setting):
        raise InvalidInputError("no.")

    with pytest.raises(InvalidInputError, match=r"stub in quick d=2 VP: no\."):
        stub(body)(quick())


def test_a_verification_is_plain_data():
    result = verify([quick(samples=200)], ["two_times_of_the_ode", "score_form_is_mean_field_form"])
    document = json.loads(json.dumps(result.to_json()))
    assert document["holds"]
    assert document["rows"] == len(document["checks"]) == 7
    assert [one["holds"] for one in document["checks"]] == [True] * 7
    first = document["checks"][0]
    assert Outcome(first["left"], first["right"], first["standard_error"], first["allowance"], first["note"]) == (
        result.checks[0].outcome
    )
    again = verify([quick(samples=200)], ["two_times_of_the_ode", "score_form_is_mean_field_form"]).to_json()
    assert {**again, "made": 0} == {**result.to_json(), "made": 0}
    text = result.text()
    for part in ("7 checks of 2 identities in 1 setting(s): all hold", "left:", "Cao et al. 2025", "holds"):
        assert part in text
    failing = dataclasses.replace(result, checks=[check(Kind.EQUALITY, 1.0, 2.0, 0.1)])
    assert failing.failed
    assert "1 FAIL" in failing.summary()
    assert "FAILS: stub in a setting" in failing.summary()
    assert all(one.name in listing() and one.group.upper() in listing() for one in identities())


def every(settings):
    return [
        pytest.param(s, one, id=f"{one.name}, {s.name}") for s in settings for one in identities() if one.applies(s)
    ]


# One setting with a density and one with points; a network that was hardly trained is as good as any other.
QUICK = [quick(1, "OU"), Setting("points", VariancePreserving(), points(), samples=600, steps=60)]


@pytest.mark.parametrize(("setting", "one"), every(QUICK))
def test_every_identity_holds(setting, one):
    failed = [check for check in confirmed(one, setting) if not check.holds]
    assert not failed, failed


def misses(settings, only=()):
    rows = [c for c in run(settings, only) if c.outcome.standard_error > 0 and c.identity.kind is Kind.EQUALITY]
    return sum(not row.holds for row in rows), len(rows)


def test_misses_of_three_seeds_are_chance():
    """Three misses are too many. Of all identities and eleven seeds: ``pytest -m slow tests/test_identities.py``."""
    found, rows = misses([quick(2, "OU", seed, samples=300, steps=30) for seed in range(3)], ["reversal"])
    assert rows > 40
    assert binomtest(found, rows, ALWAYS, alternative="greater").pvalue > 1e-3


@pytest.mark.slow
def test_misses_of_all_identities_over_eleven_seeds_are_chance():
    settings = [s for seed in range(11) for s in standard_settings(seed=seed, samples=1000) if s.dim < 8]
    found, rows = misses(settings)
    assert rows > 3000
    assert binomtest(found, rows, ALWAYS, alternative="greater").pvalue > 1e-3


def fails(name, setting=None):
    """Whether the identity is red in a setting that no other test has simulated."""
    (one,) = [one for one in identities() if one.name == name]
    return not all(check.holds for check in one(setting or quick(2, "OU", seed=1, samples=4000)))


class Weak(ScoreControl):
    """A score that is ten per cent too small."""

    part = 0.9

    def __call__(self, t, x):
        return self.part * super().__call__(t, x)


class Weaker(Weak):
    """A score that is too small by a third."""

    part = 0.67


@pytest.mark.parametrize(
    ("name", "weak"),
    [
        ("reverse_sde_marginals", Weak),
        ("two_times_of_the_sde", Weaker),
        ("pathwise_value", Weaker),
        ("pathwise_variance", Weaker),
    ],
)
def test_a_weak_score_is_seen_by_the_sde(monkeypatch, name, weak):
    assert not fails(name)
    monkeypatch.setattr("sbridge.identities.tools.reverse_paths.ScoreControl", weak)
    assert fails(name, quick(2, "OU", seed=2, samples=4000))


def test_a_weak_score_is_seen_by_the_flow(monkeypatch):
    assert not fails("ode_marginals")

    def weak(process, data, score):
        return reverse_diffusion(process, data, lambda t, x: 0.9 * score(t, x))

    monkeypatch.setattr("sbridge.identities.tools.reverse_paths.reverse_diffusion", weak)
    assert fails("ode_marginals", quick(2, "OU", seed=2, samples=4000))


def test_a_weak_score_is_seen_from_a_fixed_future(monkeypatch):
    assert not fails("past_is_future")
    monkeypatch.setattr("sbridge.identities.reversal.ScoreControl", Weak)
    assert fails("past_is_future", quick(2, "OU", seed=2, samples=4000))


def test_a_wrong_sign_of_the_divergence_is_seen(monkeypatch):
    from sbridge.identities import reversal

    assert not fails("pathwise_value")
    right = reversal.exactly_reversed

    def wrong(setting):
        phi = setting.process.transition(setting.s_min, setting.horizon).map.log_abs_det(setting.dim)
        return tuple(dataclasses.replace(one, work=one.work - 2 * float(phi)) for one in right(setting))

    monkeypatch.setattr(reversal, "exactly_reversed", wrong)
    assert fails("pathwise_value")


@pytest.mark.parametrize(
    "functional", ["action_gap", "denoising_score_matching", "denoising_constant", "implicit_score_matching"]
)
def test_a_functional_without_its_half_is_seen(monkeypatch, functional):
    from sbridge.identities import action

    right = getattr(action, functional)
    monkeypatch.setattr(action, functional, lambda *a, **options: right(*a, **options) * 2.0)
    assert fails("losses_agree_on_the_same_paths")


def test_a_path_kl_without_its_half_is_seen(monkeypatch):
    from sbridge.identities import likelihood

    def double(*a, **options):
        found = path_kl(*a, **options)
        return dataclasses.replace(found, value=2.0 * found.value)

    monkeypatch.setattr(likelihood, "path_kl", double)
    assert fails("path_kl_of_a_chain_is_closed_form")


def test_a_wrong_sign_of_the_determinant_is_seen(monkeypatch):
    from sbridge.measures import ratios

    assert not fails("kernel_ratio_has_mean_one")
    right = ratios._log_det_gap
    monkeypatch.setattr(ratios, "_log_det_gap", lambda *a: -right(*a))
    assert fails("kernel_ratio_has_mean_one")


def test_a_heat_kernel_with_a_wrong_width_is_seen(monkeypatch):
    from sbridge.identities import reversal

    right = reversal.heat_kernel
    monkeypatch.setattr(reversal, "heat_kernel", lambda grid, field, sigma, t: right(grid, field, sigma, t * 1.0001))
    assert fails("backward_heat_amplifies", quick(1, "OU"))


def test_a_mean_field_drift_with_a_wrong_factor_is_seen(monkeypatch):
    from sbridge.identities import reversal

    right = reversal.mean_field_drift
    monkeypatch.setattr(reversal, "mean_field_drift", lambda *a: right(*a) * (1 + 1e-5))
    assert fails("score_form_is_mean_field_form")


def test_what_must_differ_fails_where_it_does_not(monkeypatch):
    from sbridge.identities import reversal

    at_rest = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert fails("equilibrium_is_left", quick(2, "OU", data=at_rest))
    assert fails("naive_reversal", quick(2, "OU", data=at_rest))  # with drift +b it does return the data
    monkeypatch.setattr(reversal, "flowed", reversal.exactly_reversed)
    assert fails("two_times_of_the_ode")


@pytest.mark.parametrize("process", PROCESSES)
def test_grids_are_nested_and_begin_at_s_min(process):
    setting = quick(2, process)
    coarse, fine = setting.grid().times(setting.horizon), setting.grid(2).times(setting.horizon)
    assert len(coarse) == setting.steps + 2
    assert len(fine) == 2 * setting.steps + 2
    assert float(coarse[1]) == pytest.approx(setting.s_min)
    assert torch.allclose(coarse[1:], fine[1::2], rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_components_know_their_waves_and_their_past(process):
    law, g = mixture(2), torch.Generator().manual_seed(1)
    s, t = (f * PROCESSES[process].horizon for f in (0.1, 0.4))
    first, then = PROCESSES[process].transition(0.0, s), PROCESSES[process].transition(s, t)
    for data in (law, points(5), Gaussian(law.means[0], law.covariances[0])):
        before = Components.of(data).moved(first)
        waves = Waves.drawn(2, before.width)
        rows = data.sample(200_000, g).double()
        x = first.mean(rows) + first.root(torch.randn(rows.shape, generator=g, dtype=rows.dtype))
        values = waves(x)
        assert abs(float(values.mean()) - before.expected(waves)) < 4.5 * float(values.std()) / len(x) ** 0.5
        assert before.width == pytest.approx(float(x.var(0).mean().sqrt()), rel=0.02)
        y = then.mean(x[:1])[0] + 0.3
        gap = then.root.inverse()(y - then.mean(x))
        weights = torch.softmax(-0.5 * gap.square().sum(1), 0)
        effective = 1 / float(weights.square().sum())
        past = before.given(then, y)
        assert abs(float(weights @ values) - past.expected(waves)) < 4.5 * float(values.std()) / effective**0.5
        assert ((weights @ x - past.mean()).norm() / past.width) < 6.0 / effective**0.5


def test_settings_refuse_what_cannot_be_checked():
    with pytest.raises(UnsupportedError, match="no components"):
        Components.of(Density(lambda x: x.sum(1), 2))
    same = Setting("same", VariancePreserving(), Samples(torch.ones(5, 2, dtype=torch.float64)))
    with pytest.raises(InvalidInputError, match="are equal"):
        same.grid()
    with pytest.raises(InvalidInputError, match="fraction of the horizon"):
        dataclasses.replace(quick(), start_time=0.0)
    with pytest.raises(InvalidInputError, match="at least 2"):
        dataclasses.replace(quick(), samples=1)


def test_a_small_network_joins_the_scores_to_judge():
    setting = quick().trained(updates=3)
    names = [name for name, _ in setting.scores()]
    assert names == ["fixed perturbation", "trained network"]
    x = setting.data.sample(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert setting.network(0.3, x).shape == x.shape
    assert setting.network(0.3, x).dtype == torch.float64
