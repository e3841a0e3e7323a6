import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import DIAGONAL, DIM, FEW, MEAN, RATE, SIGMA
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws.scaling import AffineScaling
from sbridge.processes import BrownianMotion, DriftProcess, LinearProcess, OrnsteinUhlenbeck, rescale
from sbridge.storage.registry import decode, encode


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def covariance(seed: int, dim: int = DIM) -> Tensor:
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)


START, END = covariance(1), 0.5 * covariance(2)
M0, MT = tensor([0.5, -1.0, 2.0]), tensor([-1.0, 0.3, 1.0])
STATES = torch.randn(6, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def bridge(process: LinearProcess) -> GaussianCoupling:
    return GaussianCoupling(M0, START, MT, END, process)


def full(process: LinearProcess, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
    law = process.transition(s, t)
    return law.map.expanded(DIM), law.offset.expand(DIM), law.covariance.expanded(DIM)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()) @ vectors.mT


def brownian_coupling(a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """``C = ½(A^½ D A^{−½} − εI)``, ``D = (4A^½BA^½ + ε²I)^½``."""
    identity = torch.eye(len(a), dtype=a.dtype)
    d = root(4 * root(a) @ b @ root(a) + epsilon**2 * identity)
    return 0.5 * (root(a) @ d @ torch.linalg.inv(root(a)) - epsilon * identity)


def test_unit_gaussians_have_the_golden_ratio():
    identity, zero = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    one = GaussianCoupling(zero - 0.1, identity, zero + 0.1, identity, BrownianMotion(0.5, 4.0))
    torch.testing.assert_close(one.coupling, (math.sqrt(5) - 1) / 2 * identity, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("epsilon", [1e-4, 0.3, 5.0, 1e4])
def test_coupling_under_brownian_motion(epsilon):
    found = bridge(BrownianMotion(math.sqrt(epsilon / 2.5), 2.5)).coupling
    torch.testing.assert_close(found, brownian_coupling(START, END, epsilon), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FEW)
def test_coupling_by_whitening(name):
    """``x̄_0 = Q^{−½}Φx_0``, ``x̄_T = Q^{−½}x_T`` are coupled as under Brownian motion with ε = 1."""
    phi, _, q = full(FEW[name], 0.0, FEW[name].horizon)
    white = torch.linalg.inv(root(q))
    a, b = white @ phi @ START @ phi.mT @ white, white @ END @ white
    c = brownian_coupling(0.5 * (a + a.mT), 0.5 * (b + b.mT), 1.0)
    wanted = torch.linalg.solve(phi, root(q) @ c @ root(q))
    torch.testing.assert_close(bridge(FEW[name]).coupling, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FEW)
def test_coupling_is_optimal(name):
    """The plan's density is a product ``f(x_0) R(x_T | x_0) g(x_T)``: the joint precision's block is ``−ΦᵀQ⁻¹``."""
    one = bridge(FEW[name])
    c = one.coupling
    joint = torch.cat([torch.cat([START, c], 1), torch.cat([c.mT, END], 1)])
    assert int(torch.linalg.cholesky_ex(joint).info) == 0
    phi, _, q = full(FEW[name], 0.0, FEW[name].horizon)
    wanted = -phi.mT @ torch.linalg.inv(q)
    found = torch.linalg.inv(joint)[:DIM, DIM:]
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_conditional_laws_are_those_of_the_plan(name, dtype):
    one, x = bridge(FEW[name]), STATES.to(dtype)
    c = one.coupling
    mean, spread = one.end_given_start(x)
    assert mean.dtype == spread.dtype == dtype
    wanted = MT + (x.double() - M0) @ torch.linalg.solve(START, c)
    torch.testing.assert_close(mean.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.end_covariance, END - c.mT @ torch.linalg.solve(START, c), rtol=1e-6, atol=1e-9)
    mean, spread = one.start_given_end(x)
    assert mean.dtype == spread.dtype == dtype
    wanted = M0 + (x.double() - MT) @ torch.linalg.solve(END, c.mT)
    torch.testing.assert_close(mean.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.start_covariance, START - c @ torch.linalg.solve(END, c.mT), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FEW)
def test_marginals_begin_and_end_where_they_must_and_take_times_in_bulk(name):
    one, end = bridge(FEW[name]), FEW[name].horizon
    for t, mean, spread in ((0.0, M0, START), (end, MT, END)):
        found = one.marginal(t)
        torch.testing.assert_close(found[0], mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[1], spread, rtol=1e-9, atol=1e-9)
    times = torch.linspace(0, end, 7, dtype=torch.float64)
    for method in (one.marginal, one.forward_gain, one.backward_gain):
        together, single = method(times), [method(float(t)) for t in times]
        for k in range(2):
            torch.testing.assert_close(together[k], torch.stack([pair[k] for pair in single]), rtol=1e-8, atol=1e-8)


def test_marginal_of_the_brownian_bridge():
    t, epsilon = 0.3, 0.49
    c = brownian_coupling(START, END, epsilon)
    wanted = (1 - t) ** 2 * START + t**2 * END + t * (1 - t) * (c + c.mT)
    wanted = wanted + epsilon * t * (1 - t) * torch.eye(DIM, dtype=torch.float64)
    mean, found = bridge(BrownianMotion(0.7 / math.sqrt(2.5), 2.5)).marginal(2.5 * t)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mean, (1 - t) * M0 + t * MT)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", FEW)
def test_controls_pull_to_the_expected_end(name, fraction):
    """``u* = σᵀ pull(x, E[X_T | X_t = x])``, ``û* = σᵀ push(x, E[X_0 | X_t = x])``."""
    process = FEW[name]
    one, t = bridge(process), fraction * process.horizon
    c, pinned = one.coupling, process.pinned(t)
    k = pinned.gain.expanded(DIM)
    left = pinned.behind.map.expanded(DIM) - k @ pinned.whole.map.expanded(DIM)
    mean, spread = one.marginal(t)
    away = torch.linalg.solve(spread, (STATES - mean).mT)
    to_end = MT + ((c.mT @ left.mT + END @ k.mT) @ away).mT
    to_start = M0 + ((START @ left.mT + c @ k.mT) @ away).mT
    transposed = process.scale(t).T
    for (gain, offset), wanted in (
        (one.forward_gain(t), transposed(process.guiding_term(t, STATES, to_end))),
        (one.backward_gain(t), transposed(process.conditional_score(t, STATES, to_start))),
    ):
        torch.testing.assert_close(STATES @ gain.mT + offset, wanted, rtol=1e-7, atol=1e-7)


def steer(one: GaussianCoupling, direction: int, steps: int = 400) -> tuple[Tensor, Tensor]:
    """Mean and covariance at the other end, by the moment equations under the forward (1) or backward (−1) control.

    Runge–Kutta of order four, with the coefficients at all its times evaluated at once.
    """
    process, delta = one.process, one.process.horizon / steps
    times = torch.linspace(0, process.horizon, 2 * steps + 1, dtype=torch.float64)
    times = times if direction == 1 else times.flip(0)
    sigma = process.scale(times).expanded(DIM)
    gain, offset = one.forward_gain(times) if direction == 1 else one.backward_gain(times)
    a = direction * process.linear(times).expanded(DIM) + sigma @ gain
    c = direction * process.offset(times) + (sigma @ offset.unsqueeze(-1)).squeeze(-1)
    noise = sigma @ sigma.mT

    def slope(k: int, m: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return a[k] @ m + c[k], a[k] @ p + p @ a[k].mT + noise[k]

    m, p = (one.m0, one.A) if direction == 1 else (one.mT, one.B)
    for k in range(0, 2 * steps, 2):
        m1, p1 = slope(k, m, p)
        m2, p2 = slope(k + 1, m + 0.5 * delta * m1, p + 0.5 * delta * p1)
        m3, p3 = slope(k + 1, m + 0.5 * delta * m2, p + 0.5 * delta * p2)
        m4, p4 = slope(k + 2, m + delta * m3, p + delta * p3)
        m, p = m + delta / 6 * (m1 + 2 * m2 + 2 * m3 + m4), p + delta / 6 * (p1 + 2 * p2 + 2 * p3 + p4)
    return m, p


@pytest.mark.parametrize("name", FEW)
def test_controls_steer_one_end_law_into_the_other(name):
    one = bridge(FEW[name])
    for direction, wanted in ((1, (MT, END)), (-1, (M0, START))):
        for found, right in zip(steer(one, direction), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_controls_add_up_to_the_score_at_both_ends_too(name):
    one = bridge(FEW[name])
    for t, spread in ((0.0, START), (FEW[name].horizon, END)):
        sigma = FEW[name].scale(t).expanded(DIM)
        total = one.forward_gain(t)[0] + one.backward_gain(t)[0]
        torch.testing.assert_close(total, -sigma.mT @ torch.linalg.inv(spread), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["forward_gain", "backward_gain"])
def test_controls_are_regular_at_both_ends(method):
    """They keep to the line through their neighbours, 1e-9 from the end and at it."""
    one = bridge(OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 2.0))
    for at, inwards in ((0.0, 1.0), (2.0, -1.0)):
        near = [getattr(one, method)(at + inwards * d)[0] for d in (0.0, 1e-9, 1e-6, 2e-6)]
        slope = (near[3] - near[2]) / 1e-6
        size = float(near[0].abs().max())
        for value, distance in zip(near[:2], (0.0, 1e-9), strict=True):
            wanted = near[2] + (distance - 1e-6) * slope
            assert float((value - wanted).abs().max()) < 1e-9 * size


def energy(one: GaussianCoupling) -> float:
    """``½ E∫|u*|² dt``, by Gauss–Legendre."""
    points, weights = np.polynomial.legendre.leggauss(200)
    end = one.process.horizon
    t = tensor(0.5 * (points + 1)) * end
    gain, offset = one.forward_gain(t)
    mean, spread = one.marginal(t)
    at_mean = (gain @ mean.unsqueeze(-1)).squeeze(-1) + offset
    square = at_mean.square().sum(-1) + (gain @ spread @ gain.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * float(square @ tensor(weights)) * 0.5 * end


@pytest.mark.parametrize("name", FEW)
def test_value_is_the_energy_of_the_control_and_the_published_formula(name):
    process = FEW[name]
    one = bridge(process)
    rel = 1e-4 if "cut off" in name else 1e-8  # the schedule has a kink
    assert one.value == pytest.approx(energy(one), rel=rel)
    phi, k, q = full(process, 0.0, process.horizon)
    c, precision = one.coupling, torch.linalg.inv(q)
    r = MT - phi @ M0 - k
    square = torch.outer(r, r) + END - phi @ c - (phi @ c).mT + phi @ START @ phi.mT
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * END)
    dependence = 0.5 * torch.logdet(torch.eye(3) - torch.linalg.solve(START, c) @ torch.linalg.solve(END, c.mT))
    static = 0.5 * (precision @ square).trace() + 0.5 * torch.logdet(2 * math.pi * q)
    assert one.value == pytest.approx(float(static - entropy - dependence), rel=1e-7)


def test_value_is_least_among_couplings():
    """KL(π ‖ R) of any other Gaussian plan with the same ends is larger."""
    process = OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 0.7)
    one = bridge(process)
    phi, k, q = full(process, 0.0, 0.7)

    def divergence(c: Tensor) -> float:
        regression = torch.linalg.solve(START, c).mT
        rest = END - regression @ c
        shift, r = regression - phi, MT - phi @ M0 - k
        distance = rest + torch.outer(r, r) + shift @ START @ shift.mT
        volume = torch.logdet(q) - torch.logdet(rest)
        return float(0.5 * (torch.linalg.solve(q, distance).trace() - DIM + volume))

    assert divergence(one.coupling) == pytest.approx(one.value, rel=1e-10)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        change = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
        assert divergence(one.coupling + 1e-3 * change) > one.value


def test_the_value_is_zero_when_the_reference_itself_is_the_bridge():
    process = OrnsteinUhlenbeck(RATE, SIGMA, MEAN, 1.3)
    phi, k, q = full(process, 0.0, 1.3)
    one = GaussianCoupling(M0, START, phi @ M0 + k, phi @ START @ phi.mT + q, process)
    assert abs(one.value) < 1e-12
    torch.testing.assert_close(one.coupling, START @ phi.mT)
    times = torch.linspace(0, 1.3, 5, dtype=torch.float64)
    assert all(float(part.abs().max()) < 1e-10 for part in one.forward_gain(times))


def test_swapped_ends_are_the_reversed_bridge():
    process = BrownianMotion(SIGMA, 1.4)
    one, other = bridge(process), GaussianCoupling(MT, END, M0, START, process)
    torch.testing.assert_close(one.coupling, other.coupling.mT)
    for t in (0.0, 0.3, 1.4):
        for found, wanted in zip(one.backward_gain(t), other.forward_gain(1.4 - t), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FEW)
def test_other_units_same_bridge(name):
    shift, scale = tensor([3.0, -1.0, 0.5]), tensor([0.5, 2.0, 7.0])
    one = bridge(FEW[name])
    a, b = (m / scale[:, None] / scale for m in (START, END))
    scaled = rescale(FEW[name], AffineScaling(shift, scale))
    other = GaussianCoupling((M0 - shift) / scale, a, (MT - shift) / scale, b, scaled)  # type: ignore[arg-type]
    torch.testing.assert_close(other.coupling * scale[:, None] * scale, one.coupling)
    assert other.value == pytest.approx(one.value, rel=1e-9)
    t = 0.4 * FEW[name].horizon
    for mine, yours in ((one.forward_gain(t), other.forward_gain(t)), (one.backward_gain(t), other.backward_gain(t))):
        inside = ((STATES - shift) / scale) @ yours[0].mT + yours[1]
        torch.testing.assert_close(inside, STATES @ mine[0].mT + mine[1], rtol=1e-7, atol=1e-7)


def test_a_reference_whose_transition_is_singular_to_rounding():
    """Rotated, the problem falls into three scalar ones, the fastest with Φ(T, 0) = e^{−90}."""
    basis = torch.linalg.qr(covariance(7)).Q
    speeds, a, b = tensor([60.0, 3.0, 0.1]), tensor([1.0, 2.0, 0.5]), tensor([0.3, 1.0, 2.0])
    process = OrnsteinUhlenbeck(basis @ speeds.diag() @ basis.mT, 0.8, horizon=1.5)
    one = GaussianCoupling(basis @ M0, basis @ a.diag() @ basis.mT, basis @ MT, basis @ b.diag() @ basis.mT, process)
    inside = basis.mT @ one.coupling @ basis
    t = tensor([0.0, 0.02, 0.7, 1.48, 1.5])
    gains = [basis.mT @ gain @ basis for gain in (one.forward_gain(t)[0], one.backward_gain(t)[0])]
    value = 0.0
    for i in range(3):
        scalar = GaussianCoupling(
            M0[i : i + 1], a[i].reshape(1, 1), MT[i : i + 1], b[i].reshape(1, 1),
            OrnsteinUhlenbeck(float(speeds[i]), 0.8, horizon=1.5),
        )  # fmt: skip
        assert float(inside[i, i]) == pytest.approx(float(scalar.coupling), abs=1e-12)
        for found, wanted in zip(gains, (scalar.forward_gain(t)[0], scalar.backward_gain(t)[0]), strict=True):
            torch.testing.assert_close(found[:, i, i], wanted[:, 0, 0], rtol=1e-8, atol=1e-8)
        value += scalar.value
    assert one.value == pytest.approx(value, rel=1e-10)
    off = inside - inside.diagonal().diag()
    assert float(off.abs().max()) < 1e-12


def test_narrow_and_wide_ends():
    """Nearly a point at one end, far wider than the noise at the other: still the right end laws."""
    tiny, wide = 1e-8 * torch.eye(DIM, dtype=torch.float64), 1e4 * END
    for process in (BrownianMotion(0.3), OrnsteinUhlenbeck(RATE, SIGMA, MEAN)):
        for a, b in ((tiny, wide), (wide, tiny)):
            one = GaussianCoupling(M0, a, MT, b, process)
            torch.testing.assert_close(one.marginal(0.0)[1], a, rtol=1e-5, atol=1e-12)
            torch.testing.assert_close(one.marginal(1.0)[1], b, rtol=1e-5, atol=1e-12)
            for t in (0.0, 0.5, 1.0):
                assert all(torch.isfinite(part).all() for part in (*one.forward_gain(t), *one.backward_gain(t)))


def test_files_keep_couplings():
    one = bridge(OrnsteinUhlenbeck(RATE, DIAGONAL, MEAN, 1.3))
    tree, tensors = encode(one)
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(back.coupling, one.coupling)
    assert torch.equal(back.forward_gain(0.4)[0], one.forward_gain(0.4)[0])


def test_float32_ends_are_taken_and_worked_on_in_float64():
    one = GaussianCoupling(M0.float(), START.float(), MT.float(), END.float(), BrownianMotion(1.0))
    assert one.coupling.dtype == torch.float64
    torch.testing.assert_close(one.coupling, bridge(BrownianMotion(1.0)).coupling, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"m0": torch.ones(2)}, r"needed, got \(2,\), \(3, 3\)"),
        ({"B": torch.eye(2)}, r"\(2, 2\)"),
        ({"process": OrnsteinUhlenbeck(1.0, torch.ones(4))}, "process of dimension 4"),
        ({"A": -torch.eye(3)}, "covariance A must be symmetric and positive definite"),
        ({"B": torch.eye(3) + torch.ones(3, 3).triu(1) * 0.1}, "covariance B must be symmetric"),
    ],
    ids=["mean", "covariance", "process", "negative", "asymmetric"],
)
def test_bad_input(change, said):
    with pytest.raises(InvalidInputError, match=said):
        replace(bridge(BrownianMotion(1.0)), **change)


def test_a_process_that_is_not_linear():
    # The annotation is checked at run time in tests; the error is for those who run without.
    with pytest.raises((UnsupportedError, TypeError), match="LinearProcess"):
        bridge(DriftProcess(lambda t, x: -x, 1.0))  # type: ignore[arg-type]
