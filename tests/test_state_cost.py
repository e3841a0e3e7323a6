"""State costs: quadratic ones are part of a linear reference, and bridges, values and pinned paths are closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import DIAGONAL, MEAN, RATE, SIGMA, tensor
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_are
from torch import Tensor

import sbridge as sb
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact import GaussianCoupling
from sbridge.laws.scaling import AffineScaling
from sbridge.problems.costs import absorb
from sbridge.processes import LinearProcess, TiltedLinearProcess, check_process, rescale
from sbridge.processes.noise_coordinates import NoiseCoordinates
from sbridge.storage.registry import decode, encode

ONE = torch.eye(1, dtype=torch.float64)
SYMMETRIC = tensor([[1.5, -0.4, 0.3], [-0.4, 0.2, 0.5], [0.3, 0.5, 0.9]])
INDEFINITE = SYMMETRIC - torch.diag(tensor([0.0, 2.0, 0.5]))
PUSH = tensor([1.0, -0.5, 2.0])
TURNING = sb.OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 1.3)
REFERENCES = {
    "Brownian": sb.BrownianMotion(0.7, 1.3),
    "Brownian, matrix": sb.BrownianMotion(SIGMA, 1.3),
    "OU": sb.OrnsteinUhlenbeck(0.6, DIAGONAL, MEAN, 1.3),
    "OU, growing": sb.OrnsteinUhlenbeck(-0.6, SIGMA, MEAN, 1.3),
    "OU, diagonal": sb.OrnsteinUhlenbeck(DIAGONAL, 0.7, MEAN, 1.3),
    "OU, turning": TURNING,
}
FORMS = {
    "attraction": SYMMETRIC @ SYMMETRIC,
    "isotropic": torch.eye(3, dtype=torch.float64),
    "repulsion": -0.2 * torch.eye(3, dtype=torch.float64),
    "indefinite": INDEFINITE,
    "a line": torch.outer(tensor([1.0, 2.0, 0.0]), tensor([1.0, 2.0, 0.0])),
    "an axis": torch.diag(tensor([0.0, 2.0, 0.0])),
    "linear": torch.zeros(3, 3, dtype=torch.float64),
}


def quadratic(form: Tensor, slope: Tensor | None = None, constant: float = 0.0) -> sb.costs.Quadratic:
    """``½xᵀQx + q·x + r``."""
    return sb.costs.Quadratic(0.5 * form, slope, constant)


def value(process: LinearProcess, cost: sb.costs.Quadratic, coupling: Callable[[LinearProcess], GaussianCoupling]):
    """``min KL(P ‖ R) + E∫V`` between Gaussian ends."""
    reference, left = absorb(process, cost)
    bridge = coupling(reference)
    return bridge.value + left.start.expectation(bridge.m0, bridge.A) - left.end.expectation(bridge.mT, bridge.B)


@pytest.mark.parametrize(
    ("square", "covariance", "least", "variance"),
    [
        (0.0, 0.618034, 0.122572, 1.059017),
        (0.25, 0.606531, 0.25, 1.0),
        (1.0, 0.572259, 0.605171393, 0.849308),
        (4.0, 0.443149, 1.737183976, 0.493441),
        (16.0, None, 4.452166274, None),
        (-1.0, 0.664169, None, None),
    ],
)
def test_standard_normal_ends_have_known_plan_value_and_middle(square, covariance, least, variance):
    cost, zero = quadratic(square * ONE), torch.zeros(1, dtype=torch.float64)
    bridge = GaussianCoupling(zero, ONE, zero, ONE, sb.costs.quadratic_reference(sb.BrownianMotion(1.0), cost))
    assert covariance is None or float(bridge.coupling) == pytest.approx(covariance, abs=1e-6)
    assert variance is None or float(bridge.marginal(0.5)[1]) == pytest.approx(variance, abs=1e-6)
    found = value(sb.BrownianMotion(1.0), cost, lambda process: GaussianCoupling(zero, ONE, zero, ONE, process))
    assert least is None or found == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("square", [0.25, -1.0])
def test_the_value_of_equal_coordinates_is_that_of_one_times_their_number(square):
    process, values = sb.OrnsteinUhlenbeck(0.2, 0.8, 0.5), []
    for dim in (1, 3):
        eye, origin = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
        cost = quadratic(square * eye, torch.full_like(origin, 0.7))
        values.append(value(process, cost, lambda one, o=origin, e=eye: GaussianCoupling(o, e, o, e, one)))
    assert values[1] == pytest.approx(3.0 * values[0], rel=1e-12)


@pytest.mark.parametrize("omega", [0.3, 3.0, 20.0, 60.0])
def test_the_plan_is_that_of_a_brownian_bridge_with_another_noise(omega):
    """``ε_eff = σ² sinh(ωT)/ω``, far beyond where the exponential of the Hamiltonian matrix cancels."""
    sigma, horizon = 0.8, 1.2
    reference = sb.costs.quadratic_reference(
        sb.BrownianMotion(sigma, horizon), quadratic((omega / sigma) ** 2 * torch.eye(3, dtype=torch.float64))
    )
    assert type(reference) is sb.OrnsteinUhlenbeck
    assert reference.rate == pytest.approx(omega, rel=1e-14)
    epsilon = sigma**2 * math.sinh(omega * horizon) / omega
    cross = GaussianCoupling(PUSH, SYMMETRIC @ SYMMETRIC, -PUSH, torch.eye(3), reference).coupling
    static = sb.BrownianMotion(math.sqrt(epsilon))
    wanted = GaussianCoupling(PUSH, SYMMETRIC @ SYMMETRIC, -PUSH, torch.eye(3), static).coupling
    torch.testing.assert_close(cross, wanted, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_quadratic_cost_makes_a_linear_process(name, form):
    process, cost = REFERENCES[name], quadratic(FORMS[form], PUSH, 0.3)
    reference, left = absorb(process, cost)
    check_process(reference, 3, seed=0)
    x, t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.4
    torch.testing.assert_close(reference.scale(t)(x), process.scale(t)(x))
    again = decode(*encode(reference))
    torch.testing.assert_close(again.drift(t, x), reference.drift(t, x), rtol=0.0, atol=0.0)
    # The same bridge from another solution of the Riccati equation.
    tilted = TiltedLinearProcess(process, FORMS[form], PUSH)
    ends = PUSH, 0.5 * torch.eye(3), -PUSH, SYMMETRIC @ SYMMETRIC + torch.eye(3)
    pairs = [GaussianCoupling(*ends, one) for one in (reference, tilted)]
    torch.testing.assert_close(pairs[0].coupling, pairs[1].coupling, rtol=1e-10, atol=1e-12)
    for one, other in zip(pairs[0].marginal(t), pairs[1].marginal(t), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    (matrix, vector, constant), (last, _, _) = tilted.potential(0.0), tilted.potential(process.horizon)
    other = sb.costs.AbsorbedCost(quadratic(matrix, vector, constant + 0.3 * process.horizon), quadratic(last))
    values = [
        pair.value + cost.start.expectation(pair.m0, pair.A) - cost.end.expectation(pair.mT, pair.B)
        for pair, cost in zip(pairs, (left, other), strict=True)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-11)


@pytest.mark.parametrize("form", ["indefinite", "repulsion", "attraction"])
def test_the_potential_solves_the_riccati_equation(form):
    """Against an integrator that knows nothing of the Hamiltonian flow."""
    tilted = TiltedLinearProcess(TURNING, FORMS[form], PUSH)
    a, c = TURNING.linear(0.0).values.numpy(), TURNING.offset(0.0).numpy()
    noise, q = (SIGMA @ SIGMA.mT).numpy(), FORMS[form].numpy()

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        m, v = y[:9].reshape(3, 3), y[9:12]
        dm = -(a.T @ m + m @ a - m @ noise @ m + q)
        dv = -((a - noise @ m).T @ v + m @ c + PUSH.numpy())
        return np.concatenate([dm.ravel(), dv, [-(c @ v - 0.5 * v @ noise @ v + 0.5 * np.trace(noise @ m))]])

    last, vector, constant = tilted.potential(1.3)
    start = np.concatenate([last.numpy().ravel(), vector.numpy(), [constant]])
    found = solve_ivp(slope, (1.3, 0.2), start, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    matrix, vector, constant = tilted.potential(0.2)
    torch.testing.assert_close(matrix, tensor(found[:9]).reshape(3, 3), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(vector, tensor(found[9:12]), rtol=1e-8, atol=1e-9)
    assert constant == pytest.approx(found[12], abs=1e-9)
    drift = tilted.linear(0.2).values - (tensor(a) - tensor(noise) @ matrix)
    assert float(drift.abs().max()) < 1e-12


def test_the_stationary_root_is_that_of_the_algebraic_equation():
    reference = sb.costs.quadratic_reference(TURNING, quadratic(SYMMETRIC @ SYMMETRIC))
    root = solve_continuous_are(-RATE.numpy(), SIGMA.numpy(), (SYMMETRIC @ SYMMETRIC).numpy(), np.eye(3))
    torch.testing.assert_close(reference.rate, SIGMA @ SIGMA.mT @ tensor(root) + RATE, rtol=1e-11, atol=1e-12)


def test_forms_of_a_weighted_kernel_are_symmetric_to_the_last_bit():
    kernel = NoiseCoordinates.of(TURNING, SYMMETRIC, PUSH).kernel(tensor([0.3, 1.3]))
    for form in (kernel.start, kernel.end):
        assert torch.equal(form, form.mT)


def test_repulsion_ends_at_the_conjugate_time():
    """``π/ω`` under Brownian motion; of several directions the first."""
    for omega, horizon in ((3.0, 1.04), (0.5, 6.28)):
        cost = quadratic(torch.diag(tensor([-(omega**2), 40.0])))
        check_process(sb.costs.quadratic_reference(sb.BrownianMotion(1.0, horizon), cost), 2, seed=0)
        longer = horizon + 0.1
        said = rf"repels too strongly for the horizon {longer:g}: from the conjugate time {math.pi / omega:.4g} on"
        with pytest.raises(InvalidInputError, match=said):
            sb.costs.quadratic_reference(sb.BrownianMotion(1.0, longer), cost)


def test_the_conjugate_time_of_a_turning_reference_is_that_of_its_flow():
    """``Ψ_12(t)`` is singular there for the first time."""
    with pytest.raises(InvalidInputError, match="conjugate time") as caught:
        sb.costs.quadratic_reference(sb.OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 9.0), quadratic(INDEFINITE - 6.0 * ONE))
    time = float(str(caught.value).split("conjugate time ")[1].split()[0])
    a, noise = -RATE, SIGMA @ SIGMA.mT
    flow = torch.cat([torch.cat([a, -noise], 1), torch.cat([6.0 * ONE - INDEFINITE, -a.mT], 1)])
    times = torch.linspace(0.01, 1.02, 400, dtype=torch.float64) * time
    volumes = torch.linalg.det(torch.linalg.matrix_exp(times[:, None, None] * flow)[:, :3, 3:])
    changes = times[1:][volumes[1:].sign() != volumes[:1].sign()]
    assert float(changes[0]) == pytest.approx(time, rel=4e-3)


def test_units_of_state_do_not_matter():
    scaling = AffineScaling(tensor([3.0, -1.0, 0.5]), tensor([0.5, 2.0, 7.0]))
    cost = quadratic(INDEFINITE, PUSH, 0.3)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(cost.rescaled(scaling)(scaling.to_model(x)), cost(x))
    inside = sb.costs.quadratic_reference(rescale(TURNING, scaling), cost.rescaled(scaling)).pinned(0.5)
    outside = rescale(sb.costs.quadratic_reference(TURNING, cost), scaling).pinned(0.5)
    torch.testing.assert_close(inside.mean(x, -x), outside.mean(x, -x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inside.covariance.values, outside.covariance.values, rtol=1e-10, atol=1e-12)


def test_what_has_no_closed_form_is_refused():
    cost = quadratic(torch.eye(2, dtype=torch.float64))
    for process in (sb.VariancePreserving(), sb.BrownianMotion(lambda t: 1.0 + t)):
        with pytest.raises(UnsupportedError, match=r"constant σ, got .*solve_schroedinger\(…, state_cost=…\)"):
            sb.costs.quadratic_reference(process, cost)
    with pytest.raises(InvalidInputError, match="the state cost has dimension 2, the process has 3"):
        sb.costs.quadratic_reference(TURNING, cost)
