"""Flows along bridge time: orders, directions, where the velocity may be asked for, and what stops them."""

import math

import pytest
import torch

from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError
from sbridge.simulation.ode import DormandPrince, Euler, Heun, RungeKutta4, flow, flow_with_rate

METHODS = {"euler": (Euler(), 1), "heun": (Heun(), 2), "rk4": (RungeKutta4(), 4)}


def uneven(a, b, steps):
    s = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    return a + (b - a) * 0.5 * (s + s.square())


def swirl(t, x):
    """Nonlinear, of both coordinates, with a solution in closed form: |x| e^{sin t}, turned by t²/2."""
    return math.cos(t) * x + t * torch.stack([-x[:, 1], x[:, 0]], 1)


def carried(x, a, b):
    angle = 0.5 * (b * b - a * a)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).to(x)
    return math.exp(math.sin(b) - math.sin(a)) * x @ turn.mT


@pytest.mark.parametrize("ends", [(0.2, 1.4), (1.4, 0.2)])
@pytest.mark.parametrize("name", METHODS)
def test_fixed_steps_have_their_order_and_cost(name, ends):
    method, order = METHODS[name]
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    errors = []
    for steps in (16, 32):
        found = flow(swirl, x, uneven(*ends, steps), method)
        assert found.evaluations == method.stages * steps
        errors.append(float((found.x - carried(x, *ends)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)
    assert errors[1] > 0


@pytest.mark.parametrize("ends", [(0.0, 1.4), (1.4, 0.0)])
def test_adaptive_method_meets_tolerance_inside_the_interval(ends):
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    seen = []

    def watched(t, y):
        seen.append(t)
        return swirl(t, y)

    found = flow(watched, x, torch.tensor(ends), DormandPrince(1e-10, 1e-10))
    assert torch.allclose(found.x, carried(x, *ends), atol=1e-8)
    assert min(seen) >= 0.0
    assert max(seen) <= 1.4
    assert found.evaluations == len(seen)
    loose = flow(swirl, x, torch.tensor(ends), DormandPrince(1e-4, 1e-4))
    assert loose.evaluations < found.evaluations


def test_the_velocity_is_not_asked_for_beyond_the_end():
    """Neither by the look ahead that sizes the first step, which a slow start makes long, nor by the last step."""
    x, seen = torch.ones(1, 1, dtype=torch.float64), []

    def slow(t, y):
        seen.append(t)
        return 1e-4 * y

    flow(slow, x, torch.tensor([0.5, 0.7], dtype=torch.float64), DormandPrince())
    assert min(seen) >= 0.5
    assert max(seen) <= 0.7
    seen.clear()
    ends = torch.tensor([0.0, 1.4], dtype=torch.float64)
    flow(lambda t, y: (seen.append(t), swirl(t, y))[1], torch.ones(1, 2).double(), ends, DormandPrince())
    assert seen.count(max(seen)) <= 3  # the last two stages of the last step, no stage cut short


def test_heun_looks_at_knots_only():
    seen, knots = [], uneven(0.2, 1.4, 5)
    flow(lambda t, y: (seen.append(t), swirl(t, y))[1], torch.ones(1, 2).double(), knots, Heun())
    assert sorted(set(seen)) == pytest.approx(knots.tolist())


def test_single_precision_stays_single():
    x = torch.tensor([[1.0, 0.5]])
    for method in (Euler(), Heun(), RungeKutta4(), DormandPrince()):
        found = flow(swirl, x, uneven(1.4, 0.2, 40), method)
        assert found.x.dtype == torch.float32
        assert torch.allclose(found.x, carried(x, 1.4, 0.2), atol=0.1 if isinstance(method, Euler) else 1e-3)


@pytest.mark.parametrize("method", [RungeKutta4(), DormandPrince(1e-9, 1e-9)])
def test_rate_is_integrated_along_the_path(method):
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)

    def field(t, y):  # ∫ d/dt log|y|² dt
        velocity = swirl(t, y)
        return velocity, 2.0 * (velocity * y).sum(1) / y.square().sum(1)

    for ends in ((0.2, 1.4), (1.4, 0.2)):
        found = flow_with_rate(field, x, uneven(*ends, 40), method)
        exact = (carried(x, *ends).square().sum(1) / x.square().sum(1)).log()
        assert torch.allclose(found.integral, exact, atol=1e-6)
        assert torch.allclose(found.x, carried(x, *ends), atol=1e-6)
    assert torch.equal(flow(swirl, x, uneven(0.2, 1.0, 4), Heun()).integral, torch.zeros(2, dtype=torch.float64))


def test_gradients_are_recorded_only_where_asked():
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    flow(swirl, x, uneven(0.0, 1.0, 50), RungeKutta4()).x.sum().backward()
    ones = torch.ones(1, 2, dtype=torch.float64)
    angle = torch.tensor(0.5)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=torch.float64)
    assert torch.allclose(x.grad, math.exp(math.sin(1.0)) * ones @ turn, atol=1e-6)
    with torch.no_grad():
        assert not flow(swirl, x, uneven(0.0, 1.0, 2), Heun()).x.requires_grad


def test_refusals():
    x = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="strictly"):
        flow(swirl, x, torch.tensor([0.0, 0.5, 0.4]), Heun())
    with pytest.raises(InvalidInputError, match="at least one step"):
        flow(swirl, x, torch.tensor([0.0]), Heun())
    with pytest.raises(InvalidInputError, match="shape and dtype of its states"):
        flow(lambda t, y: y[:, :1], x, torch.tensor([0.0, 1.0]), Heun())
    with pytest.raises(InvalidInputError, match="rate must have shape"):
        flow_with_rate(lambda t, y: (y, y), x, torch.tensor([0.0, 1.0]), Heun())
    with pytest.raises(InvalidInputError, match=r"\(batch, dim\)"):
        flow(swirl, torch.ones(3), torch.tensor([0.0, 1.0]), Heun())
    with pytest.raises(InvalidInputError, match="tolerances"):
        DormandPrince(0.0, 0.0)
    with pytest.raises(InvalidInputError, match="max_evaluations"):
        DormandPrince(max_evaluations=0)


@pytest.mark.parametrize("method", [Euler(), Heun(), DormandPrince()])
def test_a_velocity_that_breaks_is_named_with_its_time(method):
    x = torch.ones(3, 2, dtype=torch.float64)

    def broken(t, y):
        return torch.where((torch.arange(3)[:, None] == 1) & (t < 0.4), math.nan, y)

    with pytest.raises(NonFiniteError, match=r"velocity .* NaN or infinite at t = 0.* in 1 of 3 rows"):
        flow(broken, x, uneven(1.0, 0.0, 7), method)


def test_adaptive_method_gives_up_in_words():
    x = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(NotConvergedError, match="its 50 evaluations"):
        flow(lambda t, y: torch.cos(1e3 * y), x, torch.tensor([0.0, 1.0]), DormandPrince(1e-10, 1e-10, 50))
    with pytest.raises((NotConvergedError, NonFiniteError)):  # y' = y² has no solution beyond t = 1
        flow(lambda t, y: y.square(), x, torch.tensor([0.0, 2.0]), DormandPrince())
