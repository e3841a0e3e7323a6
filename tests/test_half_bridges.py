"""The losses of half-bridges against exact reversals of chains, against each other, and against damage."""

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sbridge.controls import Divergence, ExactTrace, Hutchinson
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.riccati import ChainRiccati
from sbridge.laws import Gaussian
from sbridge.measures import Direction, PathMeasure, Paths
from sbridge.objectives import adjoint_targets, lean_adjoint
from sbridge.objectives.half_bridge import StepTimes, Transitions, likelihood, mean_matching, terminal_adjoint
from sbridge.objectives.reversal import reversal_action
from sbridge.problems import ControlProblem, Quadratic
from sbridge.processes import (
    BrownianMotion,
    Chain,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    OrnsteinUhlenbeck,
    Process,
)
from sbridge.solvers.half_bridges import ReversalControl, warn_if_slow
from sbridge.storage.registry import registered
from sbridge.time import TimeGrid

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


MEAN, COVARIANCE = tensor([-0.5, 0.4]), tensor([[0.6, 0.2], [0.2, 0.9]])
START = Gaussian(MEAN, COVARIANCE)
GAIN, PUSH = tensor([[-0.7, 0.4], [0.1, 0.5]]), tensor([0.6, -0.3])
RATE, SIGMA = tensor([[1.0, 0.6], [-0.8, 0.4]]), tensor([[0.8, 0.3], [0.1, 1.0]])


def blown(t: float | Tensor, x: Tensor) -> Tensor:
    """A drift that turns, and moves with time."""
    return -x @ RATE.to(x).mT + 1.0 + (t.unsqueeze(-1) if isinstance(t, Tensor) and t.ndim else t)


REFERENCES: dict[str, Process] = {
    "Brownian": BrownianMotion([0.7, 1.3]),
    "OU, exact steps": OrnsteinUhlenbeck(RATE, SIGMA, [0.3, -0.5], 1.3),
    "user drift, Euler": DriftProcess(lambda t, x: blown(t, x), SIGMA, 1.3),
}
GRID = TimeGrid((0.0, 0.3, 0.5, 0.9, 1.0))
"""Coarse on purpose: the losses are exact for a chain whatever its steps."""


def driving(t: float | Tensor, x: Tensor) -> Tensor:
    """An affine control for the paths that are simulated."""
    return x @ GAIN.to(x).mT + PUSH.to(x) * (t if isinstance(t, float) else t.to(x).unsqueeze(-1))


@dataclass(frozen=True)
class Reversed:
    """The control whose chain has ``E[x_k | x_{k+1}]`` of an affine Gaussian chain as the mean of its steps back."""

    chain: Chain

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        back = replace(self.chain, direction=Direction(-self.chain.direction.value))
        mean, covariance, found = MEAN, COVARIANCE, torch.empty_like(y)
        for j in range(self.chain.length):
            columns = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
            moved = columns + self.chain.move(j, columns, driving(self.chain.step_times[j], columns))
            offset, matrix, root = moved[0], (moved[1:] - moved[0]).mT, self.chain.root(j).expanded(2)
            after, spread = matrix @ mean + offset, matrix @ covariance @ matrix.mT + root @ root.mT
            here = (t - self.chain.visited[j + 1]).abs() < 1e-9
            start = mean + torch.linalg.solve(spread, (y[here] - after).mT).mT @ matrix @ covariance
            shift = back.shift(self.chain.length - 1 - j, y[here], start)
            found[here] = shift / self.chain.root_durations[j]
            mean, covariance = after, spread
        return found


def paths_of(reference: Process, direction: Direction, n: int, seed: int = 1) -> Paths:
    return PathMeasure(reference, driving, START, direction, GRID).sample(n, seed=seed)


def all_steps(paths: Paths) -> tuple[Transitions, StepTimes]:
    """Every step of every path, one a row."""
    count, batch = paths.noise.shape[:2]
    steps = torch.arange(count).repeat_interleave(batch)
    return Transitions.of(paths).rows(steps, torch.arange(batch).repeat(count)), StepTimes.of(paths.chain, steps)


def by_likelihood(weight: float = 1.0, rule: Divergence = ExactTrace()) -> Callable[..., Tensor]:
    """The likelihood with its divergence times ``weight``."""

    def loss(taken: Transitions, when: StepTimes, control: Callable) -> Tensor:
        probes = rule.probes(taken.x, 3)
        return likelihood(taken, when, control, replace(probes, weight=weight * probes.weight))

    return loss


LOSSES = {
    "mean matching": mean_matching,
    "likelihood": by_likelihood(),
    "likelihood, probes": by_likelihood(rule=Hutchinson(2)),
}


def slopes(loss: Callable[..., Tensor], taken: Transitions, when: StepTimes, control: Callable, paths: int) -> float:
    """The largest z-score of the gradient of the loss in θ of ``control + h(t, x) θ``, ``h = 1, x, t x``, at 0."""
    theta = torch.zeros(len(taken.x), 4, 2, dtype=torch.float64, requires_grad=True)

    def moved(t: Tensor, x: Tensor) -> Tensor:
        features = torch.cat([torch.ones_like(x[:, :1]), x, t.unsqueeze(1) * x[:, :1]], 1)
        weights = theta.repeat(len(x) // len(theta), 1, 1)
        return control(t, x.detach()) + (features.unsqueeze(1) @ weights).squeeze(1)

    (gradient,) = torch.autograd.grad((when.width.square() * loss(taken, when, moved)).sum(), theta)
    each = gradient.reshape(-1, paths, 8).sum(0)
    return float((each.mean(0) / (each.std(0) / math.sqrt(paths))).abs().max())


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_exact_reversal_of_the_chain_is_the_minimiser(loss, name, direction):
    """The gradient vanishes there within standard errors, at steps of any size, and not beside it."""
    paths = paths_of(REFERENCES[name], direction, 4000)
    steps, exact = all_steps(paths), Reversed(paths.chain)
    assert slopes(LOSSES[loss], *steps, exact, 4000) < 4.0
    assert slopes(LOSSES[loss], *steps, lambda t, x: exact(t, x) + 0.1 * x, 4000) > 5.0


def with_start(taken: Transitions, paths: Paths) -> Transitions:
    return replace(taken, x=paths.x[:-1].flatten(0, 1))


def with_other_noise(taken: Transitions, paths: Paths) -> Transitions:
    return replace(taken, noise=paths_of(paths.chain.process, BACKWARD, 4000, 2).noise.flatten(0, 1))


def with_drift_form(taken: Transitions, paths: Paths) -> Transitions:
    times = paths.chain.visited[:-1].repeat_interleave(4000)
    u, there = driving(times, taken.x), taken.x - 2.0 * StepTimes.of(paths.chain, torch.arange(4)).root(taken.noise)
    return replace(taken, held=u, mirrored=driving(times, there))


DAMAGES: dict[str, tuple[Callable[..., Tensor], Callable[[Transitions, Paths], Transitions]]] = {
    "the sign of the divergence": (by_likelihood(-1.0), lambda taken, paths: taken),
    "no divergence": (by_likelihood(0.0), lambda taken, paths: taken),
    "the sign of the noise": (mean_matching, lambda taken, paths: replace(taken, noise=-taken.noise)),
    "the noise of the other direction": (mean_matching, with_other_noise),
    "the state at the start of the step": (mean_matching, with_start),
    "the same in the likelihood": (by_likelihood(), with_start),
    "the other control at the end of the step": (mean_matching, with_drift_form),
    "the other control left out": (mean_matching, lambda taken, paths: replace(taken, held=0.0 * taken.held)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_loss_has_another_minimiser(damage):
    """The power of the test above: each damage moves the minimiser by many standard errors."""
    loss, spoil = DAMAGES[damage]
    paths = paths_of(REFERENCES["OU, exact steps"], FORWARD, 4000)
    taken, when = all_steps(paths)
    assert slopes(loss, spoil(taken, paths), when, Reversed(paths.chain), 4000) > 8.0


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", REFERENCES)
def test_steps_taken_back_land_where_they_began(name, direction):
    """The opposite chain, shifted by ``−(ξ + √Δ h)``; and from the mirrored end by ``ξ − √Δ h``."""
    paths = paths_of(REFERENCES[name], direction, 5)
    chain, taken = paths.chain, Transitions.of(paths)
    back = replace(chain, direction=Direction(-direction.value))
    for j, (x, noise) in enumerate(zip(paths.x[:-1], paths.noise, strict=True)):
        width, step = chain.root_durations[j], chain.length - 1 - j
        there = chain.push(j, x, width * paths.v[j] - noise)
        torch.testing.assert_close(back.push(step, taken.x[j], -(noise + width * taken.held[j])), x)
        torch.testing.assert_close(back.push(step, there, noise - width * taken.mirrored[j]), x)
        if name != "user drift, Euler":
            torch.testing.assert_close(taken.held[j], paths.v[j])


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_a_known_part_is_added_when_and_where_steps_are_taken_back(direction):
    paths = paths_of(REFERENCES["user drift, Euler"], direction, 5)
    plain, taken = Transitions.of(paths), Transitions.of(paths, base=lambda t, x: (x + t).sin())
    knots = GRID.times(1.3) if direction is FORWARD else GRID.times(1.3).flip(0)
    t = knots[1:, None, None]
    torch.testing.assert_close(taken.held - plain.held, (paths.x[1:] + t).sin())
    kicks = torch.stack([paths.chain.root(j)(noise) for j, noise in enumerate(paths.noise)])
    torch.testing.assert_close(taken.mirrored - plain.mirrored, (paths.x[1:] - 2.0 * kicks + t).sin())


def test_the_loss_is_the_path_divergence():
    """Against the kernels' own log ratio, path by path; what is left over does not depend on the control."""
    paths = paths_of(REFERENCES["user drift, Euler"], FORWARD, 50)
    taken, when = Transitions.of(paths), StepTimes.of(paths.chain, torch.arange(4))
    u = torch.stack([bent(t.expand(50), x) for t, x in zip(when.t, taken.x, strict=True)])
    width = when.width[:, None]
    ours = width.square() * 0.5 * (u + taken.held).square().sum(2) + width * (u * taken.noise).sum(2)
    rest = width * (taken.held * taken.noise).sum(2)
    torch.testing.assert_close((ours + rest).sum(0), reversal_action(paths, bent))


def bent(t: Tensor, x: Tensor) -> Tensor:
    """A control that is not linear and not a gradient."""
    return torch.tanh(2.0 * x + x.flip(1)) + 0.3 * t.to(x).unsqueeze(1) * x.square()


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_the_losses_are_equal_in_the_mean(direction):
    """For any control and any drift, since a step is Gaussian given where it starts; not without the divergence."""
    pendulum = DriftProcess(lambda t, x: torch.sin(2.0 * x.flip(1)) - x, [0.8, 1.1])
    paths = PathMeasure(pendulum, driving, START, direction, TimeGrid.uniform(12)).sample(20_000, seed=2)
    taken, when = all_steps(paths)

    def gap(loss: Callable[..., Tensor]) -> float:
        difference = when.width.square() * (mean_matching(taken, when, bent) - loss(taken, when, bent)).detach()
        each = difference.reshape(-1, 20_000).sum(0)
        return abs(float(each.mean() / (each.std() / math.sqrt(20_000))))

    assert gap(LOSSES["likelihood"]) < 3.5
    assert gap(LOSSES["likelihood, probes"]) < 3.5
    assert gap(by_likelihood(0.0)) > 20.0


def test_mirroring_takes_away_the_noise_of_short_steps():
    """Without it the variance of the gradient grows like ``1/Δ``; with it no more than the divergence's own."""

    def variances(steps: int) -> tuple[float, float]:
        paths = PathMeasure(BrownianMotion(1.0), None, START, grid=TimeGrid.uniform(steps)).sample(2000, seed=4)
        taken, when = all_steps(paths)
        alone = (bent(when.t, taken.x) * taken.noise).sum(1) / when.width
        return float(alone.var()), float(mean_matching(taken, when, bent).var())

    (coarse, coarse_both), (fine, fine_both) = variances(4), variances(64)
    assert fine / coarse > 10.0
    assert fine_both / coarse_both < 1.5


# --- adjoints


def test_the_terminal_adjoint_is_the_gradient_of_the_tilt():
    """``∇(−log p + log φ̂)`` for Gaussians, ``φ̂`` given by a control ``û = σᵀ∇log φ̂``."""
    other, x = Gaussian(MEAN, 1.7 * COVARIANCE), torch.randn(6, 2, dtype=torch.float64)
    reference = DriftProcess(lambda t, x: -x, SIGMA)
    for direction in (FORWARD, BACKWARD):
        chain = Chain(reference, GRID.times(1.0), direction, EulerMaruyama(), x)
        found = terminal_adjoint(chain, x, START.log_density, lambda t, x: score(other, x) @ SIGMA)
        torch.testing.assert_close(found, score(other, x) - score(START, x))


def score(law: Gaussian, x: Tensor) -> Tensor:
    return -torch.linalg.solve(law.covariance, (x - law.mean).mT).mT


@pytest.mark.parametrize(
    "base", [None, lambda t, x: 0.5 * x - 1.0, lambda t, x: x.sin()], ids=["none", "affine", "sine"]
)
def test_the_optimum_of_the_chain_is_a_fixed_point_of_every_lean_adjoint(base):
    """Whatever control is counted as part of the drift: the optimal control is the conditional mean of the targets."""
    process, grid = OrnsteinUhlenbeck(RATE, SIGMA), TimeGrid.uniform(8)
    running, terminal = Quadratic(0.3 * torch.eye(2).double()), Quadratic(torch.eye(2).double(), tensor([1.0, -0.5]))
    problem = ControlProblem(process, START, lambda t, x: running(x), lambda x: terminal(x))
    optimum = ChainRiccati(process, running, terminal, grid, ExactTransition()).control
    n, worst = 20_000, []
    for shift in (0.0, 0.1):
        paths = PathMeasure(process, lambda t, x, s=shift: optimum(t, x) + s * x, START, grid=grid).sample(n, seed=3)
        errors = paths.v - adjoint_targets(paths.chain, lean_adjoint(paths, problem.costs, base=base))
        features = torch.cat([torch.ones_like(paths.x[:-1, :, :1]), paths.x[:-1]], 2)
        each = torch.einsum("kbf,kbd->kbfd", features, errors)
        worst.append(float((each.mean(1) / (each.std(1) / math.sqrt(n))).abs().max()))
    assert worst[0] < 4.5
    assert worst[1] > 8.0


def test_retraced_paths_have_the_drift_of_the_reference():
    """``−b + σû = b``, for one time and for a time a row, and under a matrix σ."""
    reference, x = REFERENCES["user drift, Euler"], torch.randn(7, 2, dtype=torch.float64)
    for t in (0.4, torch.linspace(0.1, 1.2, 7, dtype=torch.float64)):
        retraced = ReversalControl(reference)(t, x)
        drift = blown(t, x)
        torch.testing.assert_close(retraced @ SIGMA.mT - drift, drift)


# --- many half-bridges


def affine(values: Tensor) -> Tensor:
    """Slope and offset of an affine map from its values at 0 and 1."""
    return torch.stack([values[1, 0] - values[0, 0], values[0, 0]])


def taken_back(chain: Chain, controls: Tensor, mean: Tensor, variance: Tensor, form: str) -> Tensor:
    """The other direction's affine control in each interval, exactly, for a Gaussian chain in one dimension."""
    back, found = replace(chain, direction=Direction(-chain.direction.value)), torch.empty_like(controls)
    ends = tensor([[0.0], [1.0]])
    for j in range(chain.length):
        u, width, root = controls[chain.interval(j)], chain.root_durations[j], chain.root(j).values
        slope, offset = affine(ends + chain.move(j, ends, u[0] * ends + u[1]))
        after, spread = slope * mean + offset, slope**2 * variance + root.square().squeeze()
        if form == "nearest chain":
            starts = mean + variance * slope / spread * (ends - after)
            values = back.shift(chain.length - 1 - j, ends, starts) / width
        else:
            values = -root * (ends - after) / (spread * width) - (u[0] * ends + u[1])
        found[chain.interval(j)] = affine(values)
        mean, variance = after, spread
    return found


@pytest.mark.parametrize(("form", "least", "most"), [("nearest chain", 0.0, 0.02), ("drift form", 0.3, 1.0)])
def test_errors_of_the_nearest_chain_do_not_add_up(form, least, most):
    """Nats to the bridge after 64 half-bridges of 30 steps, without networks: why ``h`` has ``u`` at the start."""
    reference, times = OrnsteinUhlenbeck(1.2, 1.0), TimeGrid.uniform(30).times(1.0)
    start, end = (tensor([-1.0]), tensor([[0.5]])), (tensor([1.0]), tensor([[1.5]]))
    forward, backward = (Chain(reference, times, way, ExactTransition(), times) for way in (FORWARD, BACKWARD))
    u = torch.zeros(30, 2, dtype=torch.float64)
    for _ in range(32):
        u_hat = taken_back(forward, u, start[0][0], start[1][0, 0], form)
        u = taken_back(backward, u_hat, end[0][0], end[1][0, 0], form)
    exact, ends = GaussianCoupling(*start, *end, reference), tensor([[0.0], [1.0]])
    mean, variance, nats = start[0][0], start[1][0, 0], 0.0
    for k, t in enumerate(times[:-1].tolist()):
        gain, shift = exact.forward_gain(t)
        slope, offset = u[k, 0] - gain[0, 0], u[k, 1] - shift[0]
        nats += 0.5 / 30 * float(slope**2 * variance + (slope * mean + offset) ** 2)
        slope, offset = affine(ends + forward.move(k, ends, u[k, 0] * ends + u[k, 1]))
        mean, variance = slope * mean + offset, slope**2 * variance + forward.root(k).values.square().squeeze()
    assert least <= nats < most
    if form == "nearest chain":
        assert abs(float(mean) - 1.0) < 1e-6


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 1e6, 1e16])
def test_the_share_of_the_error_that_half_steps_leave(spread):
    """Advice that is followed ends the warning, and no noise is too small for it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_slow("IPF", spread, 20, "20 half-steps", lambda count: f"half_steps={math.ceil(count)}", "or not")
    if spread <= 1.0:
        assert not found
        return
    text = str(found[0].message)
    rate = 2 * spread / (1 + math.sqrt(1 + 4 * spread**2))
    assert f"leave {rate**20:.0%}" in text
    assert ("half_steps=" in text) == (spread == 10.0)
    if spread == 10.0:
        steps = int(re.search(r"half_steps=(\d+)", text)[1])
        assert rate**steps <= 0.1 < rate ** (steps - 1)
    factor = float(re.search(r"σ (\S+) times", text)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_slow("IPF", spread / factor**2, 20, "", str, "")


def test_a_class_is_found_by_the_name_that_it_had_in_earlier_files():
    assert registered("Retraced") is ReversalControl
