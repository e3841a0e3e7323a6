"""Losses of control learning: against finite differences, against each other, against Riccati and quadrature."""

import dataclasses
import math

import pytest
import torch
from quadratic import Feedback, Quadratic, isotropic, small
from torch import Tensor, nn

from sbridge.controls import MLP, Control, NetworkControl, seeded_control
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.laws import Gaussian, Point
from sbridge.measures import Estimate, PathMeasure, Paths, importance_weights
from sbridge.objectives import (
    adjoint_targets,
    control_objective,
    control_values,
    cross_entropy,
    lean_adjoint,
    log_variance,
    log_weight,
    moment,
    relative_entropy,
    residual,
)
from sbridge.problems import BridgeCorrection, ControlProblem, Costs, StoppingSet
from sbridge.processes import BrownianMotion, DriftProcess
from sbridge.random import generator
from sbridge.simulation import Backprop, Detached, GradientMethod, ReversibleAdjoint, endpoint
from sbridge.solvers.control.entropy import energy_rate
from sbridge.time import TimeGrid

SIGMAS = {
    "scalar": 0.7,
    "diagonal": torch.tensor([0.6, 1.3]),
    "matrix": torch.tensor([[1.0, 0.0], [0.4, 0.8]]),
    "of time": lambda t: 0.5 + t,
}


def network(dim: int = 2, seed: int = 0) -> NetworkControl:
    """A control with an output that is not zero, in float64."""
    control = seeded_control(MLP(width=8, depth=2), dim, 1.0, 1.0, generator(seed)).double()
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(seed + 1), dtype=torch.float64))
    return control


def measure(problem: ControlProblem, control: object, steps: int) -> PathMeasure:
    return PathMeasure(problem.process, control, problem.start, grid=TimeGrid.uniform(steps))  # type: ignore[arg-type]


def wave(sigma: object) -> ControlProblem:
    """Nothing linear, nothing symmetric; the running cost depends on time."""
    process = DriftProcess(lambda t, x: x.sin() - 0.3 * x.flip(1) ** 2, sigma, 1.0, 2)  # type: ignore[arg-type]
    start = Gaussian(torch.zeros(2, dtype=torch.float64), 0.3 * torch.eye(2, dtype=torch.float64))
    return ControlProblem(process, start, lambda t, x: (1.0 + t) * x.square().sum(1), lambda x: (x - 0.5).cosh().sum(1))


def directional(control: nn.Module, loss: Tensor) -> tuple[list[Tensor], float]:
    """A direction in parameter space and the derivative of ``loss`` along it."""
    parameters = list(control.parameters())
    along = [torch.randn(p.shape, generator=generator(7 + i), dtype=p.dtype) for i, p in enumerate(parameters)]
    slopes = torch.autograd.grad(loss, parameters)
    return along, float(sum((a * s).sum() for a, s in zip(along, slopes, strict=True)))


def difference(control: nn.Module, along: list[Tensor], value: object, step: float = 1e-5) -> float:
    """The central difference of ``value()`` along the direction."""
    found = []
    for sign in (1.0, -2.0):
        with torch.no_grad():
            for parameter, a in zip(control.parameters(), along, strict=True):
                parameter.add_(sign * step * a)
        found.append(float(value()))  # type: ignore[operator]
    with torch.no_grad():
        for parameter, a in zip(control.parameters(), along, strict=True):
            parameter.add_(step * a)
    return (found[0] - found[1]) / (2 * step)


# --- pathwise gradients


@pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)
def test_backpropagation_is_the_derivative_of_the_objective(sigma: object) -> None:
    problem, control = wave(sigma), network()

    def value(gradient: GradientMethod) -> Tensor:
        chain = measure(problem, control, 12)
        return relative_entropy(chain.simulate(chain.starts(16, seed=1), seed=1, gradient=gradient), problem.costs)

    along, slope = directional(control, value(Backprop()))
    assert slope == pytest.approx(difference(control, along, lambda: value(Detached())), rel=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)
def test_the_reversible_adjoint_is_backpropagation_is_the_derivative(sigma: object) -> None:
    problem, control = wave(sigma), network()
    x0 = measure(problem, control, 12).starts(16, seed=1)
    noise = torch.randn(12, 16, 2, generator=generator(2), dtype=torch.float64)
    times = TimeGrid.refined(12).times(1.0)

    def value(gradient: GradientMethod) -> Tensor:
        end, cost = endpoint(problem.process, control, x0, times, noise, gradient, energy_rate(problem.costs))
        return (cost + problem.costs.end(end)).mean()

    along, slope = directional(control, value(ReversibleAdjoint()))
    assert slope == pytest.approx(directional(control, value(Backprop()))[1], rel=1e-10)
    assert slope == pytest.approx(difference(control, along, lambda: value(Detached())), rel=1e-6)


def test_the_adjoint_scheme_and_the_chain_have_one_limit() -> None:
    case = small(200)

    def control(t: float | Tensor, x: Tensor) -> Tensor:
        return 1.0 - 1.5 * x

    chain = measure(case.problem, control, 200)
    euler = Estimate.of(control_objective(chain.sample(4000, seed=1), case.problem.costs))
    x0 = chain.starts(4000, seed=2)
    noise = torch.randn(200, 4000, 2, generator=generator(2), dtype=torch.float64)
    times = chain.grid.times(1.0)
    rate = energy_rate(case.problem.costs)
    end, cost = endpoint(case.problem.process, control, x0, times, noise, Detached(), rate)
    heun = Estimate.of((cost + case.problem.costs.end(end)).detach())
    error = math.hypot(euler.standard_error, heun.standard_error)
    assert abs(euler.value - heun.value) < 4 * error + 0.01 * abs(heun.value)


# --- adjoint matching


def full_adjoint(chain: PathMeasure, x: Tensor, costs: Costs) -> Tensor:
    """``∇_{x_0}`` of the action along the controlled path."""
    x = x.clone().requires_grad_()
    paths = chain.simulate(x, seed=5, gradient=Backprop())
    return torch.autograd.grad(control_objective(paths, costs).sum(), x)[0]


def test_the_lean_adjoint_is_the_full_one_in_expectation_at_the_optimum_and_only_there() -> None:
    case = small()
    costs, n = case.problem.costs, 40_000
    for control, equal in ((case.optimal, True), (Feedback(-0.5 * case.optimal.gains), False)):
        chain = measure(case.problem, control, case.steps)
        x = chain.starts(n, seed=5)
        full = full_adjoint(chain, x, costs)
        gap = lean_adjoint(chain.simulate(x, seed=5), costs)[0] - full
        score = gap.mean(0).abs() / (gap.std(0) / math.sqrt(n))
        assert bool((score < 4).all()) is equal, score


@pytest.mark.parametrize("base", [None, lambda t, x: (x + t).sin().flip(1)], ids=["none", "sine"])
def test_the_lean_adjoint_is_the_gradient_of_the_costs_along_the_uncontrolled_step_map(base: Control | None) -> None:
    """With the noise and control values held fixed, the path is a function of its first state; a base is a drift."""
    problem, control = wave(SIGMAS["matrix"]), network()
    paths = measure(problem, control, 12).sample(16, seed=1)
    x = first = paths.x[0].clone().requires_grad_()
    total, chain = torch.zeros(16, dtype=torch.float64), paths.chain
    for k, width in enumerate(chain.root_durations):
        total = total + width**2 * problem.costs.rate(chain.step_times[k], x)
        kept = torch.zeros_like(x) if base is None else base(chain.step_times[k], x)
        total = total + width**2 * (kept * paths.v[k]).sum(1)
        x = chain.push(k, x, width * (paths.v[k] + kept - kept.detach()) + paths.noise[k])
    (expected,) = torch.autograd.grad((total + problem.costs.end(x)).sum(), first)
    torch.testing.assert_close(lean_adjoint(paths, problem.costs, base=base)[0], expected, rtol=1e-10, atol=1e-10)


def test_the_fixed_point_of_adjoint_matching_is_the_riccati_gain_of_the_chain() -> None:
    """In a linear problem conditional means are the path without noise."""
    case = small()
    chain = measure(case.problem, case.optimal, case.steps)
    starts = chain.starts(1, seed=0)
    steps = chain.chain(starts)
    x, states, controls = starts, [starts], []
    for k in range(case.steps):
        controls.append(case.optimal(steps.step_times[k], x))
        x = x + steps.move(k, x, controls[-1])
        states.append(x)
    quiet = Paths(torch.stack(states), torch.zeros(case.steps, 1, 2, dtype=torch.float64), torch.stack(controls), steps)
    adjoint = lean_adjoint(quiet, case.problem.costs)
    targets = adjoint_targets(steps, adjoint)
    torch.testing.assert_close(targets, quiet.v, rtol=1e-12, atol=1e-12)
    assert float((quiet.v - targets).square().max()) < 1e-20
    # One knot earlier would be off by O(Δ).
    earlier = adjoint_targets(steps, torch.cat([adjoint[:1], adjoint[:-1]]))
    assert float((earlier - quiet.v).norm() / quiet.v.norm()) > 0.05


# --- likelihood ratios


def test_log_variance_has_twice_the_gradient_of_relative_entropy_in_expectation() -> None:
    case, control = small(8), network()
    chain, gaps, size = measure(case.problem, control, 8), [], 0.0
    parameters = [control.network.last.weight, control.network.last.bias]  # type: ignore[union-attr, attr-defined]
    for batch in range(24):
        x = chain.starts(4096, seed=batch)
        still = chain.simulate(x, seed=batch)
        loss = log_variance(still, case.problem.costs, control_values(control, still))
        pathwise = relative_entropy(chain.simulate(x, seed=batch, gradient=Backprop()), case.problem.costs)
        pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(pathwise, parameters), strict=True)
        both = torch.stack([torch.cat([side.flatten() for side in pair]) for pair in zip(*pairs, strict=True)])
        gaps.append(both[0] - 2 * both[1])
        size += float(both[1].norm()) / 24
    stacked = torch.stack(gaps)
    error = stacked.std(0) / math.sqrt(len(stacked))
    assert bool((stacked.mean(0).abs() < 4.5 * error).all())
    assert float(error.norm()) < 0.1 * size


@pytest.mark.parametrize("steps", [10, 40])
def test_weights_under_any_control_give_the_value_of_the_tilted_chain(steps: int) -> None:
    case = small(steps)
    _, best, tilted = case.riccati()
    for control in (None, network(), case.optimal):
        paths = measure(case.problem, control, steps).sample(20_000, seed=3)
        weights = importance_weights(log_weight(paths, case.problem.costs))
        error = math.sqrt(1 / weights.effective_sample_size - 1 / 20_000)
        assert abs(-weights.log_mean - tilted) < 4 * error
        top = Estimate.of(-log_weight(paths, case.problem.costs))
        assert top.value > best - 4 * top.standard_error
        plain = Estimate.of(control_objective(paths, case.problem.costs))
        assert abs(plain.value - top.value) < 4 * math.hypot(plain.standard_error, top.standard_error)
    assert abs(top.value - best) < 4 * top.standard_error


def test_known_values_of_the_benchmark_problems() -> None:
    for case, best, tilted in (
        (isotropic(20, 0.2, 0.2, 0.1, 50), 5.48952, 5.47216),
        (isotropic(20, 1.0, 1.0, 0.5, 50), 27.38152, 26.94075),
        (isotropic(20, 1.0, 1.0, 0.5, 150), 27.30506, 27.15581),
    ):
        assert case.riccati()[1:] == pytest.approx((best, tilted), abs=1e-5)


def test_the_residual_becomes_constant_at_the_optimum_as_steps_shrink() -> None:
    spreads = []
    for steps in (10, 40, 160):
        case = small(steps)
        paths = measure(case.problem, case.optimal, steps).sample(4000, seed=1)
        spreads.append(float(log_variance(paths, case.problem.costs, paths.v)))
        other = measure(case.problem, None, steps).sample(4000, seed=1)
        u = control_values(case.optimal, other)
        assert float(residual(other, case.problem.costs, u).var()) < 4 * spreads[-1] + 1e-3
    slope = math.log(spreads[0] / spreads[2]) / math.log(16)
    assert 0.8 < slope < 1.2, spreads


def test_each_step_has_its_own_time_in_costs_and_controls() -> None:
    """``f = t`` on unequal steps: the sum at left ends; and a control ``u = t``, in paths and in its values on them."""
    problem = ControlProblem(BrownianMotion(1.0, horizon=2.0), Point(torch.zeros(1, dtype=torch.float64)), _time)

    def control(t: float | Tensor, x: Tensor) -> Tensor:
        return torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1).expand(x.shape)

    grid = TimeGrid.refined(7)
    paths = PathMeasure(problem.process, control, problem.start, grid=grid).sample(3, seed=0)
    times = grid.times(2.0)
    spans = times.diff()
    torch.testing.assert_close(paths.v[:, 0, 0], times[:-1])
    torch.testing.assert_close(control_values(control, paths), paths.v)
    expected = (spans * (times[:-1] + 0.5 * times[:-1].square())).sum()
    torch.testing.assert_close(control_objective(paths, problem.costs), expected.expand(3))


def test_paths_that_are_constants_carry_no_graph() -> None:
    case, control = small(), network()
    paths = measure(case.problem, control, case.steps).sample(8, seed=0)
    assert not any(part.requires_grad for part in (paths.x, paths.v, paths.noise))
    assert not lean_adjoint(paths, case.problem.costs).requires_grad
    assert control_values(control, paths).requires_grad


def _time(t: float | Tensor, x: Tensor) -> Tensor:
    return torch.full_like(x[:, 0], float(t))


def test_cross_entropy_and_moment_are_stationary_at_the_optimum() -> None:
    case = small(40)
    optimal = case.optimal
    gains = optimal.gains.clone()
    paths = measure(case.problem, Feedback(0.8 * gains), 40).sample(40_000, seed=2)
    value = torch.tensor(case.riccati()[2], dtype=torch.float64)

    def losses(factor: float) -> tuple[float, float]:
        u = control_values(Feedback(factor * gains), paths)
        costs = case.problem.costs
        return float(cross_entropy(paths, costs, u)), float(moment(paths, costs, u, value))

    for low, middle, high in zip(losses(0.9), losses(1.0), losses(1.1), strict=True):
        assert middle < low
        assert middle < high


def test_a_moment_loss_is_the_variance_at_its_best_offset() -> None:
    case = small()
    paths = measure(case.problem, network(), case.steps).sample(64, seed=2)
    costs, u = case.problem.costs, paths.v
    offset = -residual(paths, costs, u).mean()
    torch.testing.assert_close(moment(paths, costs, u, offset) * 64 / 63, log_variance(paths, costs, u))


# --- stopping


WELL = DriftProcess(lambda t, x: -4.0 * x * (x.square() - 1.0), 1.0, 1.0, 1)


def well(correction: BridgeCorrection | None = None) -> ControlProblem:
    def one(t: float | Tensor, x: Tensor) -> Tensor:
        return torch.ones_like(x[:, 0])

    return ControlProblem(WELL, Point(torch.tensor([-1.0])), one, None, StoppingSet(lambda x: x[:, 0], correction))


def test_the_value_of_the_killed_well_with_and_without_the_correction() -> None:
    for correction, value, band in ((None, 0.92244, 0.0), (BridgeCorrection(), 0.91107, 0.002)):
        problem = well(correction)
        paths = measure(problem, None, 150).sample(20_000, seed=1)
        assert problem.stopping is not None
        alive = problem.stopping.alive(paths, 4)
        weights = importance_weights(log_weight(paths, problem.costs, alive))
        error = math.sqrt(1 / weights.effective_sample_size - 1 / 20_000)
        assert abs(-weights.log_mean - value) < 4 * error + band
        if correction is None:
            late = Estimate.of(control_objective(paths, problem.costs, alive))
            assert abs(late.value - 0.940) < 4 * late.standard_error + 0.0005


def test_corrected_hits_of_brownian_motion_have_the_right_probability_on_any_grid() -> None:
    """Reflection principle: ``P(max_t l(X_t) ≥ 0) = 2Φ(l_0/|σᵀ∇l|)`` for a linear level ``l``."""
    sigma, normal, n = torch.tensor([[1.0, 0.0], [0.7, 0.5]]), torch.tensor([0.8, -1.5]), 40_000
    process = BrownianMotion(sigma)
    stopping = StoppingSet(lambda x: x @ normal - 0.6, BridgeCorrection())
    width = float((sigma.mT @ normal).norm())
    expected = 1.0 + math.erf(-0.6 / width / math.sqrt(2.0))
    for steps in (1, 5):
        paths = PathMeasure(process, None, Point(torch.zeros(2)), grid=TimeGrid.uniform(steps)).sample(n, seed=2)
        share = 1.0 - float(stopping.alive(paths, 3)[-1].double().mean())
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_stopped_weights_do_not_depend_on_the_control_that_sampled() -> None:
    problem = well()
    paths = measure(problem, lambda t, x: torch.full_like(x, 1.0), 150).sample(20_000, seed=1)
    assert problem.stopping is not None
    alive = problem.stopping.alive(paths, 0)
    weights = importance_weights(log_weight(paths, problem.costs, alive))
    error = math.sqrt(1 / weights.effective_sample_size - 1 / 20_000)
    assert abs(-weights.log_mean - 0.92244) < 4 * error


def test_nothing_after_the_hitting_time_counts() -> None:
    problem = dataclasses.replace(well(), terminal_cost=lambda x: 3.0 * x[:, 0])
    control = network(1)
    paths = PathMeasure(WELL, control, problem.start, grid=TimeGrid.uniform(40)).sample(200, seed=1)
    assert problem.stopping is not None
    alive = problem.stopping.alive(paths, 0)
    expected = []
    for i in range(200):
        states = paths.x[:, i, 0]
        hits = torch.nonzero(states >= 0).flatten()
        last = int(hits[0]) if len(hits) else 40
        energy = sum(float(0.5 * paths.v[k, i].square().sum()) / 40 for k in range(last))
        expected.append(last / 40 + energy + 3.0 * float(states[last]))
    assert 20 < int((~alive[-1]).sum()) < 180
    found = control_objective(paths, problem.costs, alive)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_losses_that_do_not_see_a_hitting_time_refuse() -> None:
    problem = well()
    paths = measure(problem, None, 10).sample(8, seed=0)
    with pytest.raises(UnsupportedError, match="biased with a stopping set: use LogVariance, Moment or CrossEntropy"):
        relative_entropy(paths, problem.costs)
    with pytest.raises(UnsupportedError, match="stopping time moves: with a stopping set use LogVariance"):
        lean_adjoint(paths, problem.costs)


def test_the_correction_needs_a_differentiable_level() -> None:
    problem = dataclasses.replace(well(), stopping=StoppingSet(lambda x: x[:, 0].detach(), BridgeCorrection()))
    paths = measure(problem, None, 10).sample(8, seed=0)
    assert problem.stopping is not None
    with pytest.raises(InvalidInputError, match="differentiable in x"):
        problem.stopping.alive(paths, 0)


# --- problems at the door


def quadratic_with(**parts: object) -> ControlProblem:
    case: Quadratic = small()
    return dataclasses.replace(case.problem, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "error", "said"),
    [
        ({"terminal_cost": lambda x: x.square()}, InvalidInputError, r"shape \(8,\).*got shape \(8, 2\)"),
        ({"terminal_cost": lambda x: x.sum()}, InvalidInputError, r"got shape \(\)"),
        ({"running_cost": lambda t, x: 1.0}, InvalidInputError, "running cost must return one number per row.*float"),
        ({"running_cost": lambda t, x: x[:, 0].log()}, NonFiniteError, "running cost is NaN or infinite at t = 0"),
        ({"terminal_cost": lambda x: 1 / (x[:, 0] - 0.7)}, NonFiniteError, "terminal cost is NaN or infinite"),
        ({"start": Point(torch.zeros(3))}, InvalidInputError, "dimension 2, the start distribution has 3"),
        ({"stopping": StoppingSet(lambda x: x)}, InvalidInputError, r"level must have shape \(batch,\)"),
        ({"stopping": StoppingSet(lambda x: x[:, 0])}, InvalidInputError, "all start states are in the stopping set"),
    ],
)
def test_problems_that_do_not_fit_are_refused(parts: dict[str, object], error: type[Exception], said: str) -> None:
    if "running_cost" in parts and error is NonFiniteError:
        parts = {**parts, "start": Point(torch.tensor([-1.0, 0.0]))}
    with pytest.raises(error, match=said):
        quadratic_with(**parts)


def test_costs_without_a_gradient_are_told_from_constant_ones() -> None:
    x, moments = torch.randn(8, 2, generator=generator(0)), (0.0, 1.0)
    assert Costs(lambda t, y: torch.ones(len(y)), None).refusal(x, moments) is None
    for costs, name in (
        (Costs(lambda t, y: y.detach().square().sum(1)), "running cost"),
        (Costs(None, lambda y: (y > 0).float().sum(1)), "terminal cost"),
    ):
        assert f"The {name} depends on x but has no gradient" in str(costs.refusal(x, moments))
        assert "use LogVariance, Moment or CrossEntropy" in str(costs.refusal(x, moments))


def test_a_point_repeats_itself() -> None:
    point = Point(torch.tensor([1.0, 2.0]))
    assert torch.equal(point.sample(3, generator(0)), torch.tensor([[1.0, 2.0]] * 3))
    for position, said in (
        (torch.zeros(1, 2), "shape"),
        (torch.tensor([math.nan]), "NaN"),
        (torch.tensor([1]), "dtype"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            Point(position)
