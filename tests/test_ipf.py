"""Iterative proportional fitting: every half-step against the grid, its end against closed forms, its states."""

import math
import re
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid
from torch import Tensor

from sbridge.controls import MLP, Control, ExactTrace, FourierMLP, Hutchinson, SumControl
from sbridge.controls.networks import TIME_FEATURES
from sbridge.errors import ConvergenceWarning, FileFormatError, InvalidInputError, UnsupportedError
from sbridge.fitting import fit, solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Law, Point, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.pde import Grid, GridSolution, proportional_fitting, solve_schroedinger
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, Process, VariancePreserving
from sbridge.solvers import (
    IMF,
    IPF,
    AdjointHalfBridge,
    DensityRatio,
    GaussianBridge,
    GaussianStart,
    HalfBridge,
    MatchedBridge,
    MaximumLikelihood,
    MeanMatching,
    PinnedPaths,
    RiccatiStart,
    WarmStart,
    ZeroStart,
    check_solver,
)
from sbridge.solvers.control.starts import usual_start
from sbridge.solvers.ipf import IPFState
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Optimisation, StateDict

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@register
class DoubleWell(torch.nn.Module):
    """``b = x − x³`` in every coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, object] = {}

    def forward(self, t: float | Tensor, x: Tensor) -> Tensor:
        return x - x**3


def well(dimension: int | None = None) -> DriftProcess:
    return DriftProcess(DoubleWell(), 0.8, 1.0, dimension)


M0, MT = tensor([-1.0, 0.2]), tensor([1.0, 0.5])
A, B = tensor([[0.5, 0.2], [0.2, 1.0]]), tensor([[1.5, -0.4], [-0.4, 0.7]])
RATE, SIGMA = tensor([[1.0, 0.6], [-0.8, 0.4]]), tensor([[0.8, 0.3], [0.1, 1.0]])
PLANE: dict[str, Process] = {
    "Brownian": BrownianMotion(1.0),
    "OU, matrix": OrnsteinUhlenbeck(RATE, SIGMA, [0.3, -0.5], 1.3),
    "VP": VariancePreserving(mean=[0.5, 0.0], horizon=0.5),
    "double well": well(),
}
HALF_BRIDGES: dict[str, HalfBridge] = {
    "mean matching": MeanMatching(),
    "likelihood": MaximumLikelihood(),
    "likelihood, probes": MaximumLikelihood(Hutchinson(2)),
    "adjoint": AdjointHalfBridge(),
}
PAIRS: dict[str, tuple[HalfBridge, HalfBridge]] = {
    **{name: (one, one) for name, one in HALF_BRIDGES.items()},
    "pinned": (PinnedPaths(), PinnedPaths()),
    "density ratio": (DensityRatio(classifier_updates=1), MeanMatching()),
}


def gaussians(reference: Process, dtype: torch.dtype = torch.float64) -> BridgeProblem:
    return BridgeProblem(Gaussian(M0.to(dtype), A.to(dtype)), Gaussian(MT.to(dtype), B.to(dtype)), reference)


def quick(**options: object) -> IPF:
    """A run of 12 steps that touches everything; by mean matching from the reference unless it is said otherwise."""
    settings: dict[str, object] = {
        "forward": MeanMatching(),
        "backward": MeanMatching(),
        "start": ZeroStart(),
        "half_steps": 3,
        "updates": 4,
        "refresh": 3,
        "paths": 24,
        "network": MLP(8, 2),
        "optimisation": Optimisation(batch=32, warm_up=2, learning_rate=1e-4),
        "grid": TimeGrid.uniform(4),
    }
    return IPF(**{**settings, **options})


# --- states


def run(solver: IPF, problem: BridgeProblem, state: IPFState, until: int) -> IPFState:
    while state.step < until:
        state, _ = solver.step(problem, state)
    return state


def same(left: StateDict, right: StateDict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


@pytest.mark.parametrize("half_bridges", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("stop", [0, 3, 6])
def test_a_run_taken_up_again_ends_in_the_same_bits(stop, half_bridges):
    forward, backward = half_bridges
    solver = quick(forward=forward, backward=backward, start=None)
    problem = gaussians(PLANE["OU, matrix"], torch.float32)
    whole = run(solver, problem, solver.init(problem, 3), 12).state_dict()
    saved = run(solver, problem, solver.init(problem, 3), stop).state_dict()
    again = solver.resume(problem, saved)
    assert same(again.state_dict(), saved)
    assert same(run(solver, problem, again, 12).state_dict(), whole)


@pytest.mark.parametrize("half_bridges", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("name", PLANE)
def test_it_keeps_the_laws_of_a_solver(name, half_bridges):
    if name == "double well" and isinstance(half_bridges[0], PinnedPaths):
        return
    forward, backward = half_bridges
    dtype = torch.float32 if name == "Brownian" else torch.float64
    grid = TimeGrid.uniform(20 if name == "double well" else 4)  # its drift is steep
    solver = quick(half_steps=2, updates=2, forward=forward, backward=backward, grid=grid)
    check_solver(solver, gaussians(PLANE[name], dtype), seed=4)


def test_it_keeps_them_for_samples_with_weights():
    rows = 0.5 * torch.randn(40, 2, generator=seeded(1))
    problem = BridgeProblem(Samples(rows, torch.ones(40) / 40), Samples(rows + 1), well(2))
    check_solver(quick(half_steps=2, grid=TimeGrid.uniform(30)), problem, seed=4)


# --- every half-step against the grid

LINE: dict[str, Process] = {
    "Brownian": BrownianMotion(0.8),
    "OU": OrnsteinUhlenbeck(1.2, 0.9, 0.4),
    "double well": well(1),
}
ONE = Gaussian(tensor([-0.8]), tensor([[0.25]]))
APART = GaussianMixture(tensor([0.4, 0.6]), tensor([[-1.0], [1.2]]), tensor([[[0.15]], [[0.2]]]))
SKEW = GaussianMixture(tensor([0.4, 0.6]), tensor([[-0.5], [1.0]]), tensor([[[0.3]], [[0.2]]]))
CELLS = Grid.of(-4.5, 4.5, 240)


def single(law: Law) -> Law:
    """In float32, which trains faster."""
    if isinstance(law, Gaussian):
        return Gaussian(law.mean.float(), law.covariance.float())
    if isinstance(law, GaussianMixture):
        return GaussianMixture(law.weights.float(), law.means.float(), law.covariances.float())
    return law


def trained(**options: object) -> IPF:
    settings: dict[str, object] = {
        "forward": MeanMatching(),
        "backward": MeanMatching(),
        "start": ZeroStart(),
        "half_steps": 10,
        "updates": 150,
        "paths": 512,
        "refresh": 50,
        "network": FourierMLP(64, 1),
        "optimisation": Optimisation(learning_rate=1e-2, batch=1024, ema_decay=0.98, warm_up=20),
        "grid": TimeGrid.cosine(100),
    }
    return IPF(**{**settings, **options})


BY_ADJOINT: dict[str, object] = {
    "forward": AdjointHalfBridge(),
    "backward": AdjointHalfBridge(),
    "updates": 200,
    "refresh": 10,
    "paths": 256,
    "grid": TimeGrid.cosine(40),
}
"""Paths of the control that learns: fewer and more often."""


@dataclass(frozen=True)
class Errors:
    """What a half-step is judged by.

    Attributes:
        nats: ``½ E∫|u − u*|² dt`` under the law that was learned, the path KL from it to the grid's iterate.
        potential: root mean square error of the log-potential half way, its mean taken off, under the grid's law.
        end: Kolmogorov's distance of 2500 simulated far ends from the grid's far marginal.
    """

    nats: float
    potential: float
    end: float

    def within(self, nats: float, potential: float, end: float) -> bool:
        return self.nats < nats and self.potential < potential and self.end < end


def judged(measure: PathMeasure, truth: GridSolution, n: int = 2500) -> Errors:
    forward, horizon = measure.direction is FORWARD, measure.process.horizon
    exact = truth.control if forward else truth.backward_control
    paths = measure.simulate(measure.starts(n, seed=5), seed=5)
    spans, nats = paths.t.diff().abs(), 0.0
    for j, t in enumerate(paths.chain.step_times):
        error = paths.v[j].double() - exact(t, paths.x[j].double())
        nats += 0.5 * float(spans[j] * error.square().mean())
    centres, half = np.array(CELLS.centres[0]), 0.5 * horizon
    slope = measure.control(half, torch.from_numpy(centres)[:, None]).detach() / measure.process.scale(half).values
    wanted = truth.potentials.log_phi(half) if forward else truth.potentials.log_phi_hat(half)
    error = cumulative_trapezoid(slope.numpy()[:, 0], centres, initial=0.0) - wanted
    mass = truth.density(half) * CELLS.volume
    potential = math.sqrt(float(mass @ (error - mass @ error) ** 2))
    above = np.cumsum(truth.density(horizon if forward else 0.0)) * CELLS.volume
    ends = np.sort(paths.x[-1].double().numpy()[:, 0])
    places = np.interp(ends, centres + 0.5 * (centres[1] - centres[0]), above)
    return Errors(nats, potential, float(np.abs(places - (np.arange(n) + 0.5) / n).max()))


def half_steps_judged(
    solver: IPF, reference: Process, count: int, known: tuple[Law, Law], ends: tuple[Law, Law] | None = None
) -> list[Errors]:
    """The errors of the first ``count`` half-steps, each judged by the grid's iterate between the ``known`` laws."""
    source, target = (single(law) for law in known)
    problem, found = BridgeProblem(*(ends or (source, target)), reference), []
    state = solver.init(problem, 2)
    for half_step, truth in enumerate(islice(proportional_fitting(reference, *known, CELLS), count)):
        state = run(solver, problem, state, (half_step + 1) * solver.updates)
        bridge = solver.finish(problem, state)
        forward = state.schedule[half_step] is FORWARD
        measure = replace(bridge.forward, start=source) if forward else replace(bridge.backward, start=target)
        found.append(judged(measure, truth))
    return found


@pytest.mark.parametrize("name", LINE)
def test_every_half_step_is_that_of_the_grid(name):
    """Four half-steps by mean matching, from one mode to two.

    Allowances: an eighth of a nat between the laws of paths, with which one path tells them apart with probability
    ½ + ½√(nats/2) = 0.62 at most (Pinsker), where the grid's controls cost 1 to 4 nats; a quarter of a nat in the
    log-potential; and 0.05 for the learned control above the 0.1 % point of Kolmogorov's distance, 1.95/√2500 = 0.039.
    """
    errors = half_steps_judged(trained(), LINE[name], 4, (ONE, APART))
    assert all(each.within(nats=0.125, potential=0.25, end=0.089) for each in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("name", LINE)
def test_ten_half_steps_are_those_of_the_grid(name):
    """Nothing builds up. With more updates half the allowance of nats will do, but for the error of Euler's steps."""
    errors = half_steps_judged(trained(updates=400), LINE[name], 10, (ONE, APART))
    nats = 0.125 if name == "double well" else 0.0625
    assert all(each.within(nats=nats, potential=0.25, end=0.089) for each in errors), errors


@pytest.mark.parametrize(
    ("divergence", "count"),
    [(ExactTrace(), 1), pytest.param(Hutchinson(), 2, marks=pytest.mark.slow)],
    ids=["exact", "probes"],
)
def test_likelihood_is_that_of_the_grid(divergence, count):
    ways = {"forward": MaximumLikelihood(divergence), "backward": MaximumLikelihood(divergence)}
    errors = half_steps_judged(trained(**ways), LINE["double well"], count, (ONE, APART))
    assert all(each.within(nats=0.125, potential=0.25, end=0.089) for each in errors), errors


@pytest.mark.parametrize(
    "name", [name if name == "double well" else pytest.param(name, marks=pytest.mark.slow) for name in LINE]
)
def test_the_adjoint_is_that_of_the_grid(name):
    """Two half-steps towards laws by their densities; 0.1 for the learned control in the last number."""
    errors = half_steps_judged(trained(**BY_ADJOINT), LINE[name], 2, (ONE, SKEW))
    assert all(each.within(nats=0.125, potential=0.25, end=0.139) for each in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("end", ["target", "source"])
def test_an_end_may_be_an_unnormalised_density(end):
    """It is never sampled. The other direction is learned from its paths."""
    density, normal = Density(lambda x: SKEW.log_density(x) + 3.0, 1), single(ONE)
    if end == "target":
        solver = trained(**{**BY_ADJOINT, "backward": MeanMatching()})
        errors = half_steps_judged(solver, LINE["double well"], 2, (ONE, SKEW), (normal, density))
    else:
        solver = trained(**{**BY_ADJOINT, "forward": MeanMatching()})
        errors = half_steps_judged(solver, LINE["double well"], 2, (SKEW, ONE), (density, normal))
    assert all(each.within(nats=0.125, potential=0.25, end=0.139) for each in errors), errors


# --- where it converges to


class AffineNet(torch.nn.Module):
    """``u = G(t) x + g(t)``, linear in the features of time: the bridge of Gaussians is of this form."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(TIME_FEATURES + 1, dim * (dim + 1)))

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        h = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        both = (h @ self.weight).reshape(-1, x.shape[1], x.shape[1] + 1)
        return (both[..., :-1] @ x.unsqueeze(-1)).squeeze(-1) + both[..., -1]


@pytest.mark.parametrize("name", ["OU, matrix", pytest.param("Brownian", marks=pytest.mark.slow)])
def test_it_converges_to_the_bridge_of_gaussians(name):
    """Both controls against closed forms: within a fifth of a nat, of three and of six."""
    solver = trained(
        half_steps=8,
        updates=80,
        network=AffineNet,
        optimisation=Optimisation(learning_rate=2e-2, batch=1024, warm_up=10, ema_decay=0.97, clip=10.0),
        grid=TimeGrid.cosine(80),
    )
    problem = gaussians(PLANE[name], torch.float32)
    bridge, exact = solve(problem, solver, seed=1), solve(problem, GaussianBridge(), seed=0)
    for found, truth in ((bridge.forward, exact.forward), (bridge.backward, exact.backward)):
        paths = found.sample(2000, seed=3)
        wanted = torch.stack([truth.control(t, paths.x[j]) for j, t in enumerate(paths.chain.step_times)])

        def nats(error: Tensor, spans: Tensor = paths.t.diff().abs()) -> float:
            return 0.5 * float(spans @ error.double().square().sum(2).mean(1))

        assert nats(paths.v - wanted) < 0.2
        assert nats(wanted) > 2.0


@register
@dataclass(frozen=True)
class Turned(WarmStart):
    """The control ``u + Jx``, ``u`` that of the Gaussian bridge: every pair of ends is joined by a turning path."""

    def control(self, *arguments: object) -> None:
        return None

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        straight = GaussianStart().bridge_controls(problem)
        return {direction: SumControl((control, Spin())) for direction, control in straight.items()}


@register
@dataclass(frozen=True)
class Spin:
    rate: float = 2.0

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        return self.rate * torch.stack([-x[:, 1], x[:, 0]], 1)


def path_nats(found: PathMeasure, exact: PathMeasure, n: int = 2000) -> float:
    """``KL(P ‖ P*)`` of the paths of ``found``, from the difference of the controls."""
    paths = found.simulate(found.starts(n, seed=3), seed=3)
    wanted = torch.stack([exact.control(t, paths.x[j]) for j, t in enumerate(paths.chain.step_times)])
    return 0.5 * float(paths.t.diff().abs() @ (paths.v - wanted).double().square().sum(2).mean(1))


def test_pinned_paths_forget_a_rotation():
    """A rotation of 4 nats in the start, between Gaussians: .06 nats are left after 16 half-steps of 60 updates."""
    problem = gaussians(BrownianMotion(1.0), torch.float32)
    exact = solve(problem, GaussianBridge(), seed=0)
    solver = IPF(
        half_steps=16,
        updates=60,
        start=Turned(),
        refresh=60,
        paths=4096,
        network=AffineNet,
        optimisation=Optimisation(learning_rate=2e-2, batch=512, warm_up=10, ema_decay=0.97, clip=10.0),
        grid=TimeGrid.cosine(30),
    )
    before = solver.finish(problem, solver.init(problem, 0))
    after = solve(problem, solver, seed=0)
    assert path_nats(before.forward, exact.forward) > 3.0
    assert path_nats(after.forward, exact.forward) < 0.06
    assert path_nats(after.backward, exact.backward) < 0.06


@pytest.mark.parametrize("solver", [IPF(), IMF(), MatchedBridge()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "name", [pytest.param("Brownian", marks=pytest.mark.slow), "OU, matrix", pytest.param("VP", marks=pytest.mark.slow)]
)
def test_between_gaussians_the_start_is_the_bridge(name, solver):
    """Before the first update, for Gaussian ends and for mixtures of one Gaussian; and mixtures have their moments."""
    problem = gaussians(PLANE[name])
    exact = solve(problem, GaussianBridge(grid=solver.grid), seed=0)
    ends = (
        GaussianMixture(tensor([1.0]), law.mean[None], law.covariance[None]) for law in (problem.source, problem.target)
    )
    for one in (problem, BridgeProblem(*ends, problem.reference)):
        bridge = solver.finish(one, solver.init(one, 0))
        assert path_nats(bridge.forward, exact.forward, 200) < 1e-6
        assert path_nats(bridge.backward, exact.backward, 200) < 1e-6


def test_the_usual_start():
    many, few = torch.randn(50, 2, generator=seeded(1)), torch.randn(19, 2, generator=seeded(1))
    flat = torch.cat([many[:, :1], many[:, :1]], 1)
    normal = Gaussian(torch.zeros(2), torch.eye(2))
    brownian = BrownianMotion(1.0)
    assert isinstance(usual_start(BridgeProblem(Samples(many), normal, brownian)), GaussianStart)
    assert usual_start(BridgeProblem(Samples(many), normal, well(2))) == ZeroStart()
    for end in (Samples(few), Samples(flat), Point(torch.zeros(2))):
        assert usual_start(BridgeProblem(end, normal, brownian)) == ZeroStart()
    with pytest.raises(UnsupportedError, match="RiccatiStart is a start for control problems"):
        IMF(start=RiccatiStart()).init(BridgeProblem(Samples(many), normal, brownian), 0)


def wells_judged(start: WarmStart | None, *, quickly: bool = False) -> tuple[float, float]:
    """Path KL of the forward and the backward process to the grid's bridge, under the double well."""
    source = GaussianMixture(tensor([0.8, 0.2]), tensor([[-1.0], [1.0]]), tensor([[[0.1]], [[0.1]]]))
    truth = solve_schroedinger(LINE["double well"], source, APART, CELLS)
    rows = [Samples(law.sample(8000, seeded(i)).float()) for i, law in enumerate((source, APART))]
    solver = IPF(
        half_steps=8, updates=150, start=start, paths=1024, network=FourierMLP(64, 1), grid=TimeGrid.cosine(40)
    )
    bridge = solve(BridgeProblem(*rows, LINE["double well"]), solver, seed=1)
    return judged(bridge.forward, truth).nats, judged(bridge.backward, truth).nats


def test_density_ratios_lead_towards_the_bridge_of_the_grid():
    """With the default half-bridges for a drift of one's own; no control costs more than a nat."""
    assert max(wells_judged(None, quickly=True)) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_density_ratios_lead_to_the_bridge_of_the_grid(wrong):
    """Whatever control is put in first."""
    assert max(wells_judged(Steady() if wrong else None)) < 0.1


@register
@dataclass(frozen=True)
class Steady(WarmStart):
    """A control of more than 3 nats that has nothing to do with the bridge."""

    def control(self, *arguments: object) -> None:
        return None

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        return {FORWARD: Wave(), BACKWARD: None}


@register
@dataclass(frozen=True)
class Wave:
    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        return 3.0 * torch.cos(3.0 * x)


def test_two_clouds_under_a_drift_of_ones_own(dtype):
    """Through the front door, where data are scaled and rows are fitted: ends of both directions, and new rows."""
    rows = torch.randn(400, 2, generator=seeded(1), dtype=dtype) @ tensor([[0.5, 0.2], [0.0, 0.4]]).to(dtype)
    x0, x1 = rows[:200] - 1.0, 0.5 * rows[200:] + torch.tensor([1.0, 0.5], dtype=dtype)
    solver = trained(half_steps=4, updates=250, network=MLP(32, 1), grid=TimeGrid.cosine(60))
    bridge = fit(x0, x1, reference=well(2), solver=solver, seed=4)
    for measure, goal in ((bridge.forward, x1), (bridge.backward, x0)):
        ends = measure.transport(measure.start.sample(4000, seeded(2)), seed=4)
        assert ends.dtype == dtype
        spread = goal.std(0)
        # Over six fits (three seeds, both dtypes) the misses were .02 to .11, and .01 to .19.
        assert float(((ends.mean(0) - goal.mean(0)) / spread).abs().max()) < 0.2
        assert float((ends.std(0) / spread - 1.0).abs().max()) < 0.25


def test_half_steps_alternate_and_start_at_the_right_ends():
    x0, xT = torch.randn(30, 2, generator=seeded(1)), torch.randn(50, 2, generator=seeded(2)) + 3.0
    problem, solver = BridgeProblem(Samples(x0), Samples(xT), BrownianMotion(1.0)), quick()
    state, kept, updates = solver.init(problem, 0), [], []
    assert solver.max_steps(problem) == 12
    while not solver.finished(problem, state):
        state, info = solver.step(problem, state)
        half_step = (state.step - 1) // 4
        assert info["half-step"] == half_step + 1
        updates.append(tuple(state.learners[way].updates for way in (FORWARD, BACKWARD)))
        if not kept or state.kept["x"] is not kept[-1]:
            kept.append(state.kept["x"])
            # x_0 = x_1 − L ξ under the reference, with L = √Δ = ½
            if half_step == 0:
                start = kept[-1][0] - 0.5 * state.kept["noise"][0]
                gap = (start.unsqueeze(1) - x0).abs().amax(2)
                assert float(gap.amin(1).max()) < 1e-6
    assert len(kept) == 3 * 2
    # One schedule for each direction over the whole run.
    assert updates == [(0, k) for k in (1, 2, 3, 4)] + [(k, 4) for k in (1, 2, 3, 4)] + [(4, k) for k in (5, 6, 7, 8)]
    assert [state.learners[way].length for way in (FORWARD, BACKWARD)] == [4, 8]


def test_before_any_half_step_it_is_the_reference():
    problem = gaussians(PLANE["OU, matrix"])
    bridge = quick().finish(problem, quick().init(problem, 0))
    reference = PathMeasure(problem.reference, None, problem.source, grid=TimeGrid.uniform(4))
    assert torch.equal(bridge.forward.sample(5, seed=1).x, reference.sample(5, seed=1).x)


def test_the_bridge_uses_averaged_weights_and_is_frozen():
    solver, problem = quick(), gaussians(BrownianMotion(1.0))
    state = run(solver, problem, solver.init(problem, 0), 8)
    control = solver.finish(problem, state).forward.control
    averaged = dict(state.learners[FORWARD].averaged.state_dict())
    for key, value in control.state_dict().items():
        assert torch.equal(value, averaged[key])
        assert value.data_ptr() != averaged[key].data_ptr()
    assert not any(parameter.requires_grad for parameter in control.parameters())


# --- what cannot be

NORMAL = Gaussian(M0, A)
UNNORMALISED = Density(lambda x: -x.square().sum(1), 2)
DETACHED = DriftProcess(lambda t, x: -(x.detach() ** 3), 1.0)
REFUSED: dict[str, tuple[IPF, Law, Law, Process, str]] = {
    "a source that cannot be sampled": (IPF(), UNNORMALISED, NORMAL, PLANE["Brownian"], r"IPF\(backward=Adjoint"),
    "a target that cannot be sampled": (IPF(), NORMAL, UNNORMALISED, PLANE["Brownian"], r"IPF\(forward=Adjoint"),
    "neither can": (IPF(), UNNORMALISED, UNNORMALISED, PLANE["Brownian"], "draw samples from one"),
    "a target without a density": (
        IPF(forward=AdjointHalfBridge()),
        NORMAL,
        Samples(torch.eye(3, 2, dtype=torch.float64)),
        PLANE["Brownian"],
        r"log density of the target, which Samples does not have: use IPF\(forward=MeanMatching",
    ),
    "a source without a density": (
        IPF(backward=AdjointHalfBridge()),
        Point(M0),
        NORMAL,
        PLANE["Brownian"],
        r"log density of the source, which Point does not have: use IPF\(backward=MeanMatching",
    ),
    "own paths from what cannot be sampled": (
        IPF(forward=AdjointHalfBridge()),
        UNNORMALISED,
        NORMAL,
        PLANE["Brownian"],
        "whose start cannot be sampled",
    ),
    "a drift without derivatives": (
        IPF(forward=AdjointHalfBridge()),
        NORMAL,
        NORMAL,
        DETACHED,
        "differentiates the drift of the reference, and torch cannot",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_refuses(case):
    solver, source, target, reference, words = REFUSED[case]
    with pytest.raises(UnsupportedError, match=words):
        solve(BridgeProblem(source, target, reference), solver, seed=0)


def test_what_it_takes():
    """Any drift, smooth or not, when nothing differentiates it; a drift that does not depend on the state."""
    wind = DriftProcess(lambda t, x: torch.ones_like(x), 1.0)
    assert IPF().refusal(BridgeProblem(NORMAL, NORMAL, DETACHED)) is None
    assert IPF(forward=AdjointHalfBridge()).refusal(BridgeProblem(NORMAL, NORMAL, wind)) is None
    assert IPF(forward=AdjointHalfBridge()).refusal(BridgeProblem(NORMAL, UNNORMALISED, wind)) is None


def test_steps_too_long_for_the_drift_are_refused():
    steep = DriftProcess(lambda t, x: -300.0 * x, 1.0, 1.0, 2)
    with pytest.raises(InvalidInputError, match=r"contracts at rate 300.*TimeGrid.uniform\(300\)"):
        solve(BridgeProblem(NORMAL, NORMAL, steep), IPF(), seed=0)


@pytest.mark.parametrize("name", ["updates", "refresh", "paths"])
def test_counts_must_be_positive(name):
    with pytest.raises(InvalidInputError, match=f"{name} must be positive, got 0"):
        IPF(**{name: 0})


def test_either_direction_must_be_learned():
    with pytest.raises(InvalidInputError, match="half_steps must be at least 2"):
        IPF(half_steps=1)


def test_a_state_of_another_solver_is_named():
    with pytest.raises(FileFormatError, match=r"no number 'seed'.*another solver"):
        quick().resume(gaussians(BrownianMotion(1.0)), {"step": 3})


@pytest.mark.parametrize("drifting", [False, True])
def test_it_says_where_half_steps_hardly_help(drifting):
    """Between Gaussians of variance 1 and correlation ρ of the bridge, k half-steps leave ρᵏ of the error."""
    noise, usual = 0.3, IPF().half_steps
    still = DriftProcess(lambda t, x: torch.zeros_like(x), noise) if drifting else BrownianMotion(noise)
    rows = [torch.randn(400, 1, generator=seeded(i), dtype=torch.float64) for i in (1, 2)]
    ends = [Samples((side - side.mean(0)) / side.std(0)) for side in rows]
    n = 1.0 / noise**2
    rate = 2 * n / (1 + math.sqrt(1 + 4 * n**2))
    with pytest.warns(ConvergenceWarning) as told:
        IPF(start=ZeroStart()).init(BridgeProblem(*ends, still), 0)
    found = re.search(r"leave (\d+)%.*half_steps=(\d+), or σ ([\d.]+) times", str(told[0].message))
    left, steps, factor = (float(number) for number in found.groups())
    assert left == pytest.approx(100 * rate**usual, abs=3)
    assert steps == pytest.approx(math.log(0.1) / math.log(rate), rel=0.1)
    IPF(start=ZeroStart()).init(BridgeProblem(*ends, replace(still, sigma=1.1 * factor * noise)), 0)
    IPF(start=ZeroStart(), half_steps=int(1.1 * steps)).init(BridgeProblem(*ends, still), 0)
    if not drifting:  # between Gaussians the usual start is the bridge
        IPF().init(BridgeProblem(*ends, still), 0)
