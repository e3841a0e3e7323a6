"""Bad ends and bad noise: each warning with the number that shows it, none on ordinary data, and the command line."""

import math
import re
import warnings

import numpy as np
import pytest
import torch

from sbridge.cli import run
from sbridge.couplings import EntropicCoupling
from sbridge.data import datasets
from sbridge.diffusion import ScoreMatching
from sbridge.errors import (
    ConvergenceWarning,
    DisconnectedWarning,
    HeavyTailsWarning,
    InvalidInputError,
    SbridgeWarning,
    ScalesWarning,
    UnsupportedError,
)
from sbridge.fitting import choose_noise_schedule, choose_sigma, diffuse, fit, prepare
from sbridge.fitting.data_checks import kurtosis, noise_level, tail_share, warn_if_hard, widest_gap
from sbridge.laws import Density, Gaussian, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.solvers import IMF, AdjointBridge, GaussianBridge, MatchedBridge, MixtureBridge, SinkhornBridge
from sbridge.transport import EntropicProblem, sinkhorn_init


def normal(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(n, dim, degrees, seed=0):
    """Student's law as a ratio of a normal and the root of a mean of squares."""
    squares = normal(n * degrees, dim, seed + 1).reshape(degrees, n, dim).square().mean(0)
    return normal(n, dim, seed) / squares.sqrt()


# --- the numbers


def test_the_tail_share_of_known_laws():
    z = 2.5758293035489004  # of the 99.5 % quantile: E z² beyond it, both sides
    wanted = 2.0 * (z * math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)) + 0.01
    assert tail_share(normal(400_000, 1)) == pytest.approx(wanted, abs=0.002)
    exponential = -torch.rand(400_000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log()
    far = math.log(100.0)  # ∫_far (x − 1)² e^{−x} dx
    assert tail_share(exponential) == pytest.approx(math.exp(-far) * ((far - 1) ** 2 + 2 * (far - 1) + 2), abs=0.01)
    rows = normal(1000, 3, 5)
    turn = torch.linalg.qr(normal(3, 3, 6)).Q
    assert tail_share(7.0 * rows @ turn + 2.0) == pytest.approx(tail_share(rows), rel=1e-10)


def test_the_kurtosis_of_known_laws():
    assert kurtosis(normal(400_000, 1)) == pytest.approx(0.0, abs=0.05)
    signs = normal(1000, 1).sign()
    assert kurtosis(torch.cat([signs, torch.zeros_like(signs)], 1)) == pytest.approx(-2.0, abs=0.01)


def test_the_gap_of_two_intervals():
    left = torch.linspace(0.0, 1.0, 60, dtype=torch.float64)
    rows = torch.cat([left, left + 11.0, left[:40] + 11.0, torch.tensor([500.0], dtype=torch.float64)])[:, None]
    gap = widest_gap(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))])
    assert gap.width == pytest.approx(10.0)
    assert gap.share == pytest.approx(60 / 161)
    assert gap.radius > 0.2  # of an interval of length one, 12^−½; the outlier widens its part


def test_a_gap_is_seen_in_rows_that_are_thinned_and_turned():
    rows = torch.cat([normal(3000, 4), normal(1500, 4, 1) + 15.0])
    gap = widest_gap(rows)
    assert gap.share == pytest.approx(1 / 3, abs=0.01)
    assert gap.radius == pytest.approx(2.0, rel=0.1)
    assert 30.0 - 12.0 < gap.width < 30.0


def test_the_noise_level_of_linear_and_other_processes():
    assert noise_level(BrownianMotion(0.5, 4.0), 3) == pytest.approx(1.0)
    assert noise_level(DriftProcess(lambda t, x: -x, 0.5, 4.0), 3) == pytest.approx(1.0)
    assert noise_level(OrnsteinUhlenbeck(rate=1.0, sigma=1.0), 2) == pytest.approx(((1 - math.exp(-2.0)) / 2.0) ** 0.5)


# --- warnings


def told(x0, x1, reference=BrownianMotion(1.0)):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_hard(x0, x1, reference)
    return {warning.category: str(warning.message) for warning in caught}


@pytest.mark.parametrize("name", datasets.names())
def test_ordinary_data_give_no_warning(name):
    """From and to every built-in set, small and large, with the default noise and with a tenth of it."""
    for n in (50, 300, 3000):
        x, y = datasets.make("gaussian", n, 1), datasets.make(name, n, 2)
        for factor in (1.0, 0.1):
            reference = BrownianMotion(factor * choose_sigma(x, y).sigma)
            assert not told(x, y, reference)
            assert not told(y, x, reference)


def test_ordinary_columns_in_many_dimensions_give_no_warning():
    falling = 10.0 * torch.arange(1, 51, dtype=torch.float64) ** -0.5
    assert not told(normal(2000, 50) * falling, normal(2000, 50, 1) * falling + 1.0)


def test_heavy_tails_are_told_with_their_share():
    messages = told(student(2000, 2, 1), normal(2000, 2))
    assert "x0 has heavy tails: a hundredth of its rows carries 9" in messages[HeavyTailsWarning]
    assert "kurtosis" in messages[HeavyTailsWarning]
    rows = normal(2000, 2)
    rows[3] *= 1e4
    assert "x1 has heavy tails" in told(normal(2000, 2, 1), rows)[HeavyTailsWarning]


def test_disconnected_ends_are_told_with_the_gap():
    parts = torch.cat([normal(700, 2), normal(300, 2, 1) + 50.0])
    message = told(normal(1000, 2, 2), parts)[DisconnectedWarning]
    assert "x1 is disconnected: a gap of 6" in message
    assert "30.0% of its rows" in message
    # a reference that reaches across the gap connects the parts
    assert DisconnectedWarning not in told(normal(1000, 2, 2), parts, BrownianMotion(30.0))
    assert DisconnectedWarning not in told(normal(1000, 2, 2), torch.cat([normal(700, 2), normal(300, 2, 1) + 6.0]))


def test_ends_on_different_scales_are_told_with_their_widths():
    for x0, x1 in ((normal(500, 2), 30.0 * normal(500, 2, 1)), (30.0 * normal(500, 2), normal(500, 2, 1))):
        assert "a ratio of " in told(x0, x1)[ScalesWarning]
    assert ScalesWarning not in told(normal(500, 2), 8.0 * normal(500, 2, 1))
    assert ScalesWarning not in told(normal(500, 2), 30.0 * normal(500, 2, 1), VarianceExploding(0.1, 30.0))
    assert ScalesWarning not in told(normal(500, 2), None)


def test_a_fit_warns_and_a_reverse_diffusion_of_ordinary_data_does_not():
    far = torch.cat([normal(700, 2), normal(300, 2, 1) + 14.0]).float()
    with pytest.warns(DisconnectedWarning):
        prepare(far, normal(700, 2, 3).float(), reference=BrownianMotion(1.0))
    outlying = normal(500, 2).float()
    outlying[:5] *= 30.0
    with pytest.warns(HeavyTailsWarning):
        fit(normal(500, 2).float(), outlying, solver=GaussianBridge())
    rows = datasets.make("two_moons", 500, 0)
    density = Density(lambda x: -x.square().sum(1), 2)
    prepare(rows, density, reference=BrownianMotion(1.0))
    prepare(rows, Gaussian(torch.zeros(2), torch.eye(2)))
    for process in (choose_noise_schedule(rows), VarianceExploding(0.02, 50.0), VariancePreserving()):
        diffuse(rows, process=process, solver=ScoreMatching(updates=1))


# --- noise that is too small, references that are not linear


def test_an_epsilon_at_which_the_plan_degenerates_is_refused_with_the_smallest_that_works():
    x, y = normal(200, 2).float(), normal(200, 2, 1).float() + 1.0
    centred = (rows.double() - rows.double().mean(0) for rows in (x, y))
    cost = 0.5 * float(torch.cdist(*centred).square().quantile(0.25))
    sinkhorn_init(EntropicProblem(x, y, 2e-6 * cost))
    sinkhorn_init(EntropicProblem(torch.cat([x, x + 1e3]), torch.cat([y, y + 1e3]), 1e-4 * cost))
    with pytest.raises(InvalidInputError, match=r"ε is 5e-09 of the lower .*6e\+03 times this one: .*σ by 77\.5"):
        sinkhorn_init(EntropicProblem(x, y, 5e-9 * cost))
    sigma = (5e-9 * cost) ** 0.5
    for solver in (SinkhornBridge(), IMF(coupling=EntropicCoupling(rows=200))):
        with pytest.raises(InvalidInputError, match="smallest workable ε is about 3e-05 of it"):
            fit(x, y, reference=BrownianMotion(sigma), solver=solver)
        with pytest.raises(InvalidInputError, match=r"multiply σ by 77\.5"):
            fit(x, y, reference=OrnsteinUhlenbeck(rate=0.0, sigma=sigma), solver=solver)


@pytest.mark.parametrize(
    "solver", [IMF(), MatchedBridge(), SinkhornBridge(), GaussianBridge(), MixtureBridge(), AdjointBridge()], ids=type
)
def test_solvers_that_need_a_transition_name_the_one_that_does_not(solver):
    curved = DriftProcess(lambda t, x: -x.sin(), 1.0)
    ends = [Samples(normal(50, 2)), Samples(normal(50, 2, 1))]
    if isinstance(solver, AdjointBridge):
        ends[1] = Density(lambda x: -x.square().sum(1), 2)
    name = type(solver).__name__
    instead = r"IPF\(forward=AdjointHalfBridge\(\)\)" if name == "AdjointBridge" else r"IPF\(\)"
    wanted = (
        rf"^{name} needs transitions in closed form, which DriftProcess does not have: .* or {instead}, which simulates"
    )
    problem = BridgeProblem(*ends, curved)
    assert solver.refusal(BridgeProblem(*ends, BrownianMotion(1.0))) is None
    with pytest.raises(UnsupportedError, match=wanted):
        raise UnsupportedError(solver.refusal(problem))
    with pytest.raises(UnsupportedError, match=r"which DriftProcess does not have: .* or IPF\(\)"):
        _ = problem.linear_reference


# --- the command line


def saved(folder, **arrays):
    for name, rows in arrays.items():
        np.save(folder / f"{name}.npy", rows.float().numpy())
    return [str(folder / f"{name}.npy") for name in arrays]


def test_the_command_line_tells_warnings_and_refusals_as_sentences(tmp_path, capsys):
    parts = torch.cat([normal(300, 2), normal(100, 2, 1) + 60.0])
    files = saved(tmp_path, near=student(400, 2, 1), far=parts)
    out = ["--solver", "gaussian", "--out", str(tmp_path / "run"), "--no-figures", "--sigma", "1.0"]
    assert run(["fit", *files, *out]) == 0
    errors = capsys.readouterr().err
    assert "sbridge: warning: x0 has heavy tails" in " ".join(errors.split())
    assert "sbridge: warning: x1 is disconnected" in " ".join(errors.split())
    assert ".py:" not in errors
    files = saved(tmp_path, a=normal(200, 2), b=normal(200, 2, 1))
    options = ["--solver", "sinkhorn", "--out", str(tmp_path / "small"), "--sigma", "1e-5"]
    assert run(["fit", *files, *options]) == 2
    assert "the smallest workable ε is about" in " ".join(capsys.readouterr().err.split()).replace("The", "the")
    assert not (tmp_path / "small").exists()


def test_every_warning_can_be_silenced_by_its_base():
    for kind in (HeavyTailsWarning, DisconnectedWarning, ScalesWarning, ConvergenceWarning):
        assert issubclass(kind, SbridgeWarning)


@pytest.mark.parametrize("ratio", [50.0, 1000.0])
@pytest.mark.parametrize("own", [False, True])
def test_columns_of_very_unlike_widths(ratio, own):
    """In units of the noise of each: columns that have a σ of their own are alike; constant ones have no width."""
    widths = torch.tensor([1.0, ratio, 0.0], dtype=torch.float64)
    x0, x1 = (normal(300, 3, seed) * widths for seed in (0, 1))
    reference = BrownianMotion(widths.clamp_min(1.0) if own else 1.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_if_hard(x0, x1, reference)
    said = [str(one.message) for one in told if one.category is ScalesWarning]
    assert len(said) == (ratio > 100.0 and not own)
    if said:
        assert re.search(r"column 1 is (\S+) times as wide as column 0", said[0])


@pytest.mark.parametrize(("widths", "told"), [((0.01, 1.0), "VarianceExploding"), ((1.0, 0.01), "OrnsteinUhlenbeck")])
def test_the_reference_that_helps_goes_from_one_width_to_the_other(widths, told):
    x0, x1 = (width * normal(300, 2, seed) for seed, width in enumerate(widths))
    with pytest.warns(ScalesWarning, match=f"by itself, such as {told}"):
        warn_if_hard(x0, x1, BrownianMotion(0.1))


@pytest.mark.parametrize("sigma", [20.0, 50.0])
def test_noise_far_wider_than_the_data(sigma):
    x0, x1 = normal(300, 2), normal(300, 2, 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_if_hard(x0, x1, BrownianMotion(sigma))
    assert [one.category for one in told] == ([ScalesWarning] if sigma > 30.0 else [])


def test_constant_ends_need_a_reference():
    x = torch.ones(50, 2)
    with pytest.raises(InvalidInputError, match="give a reference, such as"):
        fit(x, x)
