"""Bridges to unnormalised densities: both regressions at the exact controls, fits against the grid, the door."""

import dataclasses
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sbridge.controls import MLP
from sbridge.errors import ConvergenceWarning, InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import choose_solver, fit, solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Law, Point, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.pde import Grid, GridSolution, solve_schroedinger
from sbridge.problems import BridgeProblem
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    LinearProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.solutions import Bridge, load
from sbridge.solvers import AdjointBridge, Annealing, Replay, check_solver
from sbridge.solvers.adjoint_bridge import AdjointBridgeState, outward
from sbridge.solvers.gaussian import GaussianControl
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@register
@dataclass(frozen=True, eq=False)
class Unnormalised:
    """The log density of a law plus a constant, in the dtype of the states."""

    law: Law
    constant: float = 7.3

    def __call__(self, x: Tensor) -> Tensor:
        return self.law.log_density(x.double()).to(x.dtype) + self.constant


def density(law: Gaussian | GaussianMixture) -> Density:
    return Density(Unnormalised(law), law.dim)


def problem_of(near: Law, far: Gaussian | GaussianMixture, reference: LinearProcess, out: Direction) -> BridgeProblem:
    """The density of ``far`` at the end to which ``out`` runs."""
    ends = (near, density(far)) if out is FORWARD else (density(far), near)
    return BridgeProblem(*ends, reference)


# --- both regressions, at the exact controls


NEAR = Gaussian(tensor([-1.0, 0.2]), tensor([[0.5, 0.2], [0.2, 1.0]]))
FAR = Gaussian(tensor([1.0, 0.5]), tensor([[1.5, -0.4], [-0.4, 0.7]]))
RATE, SIGMA = tensor([[1.0, 0.6], [-0.8, 0.4]]), tensor([[0.8, 0.3], [0.1, 1.0]])
REFERENCES: dict[str, LinearProcess] = {
    "Brownian": BrownianMotion(0.9, 1.5),
    "Brownian, matrix": BrownianMotion(SIGMA),
    "OU, matrix": OrnsteinUhlenbeck(RATE, SIGMA, [0.3, -0.5], 1.3),
    "VP": VariancePreserving(LinearSchedule(0.1, 3.0), mean=[0.5, 0.0]),
    "VE": VarianceExploding(0.2, 2.0),
}


class Known(nn.Module):
    """A known control in place of a network."""

    def __init__(self, control: GaussianControl) -> None:
        super().__init__()
        self.control = control

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        return self.control(t, x)


def at_the_optimum(
    reference: LinearProcess, out: Direction, steps: int, paths: int
) -> tuple[AdjointBridge, BridgeProblem, AdjointBridgeState, GaussianCoupling]:
    """A state whose networks are the exact controls of a Gaussian bridge, after one simulation."""
    ends = (NEAR, FAR) if out is FORWARD else (FAR, NEAR)
    exact = GaussianCoupling(*(part for law in ends for part in (law.mean, law.covariance)), reference)
    problem = problem_of(NEAR, FAR, reference, out)
    solver = AdjointBridge(updates=1, replay=Replay(paths=paths), network=MLP(4, 1), grid=TimeGrid.uniform(steps))
    state = solver.init(problem, 2)
    for direction, learner in state.learners.items():
        learner.average.module = Known(GaussianControl(exact, direction))
    solver.refresh(problem, state)
    return solver, problem, state, exact


def regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of ``y`` on ``(1, x)`` and their standard errors, each ``(1 + dim, dim)``."""
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    inverse = torch.linalg.inv(design.mT @ design)
    found = inverse @ design.mT @ y
    residual = y - design @ found
    return found, (inverse.diagonal()[:, None] * residual.square().mean(0)).sqrt()


def affine(gain: tuple[Tensor, Tensor]) -> Tensor:
    """The coefficients of ``x ↦ G x + h`` in the form that :func:`regression` returns them."""
    matrix, offset = gain
    return torch.cat([offset[None], matrix.mT])


@pytest.mark.parametrize("out", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", REFERENCES)
def test_exact_controls_are_the_fixed_point(name, out):
    """At every step the mean of the adjoint targets given the state is the control itself; so for the corrector.

    Both up to what steps of finite length cost: the control towards the density is the best one for its step, so it
    may differ from the control at the step's start by as much as this one changes over two steps.
    """
    steps, paths = 40, 8192
    _, problem, state, exact = at_the_optimum(REFERENCES[name], out, steps, paths)
    towards, leaving = (exact.forward_gain, exact.backward_gain)[:: out.value]
    x, targets = (state.memory[key].reshape(steps, paths, 2) for key in ("x", "target"))
    times = state.memory["t"].reshape(steps, paths)[:, 0]
    for k in (0, 12, 25, 36):
        found, error = regression(x[k], targets[k])
        wanted, later = (affine(towards(float(times[k + j]))) for j in (0, 2))
        allowed = 4.0 * error + (later - wanted).abs().max() + 0.01 * wanted.abs().max()
        assert bool(((found - wanted).abs() < allowed).all()), (k, found, wanted)
    x0, xT = state.pairs
    t, there = (problem.reference.horizon, xT) if out is FORWARD else (0.0, x0)
    found, error = regression(there, problem.reference.scale(t).T(transition(problem.reference, out, x0, xT)))
    wanted = affine(leaving(t))
    assert bool(((found - wanted).abs() < 4.0 * error + 0.03 * wanted.abs().max()).all()), (found, wanted)


def transition(reference: LinearProcess, out: Direction, x0: Tensor, xT: Tensor) -> Tensor:
    """``∇log R(X_T | X_0)`` in the end that ``out`` runs to, by automatic differentiation."""
    far = (xT if out is FORWARD else x0).clone().requires_grad_()
    pair = (x0, far) if out is FORWARD else (far, xT)
    return torch.autograd.grad(reference.log_transition(0.0, pair[0], reference.horizon, pair[1]).sum(), far)[0]


@pytest.mark.parametrize("out", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", ["Brownian", "OU, matrix", "VP"])
def test_the_corrector_loss_is_least_at_the_exact_control(name, out):
    """Its slope in affine changes of the control that leaves the density is far larger where that is ``0.1 x`` off."""
    solver, problem, state, exact = at_the_optimum(REFERENCES[name], out, 40, 8192)
    solver = dataclasses.replace(solver, optimisation=Optimisation(batch=8192))
    slopes = []
    for wrong in (0.0, 0.1):
        probe = Probe(GaussianControl(exact, out.opposite), problem.reference.horizon, wrong)
        state.learners[out.opposite].module = probe
        for _ in range(16):
            solver.corrector_loss(problem, state).backward()
        slopes.append(float(probe.theta.grad.norm()))
    assert 6.0 * slopes[0] < slopes[1]


class Probe(nn.Module):
    """``u(t, x) + wrong · x + h(t, x) θ`` at ``θ = 0``, ``h = (1, τ, x, τx)``."""

    def __init__(self, control: GaussianControl, horizon: float, wrong: float) -> None:
        super().__init__()
        self.control, self.horizon, self.wrong = control, horizon, wrong
        self.theta = nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        tau = (torch.as_tensor(t, dtype=x.dtype) / self.horizon).expand(len(x)).unsqueeze(1)
        h = torch.cat([torch.ones_like(tau), tau, x, tau * x], 1)
        return self.control(t, x) + self.wrong * x + h @ self.theta


# --- fits, against the grid


MODES = GaussianMixture(tensor([0.3, 0.7]), tensor([[-1.2], [1.0]]), tensor([[[0.35]], [[0.4]]]))
START = GaussianMixture(tensor([0.5, 0.5]), tensor([[-0.8], [0.9]]), tensor([[[0.35]], [[0.3]]]))
LINE = Grid.of(-8.0, 8.0, 240)
ON_A_LINE: dict[str, LinearProcess] = {
    "Brownian": BrownianMotion(0.9),
    "OU": OrnsteinUhlenbeck(rate=1.2, sigma=0.9, mean=0.4),
    "VP": VariancePreserving(LinearSchedule(0.1, 4.0)),
}


def single(law: GaussianMixture) -> GaussianMixture:
    return GaussianMixture(law.weights.float(), law.means.float(), law.covariances.float())


def small(**options: object) -> AdjointBridge:
    settings: dict[str, object] = {
        "updates": 800,
        "network": MLP(64, 2),
        "optimisation": Optimisation(learning_rate=1e-2, batch=256, ema_decay=0.99, clip=10.0, warm_up=20),
        "grid": TimeGrid.uniform(32),
    }
    return AdjointBridge(**{**settings, **options})


def solved(reference: LinearProcess, out: Direction, solver: AdjointBridge) -> tuple[Bridge, GridSolution]:
    """The fit to the density of MODES from draws of START, in float32, and the answer on the grid."""
    rows = Samples(START.sample(20_000, seeded(8)).float())
    bridge = solve(problem_of(rows, MODES, reference, out), solver, seed=0)
    ends = (START, MODES) if out is FORWARD else (MODES, START)
    return bridge, solve_schroedinger(reference, *ends, LINE)


def control_errors(bridge: Bridge, exact: GridSolution, fractions: tuple[float, ...]) -> tuple[float, float]:
    """``Σ_t E|u − u*|² / Σ_t E|u*|²`` under the exact law, forward and backward."""
    errors = []
    x = exact.grid.points
    for measure, control in ((bridge.forward, exact.control), (bridge.backward, exact.backward_control)):
        off, size = 0.0, 0.0
        for fraction in fractions:
            t = fraction * bridge.horizon
            weight = torch.from_numpy(exact.density(t)).reshape(-1, 1)
            u, wanted = measure.control(t, x), control(t, x)
            off += float((weight * (u - wanted).square()).sum())
            size += float((weight * wanted.square()).sum())
        errors.append(off / size)
    return errors[0], errors[1]


def end_law_distance(measure: PathMeasure, start: Samples, n: int = 20_000) -> float:
    """Kolmogorov–Smirnov distance of the simulated end to MODES."""
    ends = measure.transport(start.sample(n, seeded(3)), seed=4).double()[:, 0].sort().values
    deviations = MODES.covariances[:, 0, 0].sqrt()
    z = (ends[:, None] - MODES.means[:, 0]) / deviations
    exact = (MODES.weights * torch.special.ndtr(z)).sum(1)
    return float((exact - (torch.arange(n) + 0.5) / n).abs().max())


MIDDLE = (0.1, 0.3, 0.5, 0.7, 0.9)


def towards(bridge: Bridge, out: Direction) -> PathMeasure:
    return bridge.forward if out is FORWARD else bridge.backward


def test_a_short_fit_comes_near_the_grid():
    """A reference that remembers its start: without the corrector, or with its sign wrong, the end law is another."""
    bridge, exact = solved(ON_A_LINE["Brownian"], FORWARD, small(updates=700))
    forward, backward = control_errors(bridge, exact, MIDDLE)
    assert forward < 0.06
    assert backward < 0.12
    assert end_law_distance(bridge.forward, bridge.forward.start) < 0.035


@pytest.mark.slow
@pytest.mark.parametrize("out", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", ON_A_LINE)
def test_fits_agree_with_the_grid(name, out):
    """Controls, potentials, the end law and the weights of its modes, with a density at either end."""
    solver = AdjointBridge(updates=3000, network=MLP(64, 3))
    bridge, exact = solved(ON_A_LINE[name], out, solver)
    measure = towards(bridge, out)
    aimed, back = control_errors(bridge, exact, MIDDLE)[:: out.value]
    assert aimed < 0.02
    assert back < 0.06
    assert end_law_distance(measure, measure.start) < 0.02
    ends = measure.transport(measure.start.sample(20_000, seeded(6)), seed=7)
    weight = float((ends < -0.1).double().mean())
    z = (-0.1 - MODES.means[:, 0]) / MODES.covariances[:, 0, 0].sqrt()
    assert weight == pytest.approx(float(MODES.weights @ torch.special.ndtr(z)), abs=0.02)
    # log φ and log φ̂ half way, by integrating controls over the states that matter. A tilt of one that the other takes
    # back is what the iteration settles last.
    t = 0.5 * bridge.horizon
    x = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)[:, None]
    potentials, sigma = exact.potentials, float(bridge.reference.scale(t).values)
    points = LINE.points[:, 0].numpy()
    for process, field in ((bridge.forward, potentials.log_phi(t)), (bridge.backward, potentials.log_phi_hat(t))):
        found = torch.cumulative_trapezoid(process.control(t, x)[:, 0] / sigma, x[:, 0])
        wanted = torch.from_numpy(np.interp(x[1:, 0].numpy(), points, field))
        difference = found - wanted
        assert float(difference.std()) < 0.1 * float(wanted.std()) + 0.04


PLANE0 = Gaussian(tensor([-1.0, 0.2]), tensor([[0.5, 0.2], [0.2, 1.0]]))
PLANE_MODES = GaussianMixture(
    tensor([0.35, 0.65]), tensor([[-1.0, 0.8], [0.9, -0.6]]), torch.stack([tensor([[0.5, 0.1], [0.1, 0.4]])] * 2)
)


def gaussian_problem(dim: int, reference: LinearProcess, out: Direction) -> tuple[BridgeProblem, GaussianCoupling]:
    """Gaussian ends in float32, one as a density with a constant; with the coupling in closed form."""
    draws = seeded(dim)
    laws = []
    for _ in range(2):
        root = 0.4 * torch.randn(dim, dim, generator=draws, dtype=torch.float64) / dim**0.5 + 0.8 * torch.eye(dim)
        laws.append(Gaussian(0.7 * torch.randn(dim, generator=draws, dtype=torch.float64), root @ root.mT))
    near, far = laws
    first, last = (near, far) if out is FORWARD else (far, near)
    exact = GaussianCoupling(first.mean, first.covariance, last.mean, last.covariance, reference)
    start = Gaussian(near.mean.float(), near.covariance.float())
    return problem_of(start, far, reference, out), exact


def gaussian_errors(bridge: Bridge, exact: GaussianCoupling) -> tuple[float, float]:
    """``Σ_t E|u − u*|² / Σ_t E|u*|²`` under the exact law, forward and backward."""
    errors, draws = [], seeded(9)
    for measure in (bridge.forward, bridge.backward):
        off, size = 0.0, 0.0
        for fraction in MIDDLE:
            t = fraction * bridge.horizon
            x = Gaussian(*exact.marginal(t)).sample(2000, draws)
            u, wanted = measure.control(t, x), GaussianControl(exact, measure.direction)(t, x)
            off, size = off + float((u - wanted).square().sum()), size + float(wanted.square().sum())
        errors.append(off / size)
    return errors[0], errors[1]


def test_a_gaussian_density_at_the_start_in_the_plane():
    """Under a matrix Ornstein–Uhlenbeck reference, run backward."""
    problem, exact = gaussian_problem(2, REFERENCES["OU, matrix"], BACKWARD)
    bridge = solve(problem, small(updates=400), seed=0)
    assert max(gaussian_errors(bridge, exact)) < 0.06
    start = bridge.backward.start
    ends = bridge.backward.transport(start.sample(20_000, seeded(1)), seed=2).double()
    torch.testing.assert_close(ends.mean(0), exact.m0, rtol=0, atol=0.08)
    torch.testing.assert_close(ends.mT.cov(), exact.A, rtol=0, atol=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("out", [FORWARD, BACKWARD])
@pytest.mark.parametrize("dim", [2, 10])
def test_gaussian_densities_agree_with_the_closed_form(dim, out):
    reference = OrnsteinUhlenbeck(rate=0.5, sigma=1.0, mean=0.2)
    problem, exact = gaussian_problem(dim, reference, out)
    bridge = solve(problem, AdjointBridge(updates=2500, network=MLP(64, 2)), seed=0)
    assert max(gaussian_errors(bridge, exact)) < 0.02
    measure = towards(bridge, out)
    ends = measure.transport(measure.start.sample(20_000, seeded(1)), seed=2).double()
    mean, covariance = (exact.mT, exact.B) if out is FORWARD else (exact.m0, exact.A)
    torch.testing.assert_close(ends.mean(0), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(ends.mT.cov(), covariance, rtol=0, atol=0.06)


@pytest.mark.slow
def test_a_mixture_density_in_the_plane_agrees_with_the_grid():
    reference, plane = BrownianMotion(1.0), Grid.of((-6.0, -6.0), (6.0, 6.0), 48)
    start = Gaussian(PLANE0.mean.float(), PLANE0.covariance.float())
    bridge = solve(problem_of(start, PLANE_MODES, reference, FORWARD), AdjointBridge(updates=3000), seed=0)
    exact = solve_schroedinger(reference, PLANE0, PLANE_MODES, plane)
    off, size, x = 0.0, 0.0, plane.points
    for t in MIDDLE:
        weight, wanted = torch.from_numpy(exact.density(t)).reshape(-1, 1), exact.control(t, x)
        off += float((weight * (bridge.forward.control(t, x) - wanted).square()).sum())
        size += float((weight * wanted.square()).sum())
    assert off / size < 0.03
    ends = bridge.transport(start.sample(20_000, seeded(1)), seed=2).double()
    exact_ends = PLANE_MODES.sample(200_000, seeded(3))
    weights = [float((rows @ tensor([1.0, -0.75]) < 0.0).double().mean()) for rows in (ends, exact_ends)]
    assert weights[0] == pytest.approx(weights[1], abs=0.02)


# --- the door, states, options


def quick(**options: object) -> AdjointBridge:
    """A run of eight steps that touches everything."""
    settings: dict[str, object] = {
        "updates": 8,
        "replay": Replay(paths=24, updates=3, kept=2),
        "network": MLP(8, 2),
        "optimisation": Optimisation(batch=32, warm_up=2),
        "grid": TimeGrid.uniform(4),
    }
    return AdjointBridge(**{**settings, **options})


ROWS = Samples(torch.randn(50, 2, generator=seeded(4)))


@pytest.mark.parametrize("annealing", [None, Annealing(0.1, 0.5)])
@pytest.mark.parametrize("out", [FORWARD, BACKWARD])
def test_it_keeps_the_laws_of_solvers(out, annealing):
    problem = problem_of(ROWS, FAR, OrnsteinUhlenbeck(RATE, SIGMA), out)
    check_solver(quick(annealing=annealing), problem, seed=1)


def test_from_a_point_in_float64():
    problem = problem_of(Point(tensor([0.5, -1.0])), FAR, BrownianMotion(1.0), FORWARD)
    bridge = solve(problem, quick(), seed=0)
    assert bridge.transport(torch.zeros(3, 2, dtype=torch.float64), seed=1).dtype == torch.float64


def test_a_bridge_to_a_registered_density_is_saved_and_one_to_a_function_is_not(tmp_path):
    problem = problem_of(ROWS, FAR, BrownianMotion(1.0), FORWARD)
    solve(problem, quick(), seed=0).save(tmp_path / "bridge")
    again = load(tmp_path / "bridge")
    x = torch.zeros(3, 2)
    assert torch.equal(again.transport(x, seed=1), solve(problem, quick(), seed=0).transport(x, seed=1))
    plain = BridgeProblem(ROWS, Density(lambda x: -x.square().sum(1), 2), BrownianMotion(1.0))
    with pytest.raises(UnsupportedError, match="a plain function cannot be saved"):
        solve(plain, quick(), seed=0).save(tmp_path / "other")


def test_it_is_chosen_for_a_density_and_needs_a_reference():
    wide = BrownianMotion(1.5)
    problem = problem_of(ROWS, FAR, wide, BACKWARD)
    choice = choose_solver(problem)
    assert choice.solver == AdjointBridge()
    assert "density" in choice.reason
    bridge = fit(problem.source, ROWS.rows, reference=wide, solver=quick(), seed=0)
    assert isinstance(bridge.forward.start, Density)
    with pytest.raises(InvalidInputError, match=r"x1 is an unnormalised density.*give a reference"):
        fit(ROWS, density(FAR))


def test_other_problems_are_refused_with_the_solver_that_fits():
    wide, drifting = BrownianMotion(1.0), DriftProcess(lambda t, x: -x.sin(), 1.0)
    for ends, reference, told in (
        ((ROWS, ROWS), wide, r"both of these can be sampled: use IMF\(\), or GaussianBridge\(\)"),
        ((density(FAR), density(FAR)), drifting, "which DriftProcess does not have"),
        ((ROWS, density(FAR)), drifting, "which DriftProcess does not have"),
        ((density(FAR), ROWS), VariancePreserving(), r"VariancePreserving keeps only 0\.0066 of its start"),
        ((ROWS, Density(lambda x: -x.detach().square().sum(1), 2)), wide, "depends on x here but has none"),
        ((ROWS, Density(lambda x: (x > 0).all(1).float(), 2)), wide, "a step function"),
    ):
        with pytest.raises(UnsupportedError, match=told):
            solve(BridgeProblem(*ends, reference), quick(), seed=0)


def test_a_reference_that_forgets_its_start_leads_to_a_density_at_its_end():
    assert quick().refusal(problem_of(ROWS, FAR, VariancePreserving(), FORWARD)) is None


def test_energies_that_cannot_be_used_are_named():
    def fitted(log_density):
        return solve(BridgeProblem(ROWS, Density(log_density, 2), BrownianMotion(1.0)), quick(), seed=0)

    with pytest.raises(
        NonFiniteError, match=r"log density is NaN or infinite at the ends of simulated paths in \d+ of 512"
    ):
        fitted(lambda x: x[:, 0].log() - x.square().sum(1))
    with pytest.raises(NonFiniteError, match="finite at the ends of simulated paths but its gradient is not"):
        fitted(lambda x: -(0.0 * x[:, 0]).sqrt() - x.square().sum(1))
    with pytest.raises(InvalidInputError, match="log density must return one number per row"):
        fitted(lambda x: -x.square())
    with pytest.raises(InvalidInputError, match="updates must be positive"):
        AdjointBridge(updates=0)


def test_a_flat_density_is_no_trouble():
    """The first targets are zero, so they cannot size the network."""
    problem = BridgeProblem(ROWS, Density(lambda x: torch.zeros_like(x[:, 0]), 2), BrownianMotion(1.0))
    assert outward(problem) is FORWARD
    assert solve(problem, quick(), seed=0).transport(ROWS.rows, seed=0).isfinite().all()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("sigma", "told"), [(0.1, True), (0.3, False)])
def test_it_says_where_the_noise_is_small(sigma, told, flipped):
    """Of two Gaussians the correlation ρ of the bridge tells the rate, whichever end is the density."""
    rows = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    ends = [
        Samples((rows - rows.mean(0)) / rows.std(0)),
        Density(lambda x: -0.5 * ((x - 1.0) / 0.7).square().sum(1), 2),
    ]
    problem = BridgeProblem(*(reversed(ends) if flipped else ends), BrownianMotion(sigma))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        AdjointBridge().init(problem, 1)
    assert [one.category for one in found] == ([ConvergenceWarning] if told else [])
    if told:
        n = 0.7 / sigma**2
        left = (2 * n / (1 + math.sqrt(1 + 4 * n**2))) ** (AdjointBridge.updates / 30)
        assert abs(int(re.search(r"leave (\d+)%", str(found[0].message))[1]) - 100 * left) < 4


@pytest.mark.parametrize("where", ["hollow", "point"])
def test_where_no_spread_can_be_told_nothing_is_said(where):
    """A density that curves upwards along the paths, and a source without width."""
    rows = 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    start = Point(torch.zeros(2)) if where == "point" else Samples(rows)
    density = Density(lambda x: 0.5 * x.square().sum(1) - 0.01 * x.square().sum(1).square(), 2)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        AdjointBridge().init(BridgeProblem(start, density, BrownianMotion(0.1)), 1)
    assert not found
