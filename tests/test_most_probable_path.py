"""The Onsager–Machlup functional and its minimisers against closed forms."""

import math

import pytest
import torch

from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError
from sbridge.functionals import freidlin_wentzell, most_probable_path, onsager_machlup
from sbridge.identities import Setting, identities, most_probable
from sbridge.identities.settings import PROCESSES, mixture
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck
from sbridge.time import TimeGrid

RATE = torch.tensor([[1.0, 0.9], [-0.4, 0.7]], dtype=torch.float64)
SIGMA = torch.tensor([[1.0, 0.4], [-0.2, 0.6]], dtype=torch.float64)
DENSE = OrnsteinUhlenbeck(RATE, SIGMA, mean=torch.tensor([0.3, -0.5], dtype=torch.float64), horizon=2.0)
GRID = TimeGrid.uniform(400)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def well(sigma=0.5, horizon=20.0):
    """``U = ¼(x² − 1)²``, with a barrier of ¼ at 0."""
    return DriftProcess(lambda t, x: x - x**3, sigma, horizon=horizon, dimension=1)


def test_path_of_an_ornstein_uhlenbeck_process_is_its_closed_form():
    """``x(t) = (x_0 sinh κ(T − t) + x_T sinh κt)/sinh κT``."""
    k, horizon = 1.3, 2.0
    process = OrnsteinUhlenbeck(k, 0.7, horizon=horizon)
    found = most_probable_path(process, row(1.0), row(-0.5), GRID)[:, 0, 0]
    t = GRID.times(horizon)
    exact = (torch.sinh(k * (horizon - t)) - 0.5 * torch.sinh(k * t)) / math.sinh(k * horizon)
    assert float((found - exact).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["VP", "VE", "dense"])
def test_path_of_a_linear_process_is_the_mean_of_the_bridge(name):
    process = DENSE if name == "dense" else PROCESSES[name]
    start, end = torch.cat([row(1.0, 0.2), row(-0.3, 2.0)]), torch.cat([row(-1.0, 0.5), row(0.4, 0.1)])
    found = most_probable_path(process, start, end, GRID)
    assert torch.equal(found[0], start)
    assert torch.equal(found[-1], end)
    inside = torch.stack([process.pinned(t).mean(start, end) for t in GRID.times(process.horizon)[1:-1].tolist()])
    assert float((found[1:-1] - inside).abs().max()) < 1e-4
    law = process.transition(0.0, process.horizon)
    least = 0.5 * law.root.inverse()(end - law.mean(start)).square().sum(1)
    torch.testing.assert_close(freidlin_wentzell(found, process, GRID), least, rtol=1e-4, atol=0.0)
    trace = torch.stack([process.linear(t).expanded(2).trace() for t in GRID.times(process.horizon).tolist()])
    growth = 0.5 * torch.trapezoid(trace, GRID.times(process.horizon))
    torch.testing.assert_close(
        onsager_machlup(found, process, GRID) - freidlin_wentzell(found, process, GRID),
        growth.expand(2),
        rtol=1e-4,
        atol=0.0,
    )


def test_divergence_moves_the_path():
    """The Euler–Lagrange equation of the double well is ``ẍ = ∇(½b² + ½σ²b')``."""
    process, sigma, horizon = well(0.8, 2.0), 0.8, 2.0
    found = most_probable_path(process, row(-1.0), row(1.0), GRID)[:, 0, 0]
    step = horizon / GRID.steps
    acceleration = (found[2:] - 2 * found[1:-1] + found[:-2]) / step**2
    x = found[1:-1]
    expected = (x - x**3) * (1 - 3 * x**2) - 3.0 * sigma**2 * x
    torch.testing.assert_close(acceleration, expected, rtol=1e-3, atol=1e-3)
    small = most_probable_path(process, row(-1.0), row(1.0), GRID, action=freidlin_wentzell)[:, 0, 0]
    y = small[1:-1]
    acceleration = (small[2:] - 2 * y + small[:-2]) / step**2
    torch.testing.assert_close(acceleration, (y - y**3) * (1 - 3 * y**2), rtol=1e-3, atol=1e-3)
    assert float((found - small).abs().max()) > 0.02


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_instanton_of_the_double_well(end):
    """``2ΔU/σ²`` to the top of the barrier, and from there down for nothing."""
    process, sigma = well(), 0.5
    found = most_probable_path(process, row(-1.0), row(end), GRID, action=freidlin_wentzell)
    action = float(freidlin_wentzell(found, process, GRID))
    assert abs(action / (2 * 0.25 / sigma**2) - 1.0) < 0.01
    climb = found[:, 0, 0][found[:, 0, 0] < 0]
    speed, uphill = climb.diff() / (20.0 / GRID.steps), 0.5 * (climb[1:] + climb[:-1])
    inside = (uphill > -0.9) & (uphill < -0.1)
    torch.testing.assert_close(speed[inside], (uphill**3 - uphill)[inside], rtol=0.02, atol=0.0)


def test_downhill_is_free_and_uphill_costs():
    process, t = well(1.0, 3.0), GRID.times(3.0)
    decay = torch.exp(-2 * t)
    start = 0.4
    down = (1.0 / (1.0 + (1 / start**2 - 1.0) * decay)).sqrt().reshape(-1, 1, 1)
    assert float(freidlin_wentzell(down, process, GRID)) < 1e-8
    height = lambda x: 0.25 * (x**2 - 1) ** 2  # noqa: E731
    up = 2.0 * float(height(torch.tensor(start)) - height(down[-1].squeeze()))
    assert float(freidlin_wentzell(down.flip(0), process, GRID)) == pytest.approx(up, rel=1e-4)


def test_action_is_differentiable_in_the_drift():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    process = DriftProcess(lambda t, x: -scale * x**3, 1.0, dimension=1)
    path = torch.linspace(0.0, 1.0, 11, dtype=torch.float64).reshape(-1, 1, 1)
    (slope,) = torch.autograd.grad(onsager_machlup(path, process, TimeGrid.uniform(10)).sum(), scale)
    # ∂/∂a of ∫ ½(1 + a t³)² − 3a t²/2 dt at a = 1, with x = t
    assert float(slope) == pytest.approx(1 / 4 + 1 / 7 - 0.5, abs=5e-3)


def test_a_guess_chooses_the_side():
    """Around a hill in the plane there are two ways."""

    def drift(t, x):
        bump = torch.exp(-2.0 * x.square().sum(1, keepdim=True))
        return 8.0 * x * bump

    process, start, end = DriftProcess(drift, 0.5, dimension=2, horizon=2.0), row(-1.5, 0.0), row(1.5, 0.0)
    grid = TimeGrid.uniform(60)
    t = torch.linspace(0.0, 1.0, 61, dtype=torch.float64)
    arc = torch.stack([3.0 * t - 1.5, torch.sin(math.pi * t)], 1).unsqueeze(1)
    left = most_probable_path(process, start, end, grid, guess=arc, action=freidlin_wentzell)
    right = most_probable_path(
        process, start, end, grid, guess=arc * torch.tensor([1.0, -1.0]), action=freidlin_wentzell
    )
    assert float(left[30, 0, 1]) > 0.3
    torch.testing.assert_close(left[..., 1], -right[..., 1], rtol=1e-3, atol=1e-4)


def test_the_number_of_evaluations_does_not_grow_with_the_steps():
    counts = []
    for steps in (50, 800):
        calls = []

        def counted(x, process, grid, calls=calls):
            calls.append(len(x))
            return onsager_machlup(x, process, grid)

        most_probable_path(DENSE, row(1.0, 0.2), row(-1.0, 0.5), TimeGrid.uniform(steps), action=counted)
        counts.append(len(calls))
    assert counts[1] <= counts[0] + 3


def test_single_precision_and_modes():
    start, end = row(1.0, 0.2), row(-1.0, 0.5)
    expected = most_probable_path(DENSE, start, end, GRID)
    with torch.no_grad():
        found = most_probable_path(DENSE, start.float(), end.float(), GRID)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        onsager_machlup(expected.float(), DENSE, GRID).double(),
        onsager_machlup(expected, DENSE, GRID),
        rtol=1e-2,
        atol=1e-2,
    )


OWN = {one.name: one for one in identities() if one.body.__module__ == most_probable.__name__}
SETTINGS = [
    *(Setting(f"d=2, {name}", process, mixture(2), samples=10) for name, process in PROCESSES.items()),
    Setting("dense", DENSE, mixture(2), samples=10),
]


@pytest.mark.parametrize("where", SETTINGS, ids=lambda where: where.name)
def test_identity_holds(where):
    (one,) = OWN.values()
    assert all(check.holds for check in one(where)), one(where)


def bare(function):
    """The action of Brownian motion."""
    return lambda x, process, grid: function(x, BrownianMotion(1.0, horizon=process.horizon), grid)


def test_a_damaged_identity_is_seen(monkeypatch):
    (one,) = OWN.values()
    original = most_probable.most_probable_path
    with monkeypatch.context() as patch:
        patch.setattr(most_probable, "most_probable_path", lambda *a: original(*a, action=bare(onsager_machlup)))
        assert [check.holds for check in one(SETTINGS[0])] == [False, False]
    with monkeypatch.context() as patch:
        patch.setattr(most_probable, "freidlin_wentzell", lambda *a: 1.01 * freidlin_wentzell(*a))
        assert [check.holds for check in one(SETTINGS[0])] == [True, False]


def test_bad_input_is_told():
    with pytest.raises(InvalidInputError, match=r"shape \(401, batch, dim\), got \(401, 2\)"):
        onsager_machlup(torch.zeros(401, 2), DENSE, GRID)
    with pytest.raises(InvalidInputError, match="one shape"):
        most_probable_path(DENSE, row(0.0, 0.0), torch.zeros(2, 2), GRID)
    with pytest.raises(InvalidInputError, match="shape"):
        most_probable_path(DENSE, row(0.0, 0.0), row(1.0, 0.0), GRID, guess=torch.zeros(3, 1, 2))
    with pytest.raises(NotConvergedError, match="after 2 iterations"):
        most_probable_path(well(), row(-1.0), row(1.0), GRID, max_iterations=2)
    broken = DriftProcess(lambda t, x: x / 0.0, 1.0, dimension=1)
    with pytest.raises(NonFiniteError, match="action of a path"):
        most_probable_path(broken, row(-1.0), row(1.0), GRID)
