"""Simulation: exact laws, orders of convergence, gradients, and what is refused.

A linear chain is a linear map of start and noise. Run on a basis of both it shows mean and covariance of its
end to rounding, so most laws below are checked without any sampling error.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from docs.benchmarks.native import native_euler
from docs.benchmarks.simulation import main, peak_memory, plain_loop, time_simulation
from sbridge.controls import MLP, ScaledControl, seeded_control
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.laws.scaling import AffineScaling
from sbridge.processes import (
    BrownianMotion,
    Chain,
    Direction,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    OrnsteinUhlenbeck,
)
from sbridge.random import NormalNoise
from sbridge.simulation import Backprop, Detached, ReversibleAdjoint, endpoint, propagate, simulate
from sbridge.time import TimeGrid

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD
GRID = TimeGrid((0.0, 0.02, 0.3, 0.31, 0.7, 0.9, 0.99, 1.0))
RATE = torch.tensor([[1.0, 0.6], [-0.4, 0.3]], dtype=torch.float64)
SIGMA = torch.tensor([[0.8, 0.0], [0.5, 1.1]], dtype=torch.float64)
MEAN = torch.tensor([0.7, -0.2], dtype=torch.float64)
MATRIX_OU = OrnsteinUhlenbeck(RATE, SIGMA, MEAN, horizon=1.7)
LINEAR = [BrownianMotion(0.7, 2.0), BrownianMotion(SIGMA), OrnsteinUhlenbeck(-1.3, 0.4, 0.5), MATRIX_OU]


def chain_of(process, grid=GRID, direction=FORWARD, rule=None, dtype=torch.float64):
    rule = rule or ExactTransition()
    return Chain(process, grid.times(process.horizon), direction, rule, torch.empty(0, dtype=dtype))


def affine_end(run, steps, dim=2):
    """``(map, offset, covariance)`` of ``x_end = map x_0 + offset + Σ G_k ξ_k`` from one run on a basis."""
    rows = 1 + dim + steps * dim
    x0, noise = torch.zeros(rows, dim, dtype=torch.float64), torch.zeros(steps, rows, dim, dtype=torch.float64)
    x0[1 : 1 + dim] = torch.eye(dim)
    for k in range(steps):
        first = 1 + dim + k * dim
        noise[k, first : first + dim] = torch.eye(dim)
    end = run(x0, noise)
    columns = end[1:] - end[0]
    return columns[:dim].mT, end[0], columns[dim:].mT @ columns[dim:]


# The chain ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", LINEAR)
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_exact_steps_have_the_exact_law_on_any_grid(process, direction):
    chain = chain_of(process, direction=direction)
    found = affine_end(lambda x0, noise: propagate(chain, None, x0, noise), chain.length)
    law = process.transition(0.0, process.horizon)
    phi, covariance = law.map.expanded(2), law.covariance.expanded(2)
    offset = law.offset.expand(2)
    if direction is BACKWARD:  # x_0 = Φ⁻¹(x_T − k) − Φ⁻¹ (noise)
        phi = torch.linalg.inv(phi)
        offset, covariance = -phi @ offset, phi @ covariance @ phi.mT
    for value, exact in zip(found, (phi, offset, covariance), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("rule", [ExactTransition(), EulerMaruyama()])
def test_states_follow_the_one_step(direction, rule, dtype):
    control = seeded_control(MLP(8, 1), 2, 1.7, 1.0, torch.Generator().manual_seed(0)).to(dtype)
    nn.init.normal_(control.network.last.weight, generator=torch.Generator().manual_seed(1))
    chain = chain_of(MATRIX_OU, direction=direction, rule=rule, dtype=dtype)
    x0 = torch.randn(5, 2, dtype=dtype, generator=torch.Generator().manual_seed(2))
    noise = NormalNoise(3, chain.length, 5, 2, dtype=dtype).stored()
    states, controls = simulate(chain, control, x0, noise)
    assert states.dtype == controls.dtype == dtype
    times = chain.times if direction is FORWARD else chain.times.flip(0)
    assert torch.equal(states[0], x0)
    for j in range(chain.length):
        near, far = sorted((times[j], times[j + 1]))
        span, left = far - near, near
        t = float(times[j])  # where the step starts, either way
        with torch.no_grad():
            u = control(t, states[j])
        push = span.sqrt().to(dtype) * u + noise[j]
        if isinstance(rule, EulerMaruyama):
            drift = direction.value * span.to(dtype) * MATRIX_OU.drift(float(left), states[j])
            expected = states[j] + drift + span.sqrt().to(dtype) * push @ SIGMA.to(dtype).mT
        else:
            law = MATRIX_OU.transition(near, far)
            phi, root, offset = law.map.values.to(dtype), law.root.values.to(dtype), law.offset.to(dtype)
            if direction is FORWARD:
                expected = states[j] @ phi.mT + offset + push @ root.mT
            else:
                expected = (states[j] - offset + push @ root.mT) @ torch.linalg.inv(phi).mT
        torch.testing.assert_close(controls[j], u)
        torch.testing.assert_close(states[j + 1], expected)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("process", LINEAR[2:])
def test_moments_in_standard_errors(process, direction):
    n, chain = 20_000, chain_of(process, TimeGrid.uniform(5), direction)
    x0 = torch.full((n, 2), 0.8, dtype=torch.float64)
    end = propagate(chain, None, x0, NormalNoise(7, 5, n, 2, dtype=torch.float64))
    law = process.transition(0.0, process.horizon)
    phi, covariance = law.map.expanded(2), law.covariance.expanded(2)
    mean = phi @ x0[0] + law.offset.expand(2)
    if direction is BACKWARD:
        phi = torch.linalg.inv(phi)
        mean, covariance = phi @ (x0[0] - law.offset.expand(2)), phi @ covariance @ phi.mT
    assert ((end.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    errors = ((covariance.square() + torch.outer(covariance.diagonal(), covariance.diagonal())) / n).sqrt()
    assert ((torch.cov(end.mT) - covariance).abs() < 4 * errors).all()


def test_the_control_is_called_once_a_step_with_float_times():
    calls = []

    def control(t, x):
        calls.append(t)
        return torch.zeros_like(x)

    seen = []
    for direction in (FORWARD, BACKWARD):
        chain = chain_of(MATRIX_OU, direction=direction)
        calls.clear()
        seen.clear()
        x0 = torch.zeros(3, 2, dtype=torch.float64)
        noise = torch.zeros(chain.length, 3, 2, dtype=torch.float64)
        end = propagate(chain, control, x0, noise, lambda j, x, u: seen.append((j, x, u)))
        times = chain.times if direction is FORWARD else chain.times.flip(0)
        assert all(type(t) is float for t in calls)
        assert calls == times[:-1].tolist()
        assert [j for j, _, _ in seen] == list(range(chain.length + 1))
        assert seen[-1][2] is None
        assert torch.equal(seen[-1][1], end)


def test_stopping_early_is_the_beginning_of_the_whole():
    chain = chain_of(MATRIX_OU)
    x0, noise = torch.randn(4, 2, dtype=torch.float64), NormalNoise(1, chain.length, 4, 2, dtype=torch.float64)
    states, _ = simulate(chain, None, x0, noise)
    for stop in range(chain.length + 1):
        assert torch.equal(propagate(chain, None, x0, noise, stop=stop), states[stop])


def test_stored_and_regenerated_noise_give_the_same_path(dtype):
    process = BrownianMotion(1.0)
    chain = chain_of(process, TimeGrid.uniform(70), dtype=dtype)
    x0, noise = torch.zeros(1030, 2, dtype=dtype), NormalNoise(8, 70, 1030, 2, dtype=dtype)
    stored, regenerated = (simulate(chain, lambda t, x: -x, x0, source) for source in (noise.stored(), noise))
    assert torch.equal(stored[0], regenerated[0])
    assert torch.equal(stored[1], regenerated[1])


def test_many_unequal_steps_are_all_taken_in_float32():
    """Index time is exact: 3000 steps of a refined grid end at the horizon, with its variance."""
    chain = chain_of(BrownianMotion(1.0), TimeGrid.refined(3000), dtype=torch.float32)
    count = []
    propagate(chain, lambda t, x: count.append(t) or torch.ones_like(x), torch.zeros(1, 1), torch.zeros(3000, 1, 1))
    assert len(count) == 3000
    end = propagate(chain, lambda t, x: torch.ones_like(x), torch.zeros(1, 1), torch.zeros(3000, 1, 1))
    assert abs(float(end) - 1.0) < 1e-5


# Orders of convergence ------------------------------------------------------------------------------------------

CURVED = DriftProcess(lambda t, x: torch.sin(3 * x) - x, 1.0)


def coupled_ends(counts, n, seed):
    """Ends of Euler chains of different step counts that are driven by one Brownian path."""
    finest = max(counts)
    increments = NormalNoise(seed, finest, n, 1, dtype=torch.float64).stored() / math.sqrt(finest)
    x0 = torch.full((n, 1), 0.4, dtype=torch.float64)
    ends = {}
    for count in counts:
        noise = increments.unflatten(0, (count, finest // count)).sum(1) * math.sqrt(count)
        ends[count] = propagate(chain_of(CURVED, TimeGrid.uniform(count), rule=EulerMaruyama()), None, x0, noise)
    return ends


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("strong", lambda coarse, fine: (coarse - fine).abs()),
        ("weak", lambda coarse, fine: coarse.square() - fine.square()),
    ],
)
def test_euler_is_of_order_one_with_additive_noise(kind, distance):
    """Slopes between neighbouring levels, with the error bar of the two means behind each."""
    counts, n = [16, 32, 64, 128], 40_000
    ends = coupled_ends(counts, n, seed=2)
    levels = [distance(ends[a], ends[b]).squeeze(1) for a, b in pairwise(counts)]
    # log2 of a ratio of means: the error of the slope by the delta method, means correlated.
    for coarse, fine in pairwise(levels):
        slope = math.log2(abs(coarse.mean() / fine.mean()))
        error = float((coarse / coarse.mean() - fine / fine.mean()).std()) / math.sqrt(n) / math.log(2)
        assert error < 0.1
        assert abs(slope - 1.0) < 3 * error + 0.06, f"{kind} order {slope:.3f} ± {error:.3f}"


def test_reversible_heun_is_of_second_order_on_an_uneven_grid():
    """Error of mean and covariance for time-dependent σ, without sampling: halving every step quarters it."""

    def sigma(t):
        return 0.5 + t

    def rate(t):
        return 1.0 + math.sin(2 * t)

    process = DriftProcess(lambda t, x: -rate(t) * x + math.cos(t), sigma)
    errors = []
    fine = None
    for steps in (1024, 16, 32, 64):
        times = TimeGrid.refined(steps, 1.6).times(1.0)
        *found, covariance = affine_end(
            lambda x0, noise, times=times: endpoint(process, None, x0, times, noise, Detached())[0], steps, dim=1
        )
        law = torch.stack([value.reshape(()) for value in (*found, covariance)])
        fine = law if fine is None else fine
        errors.append((law - fine).abs())
    # The finest grid stands for the limit; it is 256 times nearer to it than the best of the others.
    slopes = torch.log2(torch.stack(errors[1:-1]) / torch.stack(errors[2:]))
    assert ((slopes - 2.0).abs() < 0.12).all(), slopes


@pytest.mark.parametrize(
    "sigma",
    [lambda t: 0.5 + t, lambda t: SIGMA.expand(len(t), 2, 2) * (1 + t[:, None, None])],
    ids=["scalar", "matrix"],
)
def test_a_control_is_a_drift_in_noise_units(sigma):
    """On both routes, for σ that depends on time: the control ``u`` and the drift ``σu`` are the same to rounding."""
    x0 = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = NormalNoise(2, GRID.steps, 6, 2, dtype=torch.float64)
    plain = BrownianMotion(sigma, 1.3)

    def control(t, x):
        return torch.sin(x) + t

    drifting = DriftProcess(lambda t, x: plain.scale(t)(control(t, x)), sigma, 1.3)
    times = GRID.times(1.3)
    pairs = [endpoint(p, u, x0, times, noise, Detached())[0] for p, u in ((plain, control), (drifting, None))]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)
    chains = [chain_of(p, rule=EulerMaruyama()) for p in (plain, drifting)]
    pairs = [propagate(c, u, x0, noise) for c, u in zip(chains, (control, None), strict=True)]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


# Gradients ------------------------------------------------------------------------------------------------------


class Wave(nn.Module):
    """A small smooth control with parameters of its own."""

    def __init__(self, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64).to(dtype))
        self.bias = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64).to(dtype))

    def forward(self, t, x):
        return torch.tanh(x @ self.weight + t * self.bias)


def end_gradients(gradient, dtype, control, parameters, *, grid, n=64, process=None):
    process = process or DriftProcess(lambda t, x: torch.sin(x) - t * x, SIGMA)
    times = grid.times(1.0)
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype).requires_grad_()
    noise = NormalNoise(4, grid.steps, n, 2, dtype=torch.float64).stored().to(dtype)
    end, cost = endpoint(
        process, control, x0, times, noise, gradient, lambda t, x, u: 0.5 * u.square().sum(1) + t * x[:, 0]
    )
    value = (cost + end.square().sum(1) + end[:, 0]).mean()
    return value.detach(), torch.autograd.grad(value, [*parameters, x0])


@pytest.mark.parametrize("grid", [TimeGrid.uniform(50), TimeGrid.refined(60), GRID], ids=["even", "refined", "rough"])
def test_the_adjoint_is_backprop_to_rounding(grid, dtype):
    control = Wave(dtype)
    parameters = list(control.parameters())
    value, adjoint = end_gradients(ReversibleAdjoint(), dtype, control, parameters, grid=grid)
    same, backprop = end_gradients(Backprop(), dtype, control, parameters, grid=grid)
    assert torch.equal(value, same)
    tolerance = {torch.float32: 2e-6, torch.float64: 2e-15}[dtype]
    for a, b in zip(adjoint, backprop, strict=True):
        assert a.dtype == dtype
        assert float((a - b).norm() / b.norm()) < tolerance


def test_the_gradient_is_that_of_finite_differences():
    control = Wave(torch.float64)
    parameters = list(control.parameters())
    _, gradient = end_gradients(ReversibleAdjoint(), torch.float64, control, parameters, grid=GRID)
    step = 1e-6
    for parameter, exact in zip(parameters, gradient, strict=False):
        for index in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                values.append(end_gradients(Backprop(), torch.float64, control, parameters, grid=GRID)[0])
                with torch.no_grad():
                    parameter.view(-1)[index] -= sign * step
            assert abs(float(values[0] - values[1]) / (2 * step) - float(exact.view(-1)[index])) < 1e-8


def test_the_running_cost_is_the_trapezoid_rule():
    """Of a function of time alone on an uneven grid, and zero when none is asked for."""
    times = GRID.times(2.0)
    x0, noise = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(GRID.steps, 3, 2, dtype=torch.float64)
    process = BrownianMotion(1.0, 2.0)
    _, cost = endpoint(
        process, None, x0, times, noise, Detached(), lambda t, x, u: torch.full_like(x[:, 0], math.exp(t))
    )
    torch.testing.assert_close(cost, torch.trapezoid(times.exp(), times).expand(3))
    _, cost = endpoint(process, None, x0, times, noise, Detached())
    assert torch.equal(cost, torch.zeros(3, dtype=torch.float64))


def saved_for_backward(gradient, steps):
    """Bytes that autograd keeps between the two passes."""
    control, kept = Wave(torch.float32), {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    x0 = torch.zeros(64, 2)
    noise = NormalNoise(1, steps, 64, 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        end, _ = endpoint(BrownianMotion(1.0), control, x0, TimeGrid.uniform(steps).times(1.0), noise, gradient)
    assert end.requires_grad
    return sum(tensor.nbytes for tensor in kept.values())


def test_only_backprop_keeps_more_for_more_steps():
    assert saved_for_backward(ReversibleAdjoint(), 200) == saved_for_backward(ReversibleAdjoint(), 10)
    assert saved_for_backward(Backprop(), 200) > 10 * saved_for_backward(Backprop(), 10)


def test_gradient_through_a_kept_path_is_the_adjoint_of_the_chain():
    """A linear chain with control ``θ``: the end moves by the sum of the control's pushes."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    chain, x0 = chain_of(MATRIX_OU), torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    noise = NormalNoise(2, chain.length, 4, 2, dtype=torch.float64)
    states, controls = simulate(chain, lambda t, x: theta.expand_as(x), x0, noise, Backprop())
    (by_theta, by_start) = torch.autograd.grad(states[-1, 0, 0], [theta, x0])
    expected = torch.zeros(2, dtype=torch.float64)
    for j in range(chain.length):
        rest = MATRIX_OU.transition(chain.times[j + 1], 1.7).map.values
        expected += (rest @ chain.root(j).values)[0] * chain.root_durations[j]
    torch.testing.assert_close(by_theta, expected)
    torch.testing.assert_close(by_start[0], MATRIX_OU.transition(0.0, 1.7).map.values[0])
    assert controls.requires_grad
    assert not any(part.requires_grad for part in simulate(chain, lambda t, x: theta.expand_as(x), x0, noise))


def test_parameters_inside_dataclasses_are_found_and_hidden_ones_refused():
    inner = Wave(torch.float64)
    scaling = AffineScaling(torch.zeros(2, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64))
    parameters = list(inner.parameters())
    results = [
        end_gradients(gradient, torch.float64, control, parameters, grid=GRID)[1]
        for gradient, control in [
            (Backprop(), ScaledControl(inner, scaling)),
            (ReversibleAdjoint(), ScaledControl(inner, scaling)),
            (ReversibleAdjoint(tuple(parameters)), lambda t, x: ScaledControl(inner, scaling)(t, x)),
        ]
    ]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with pytest.raises(InvalidInputError, match=r"shape \(2, 2\).*parameters=tuple"):
        end_gradients(
            ReversibleAdjoint((parameters[1],)), torch.float64, lambda t, x: inner(t, x), parameters, grid=GRID
        )
    # A tensor computed from a leaf may be named in the leaf's place.
    made = 2 * parameters[0]
    _, (found, _) = end_gradients(
        ReversibleAdjoint((made,)), torch.float64, lambda t, x: torch.tanh(x @ made), [made], grid=GRID
    )
    _, (exact, _) = end_gradients(Backprop(), torch.float64, lambda t, x: torch.tanh(x @ made), [made], grid=GRID)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)


# What is refused, and what is left alone ------------------------------------------------------------------------


def small(steps=GRID.steps, batch=3, dim=2, dtype=torch.float64):
    return torch.zeros(batch, dim, dtype=dtype), torch.zeros(steps, batch, dim, dtype=dtype)


@pytest.mark.parametrize("where", ["control", "state"])
@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_the_first_value_that_is_not_finite_is_located(where, direction):
    x0, noise = small()
    chain = chain_of(BrownianMotion(1.0), direction=direction)
    moment = chain.step_times[3]

    def control(t, x):
        u = torch.zeros_like(x)
        u[1] = float("nan") if t == moment else 0.0
        return u

    if where == "state":
        noise[2, 1] = float("inf")
    time = f"{0.31 if direction is FORWARD else 0.7:g}"
    with pytest.raises(NonFiniteError, match=rf"the {where} is NaN.* step 3 \(t = {time}\) in 1 of 3 rows"):
        propagate(chain, control if where == "control" else None, x0, noise)


def test_the_end_of_the_heun_route_must_be_finite_too():
    x0, noise = small()
    process = DriftProcess(lambda t, x: x**3 * 1e200 if t > 0.3 else x, 1.0)
    with pytest.raises(NonFiniteError, match=r"step 4 \(t = 0.7\)"):
        endpoint(process, None, x0 + 1.0, GRID.times(1.0), noise, Detached())
    noise[-1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 7 \(t = 1\)"):
        endpoint(BrownianMotion(1.0), None, x0, GRID.times(1.0), noise, Detached())


def test_a_control_that_draws_numbers_is_suspected():
    draws = iter([float("nan"), 0.0, 0.0])
    chain = chain_of(BrownianMotion(1.0), TimeGrid.uniform(1))
    with pytest.raises(NonFiniteError, match="draw numbers"):
        propagate(chain, lambda t, x: torch.full_like(x, next(draws)), *small(1))


@pytest.mark.parametrize(
    ("x0", "noise", "match"),
    [
        (torch.zeros(3, dtype=torch.float64), torch.zeros(7, 3, 2, dtype=torch.float64), r"\(batch, dim\)"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(7, 3, 2, dtype=torch.int64), "floating point"),
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(6, 3, 2, dtype=torch.float64), r"7 steps .* \(7, 3, 2\)"),
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(7, 3, 2), "float32; 7 steps"),
        (torch.zeros(3, 2, dtype=torch.float64), NormalNoise(0, 7, 4, 2, dtype=torch.float64), r"\(7, 4, 2\)"),
        (torch.zeros(3, 2), torch.zeros(7, 3, 2), "like=x0"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit(x0, noise, match):
    with pytest.raises(InvalidInputError, match=match):
        propagate(chain_of(BrownianMotion(1.0)), None, x0, noise)


@pytest.mark.parametrize(
    "control",
    [lambda t, x: x[:1], lambda t, x: 0.0, lambda t, x: x[:, :1], lambda t, x: x.to(torch.complex128)],
    ids=["one row", "a number", "one column", "complex"],
)
def test_controls_that_return_something_else(control):
    x0, noise = small()
    with pytest.raises(InvalidInputError, match="a control maps"):
        propagate(chain_of(BrownianMotion(1.0)), control, x0, noise)
    with pytest.raises(InvalidInputError, match="a control maps"):
        endpoint(BrownianMotion(1.0), control, x0, GRID.times(1.0), noise, Detached())


def test_other_bad_arguments():
    x0, noise = small()
    chain = chain_of(BrownianMotion(1.0))
    with pytest.raises(UnsupportedError, match="keeps no path"):
        simulate(chain, None, x0, noise, ReversibleAdjoint())
    for stop in (-1, 8):
        with pytest.raises(InvalidInputError, match="0 … 7"):
            propagate(chain, None, x0, noise, stop=stop)
    for times in (GRID.times(1.0).flip(0), GRID.times(1.0)[:1]):
        with pytest.raises(InvalidInputError, match="times must increase"):
            endpoint(BrownianMotion(1.0), None, x0, times, noise, Detached())
    with pytest.raises(InvalidInputError, match="running cost"):
        endpoint(BrownianMotion(1.0), None, x0, GRID.times(1.0), noise, Detached(), lambda t, x, u: x)
    with pytest.raises(UnsupportedError, match="ExactTransition needs"):
        propagate(chain_of(CURVED), None, x0, noise)


def test_a_narrower_control_leaves_the_states_as_wide_as_they_were():
    x0, noise = small()
    for process in (BrownianMotion(1.0), BrownianMotion(SIGMA)):
        assert propagate(chain_of(process), lambda t, x: x.float(), x0, noise).dtype == torch.float64
        end, cost = endpoint(process, lambda t, x: x.float(), x0, GRID.times(1.0), noise)
        assert end.dtype == cost.dtype == torch.float64


def test_global_random_state_and_grad_mode_stay_as_they_are(dtype):
    before = torch.random.get_rng_state()
    control = Wave(dtype)
    x0, noise = torch.zeros(3, 2, dtype=dtype), NormalNoise(0, GRID.steps, 3, 2, dtype=dtype)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            simulate(chain_of(BrownianMotion(1.0), dtype=dtype), control, x0, noise)
            for gradient in (Detached(), Backprop(), ReversibleAdjoint()):
                end, _ = endpoint(BrownianMotion(1.0), control, x0, GRID.times(1.0), noise, gradient)
                assert end.requires_grad is not isinstance(gradient, Detached)
                if not isinstance(gradient, Detached):
                    end.backward(torch.ones_like(end))
            assert torch.is_grad_enabled() is mode
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_benchmark_measures_what_it_says():
    taken = time_simulation(4, 2, 3, repetitions=1)
    assert set(taken) == {"drift", "noise", "loop", "ours"}
    assert all(value > 0 for value in taken.values())
    network, x0 = seeded_control(MLP(), 2, 1.0, 1.0, torch.Generator().manual_seed(0)), torch.zeros(4, 2)
    states, controls, noise = plain_loop(network, x0, 3)
    ours = simulate(chain_of(BrownianMotion(1.0), TimeGrid.uniform(3), dtype=torch.float32), network, x0, noise)
    torch.testing.assert_close(ours, (states, controls))
    for hint in (None, 1 / 3):
        assert native_euler(network, x0, 3, 0, hint).shape == (4, 4, 2)
    total, beyond = peak_memory("adjoint", 2)
    assert total > beyond > 0
    with pytest.raises(InvalidInputError, match="no arguments"):
        main(["memory"])
