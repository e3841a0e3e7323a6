"""Iterative Markovian fitting: its regression against closed forms, its fixed point, its stages, its states."""

import math
from collections.abc import Callable

import pytest
import torch
from families import IN_THE_PLANE, M0, MT, A, B, gaussians
from torch import Tensor, nn

from sbridge.benchmarks.bures import conditional_uvp
from sbridge.benchmarks.pairs import MixturePair
from sbridge.controls import MLP
from sbridge.controls.networks import TIME_FEATURES
from sbridge.couplings import EntropicCoupling, IndependentCoupling, ReferenceCoupling
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import fit, solve
from sbridge.laws import Density, Gaussian, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, LinearProcess, OrnsteinUhlenbeck
from sbridge.processes.base import Time
from sbridge.random import generator as generator_of
from sbridge.solvers import IMF, ZeroStart, check_solver
from sbridge.solvers.matching import MatchingState, Regression
from sbridge.time import TimeGrid
from sbridge.training import Optimisation, StateDict

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options: object) -> IMF:
    """A run of 22 steps that touches everything."""
    settings: dict[str, object] = {
        "coupling": IndependentCoupling(),
        "pretraining": 6,
        "stages": 4,
        "updates": 4,
        "refresh": 3,
        "pairs": 40,
        "network": MLP(8, 2),
        "optimisation": Optimisation(batch=48, warm_up=2),
        "grid": TimeGrid.uniform(4),
    }
    return IMF(**{**settings, **options})


# --- the regression


def projected(reference: LinearProcess, direction: Direction, t: Time, x: Tensor) -> Tensor:
    """The Markovian projection of independent Gaussian ends: the target at the conditional mean of the far end.

    ``X_t = S X_0 + K X_T + … + Γ^½ ζ`` is Gaussian, ``Cov(X_T, X_t) = B Kᵀ`` and ``Cov(X_0, X_t) = A Sᵀ``.
    """
    pinned, count = reference.pinned(t), len(x)
    k, gamma = pinned.gain.expanded(2), pinned.covariance.expanded(2)
    s = pinned.behind.map.expanded(2) - k @ pinned.whole.map.expanded(2)
    spread = s @ A @ s.mT + k @ B @ k.mT + gamma
    shift = torch.linalg.solve(spread, (x - pinned.mean(M0.expand(count, 2), MT.expand(count, 2))).unsqueeze(-1))
    if direction is FORWARD:
        gradient = reference.guiding_term(t, x, MT + (B @ k.mT @ shift).squeeze(-1))
    else:
        gradient = reference.conditional_score(t, x, M0 + (A @ s.mT @ shift).squeeze(-1))
    return reference.scale(t).T(gradient)


class Probe(nn.Module):
    """``u(t, x) + h(t, x) θ`` at ``θ = 0``: the gradient of the loss in θ is ``2 E[w h (u − target)]`` over dim."""

    def __init__(self, control: Callable[[Tensor, Tensor], Tensor], horizon: float) -> None:
        super().__init__()
        self.control, self.horizon = control, horizon
        self.theta = nn.Parameter(torch.zeros(7, 2, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        tau = (t / self.horizon).unsqueeze(1)
        h = torch.cat([torch.ones_like(tau), tau, tau.square(), x, tau * x], 1)
        return self.control(t, x) + h @ self.theta


def losses(
    solver: IMF, problem: BridgeProblem, direction: Direction, control: Callable[[Tensor, Tensor], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """``count`` values of the loss on fresh pairs, and their gradients in θ."""
    state = solver.init(problem, 5)
    probe = Probe(control, problem.reference.horizon)
    values, gradients = [], []
    for _ in range(count):
        state.pairs = solver._new_pairs(problem, state, -1)
        probe.zero_grad()
        loss = state.regression.loss(probe, state.pairs, direction, solver.optimisation.batch, state.generator)
        loss.backward()
        values.append(loss.detach())
        gradients.append(probe.theta.grad.flatten())
    return torch.stack(values), torch.stack(gradients)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_the_regression_is_minimal_at_the_markovian_projection(name, direction):
    """Its gradient vanishes there in every direction ``h = 1, τ, τ², x, τx``, within standard errors."""
    reference = IN_THE_PLANE[name]
    solver = quick(pairs=1024, optimisation=Optimisation(batch=1024))

    def control(t: Tensor, x: Tensor) -> Tensor:
        return projected(reference, direction, t, x)

    _, gradients = losses(solver, gaussians(reference), direction, control, 60)
    z = gradients.mean(0) / (gradients.std(0) / math.sqrt(60))
    assert float(z.abs().max()) < 4.0
    # and it does not vanish at another affine control
    _, wrong = losses(solver, gaussians(reference), direction, lambda t, x: control(t, x) + 0.1 * x, 60)
    assert float((wrong.mean(0) / (wrong.std(0) / math.sqrt(60))).abs().max()) > 6.0


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("name", ["Brownian", "VP"])
def test_the_loss_of_no_control_is_the_weighted_size_of_the_targets(name, direction):
    """``∫ w E target² dt / T``, the weights being ``1/(s √E target²)``."""
    solver, reference = quick(pairs=1024, optimisation=Optimisation(batch=2048)), IN_THE_PLANE[name]
    values, _ = losses(solver, gaussians(reference), direction, lambda t, x: torch.zeros_like(x), 60)
    regression = solver.init(gaussians(reference), 5).regression
    fractions = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * 0.999
    t = (fractions if direction is FORWARD else 1.0 - fractions) * reference.horizon
    sizes = regression.target_square(reference.pinned(t), reference.scale(t), direction).sqrt()
    wanted = float(sizes.mean()) / regression.typical_size
    # the residual's size is itself a mean over 4096 draws: some 2 %
    assert abs(float(values.mean()) / wanted - 1.0) < 4 * float(values.std()) / wanted / math.sqrt(60) + 0.03


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_noise_of_both_signs_cancels(direction):
    """Between equal ends the targets are noise alone: a control that does not see the state feels none of it."""
    reference, pairs = IN_THE_PLANE["Brownian"], (torch.zeros(1, 2, dtype=torch.float64),) * 2
    regression, state = Regression(reference, 2, 1e-6, 1.0), seeded(1)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    gradients = []
    for _ in range(50):
        loss = regression.loss(lambda t, x: theta + 0.0 * x, pairs, direction, 2, state)
        gradients.append(torch.autograd.grad(loss, theta)[0])
    assert float(torch.stack(gradients).abs().max()) < 1e-12


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_the_expected_square_of_the_target(name, direction, fraction):
    """For a residual that is the same in all directions, against draws."""
    reference, n, size = IN_THE_PLANE[name], 20_000, 1.7
    pinned, sigma = reference.pinned(fraction * reference.horizon), reference.scale(fraction * reference.horizon)
    x0, noise, residual = (torch.randn(n, 2, generator=seeded(k), dtype=torch.float64) for k in (1, 2, 3))
    xT = pinned.whole.mean(x0) + size * residual
    gradient = (pinned.guiding_term if direction is FORWARD else pinned.conditional_score)(x0, xT, noise)
    squares = sigma.T(gradient).square().mean(1)
    found = float(Regression(reference, 2, size**2, 1.0).target_square(pinned, sigma, direction))
    assert abs(found - float(squares.mean())) < 4 * float(squares.std()) / math.sqrt(n)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(("name", "count"), [("Brownian", 96), ("OU, matrix", 32)])
def test_times_are_stratified_and_stay_off_the_infinite_end(name, count, direction):
    reference = IN_THE_PLANE[name]
    times, _ = Regression(reference, 2, 1.0, 1.0).times(96, direction, seeded(1))
    fractions = (times if direction is FORWARD else reference.horizon - times) / reference.horizon
    assert times.shape == (count,)
    assert times.dtype == torch.float64
    strata = (fractions / 0.999 * count).floor()
    assert torch.equal(strata, torch.arange(count, dtype=torch.float64))
    assert float(fractions.max()) <= 0.999
    assert len(Regression(IN_THE_PLANE["OU, matrix"], 2, 1.0, 1.0).times(50, direction, seeded(1))[0]) == 2


# --- where it converges to


class AffineNet(nn.Module):
    """``u = G(t) x + g(t)``, linear in the features of time: the bridge of Gaussians is of this form."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(TIME_FEATURES + 1, dim * (dim + 1)))

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        h = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        both = (h @ self.weight).reshape(-1, x.shape[1], x.shape[1] + 1)
        return (both[..., :-1] @ x.unsqueeze(-1)).squeeze(-1) + both[..., -1]


AFFINE: dict[str, object] = {
    "pairs": 2048,
    "network": AffineNet,
    "optimisation": Optimisation(learning_rate=2e-2, warm_up=10, ema_decay=0.97, clip=10.0),
    "grid": TimeGrid.uniform(30),
}
"""Trains an affine network quickly."""


def end_errors(problem: BridgeProblem, solver: IMF, n: int = 10_000) -> tuple[float, float, float]:
    """Largest errors of end mean, end covariance and covariance of the ends in both directions, in standard units."""
    source, target = problem.source, problem.target
    assert isinstance(source, Gaussian)
    assert isinstance(target, Gaussian)
    coupling = GaussianCoupling(
        source.mean, source.covariance, target.mean, target.covariance, problem.linear_reference
    )
    one, found = solve(problem, solver, seed=1), []
    for measure, end, joint in ((one.forward, target, coupling.coupling), (one.backward, source, coupling.coupling.mT)):
        x = measure.start.sample(n, seeded(3))
        y = measure.transport(x, seed=4).double()
        both, dim = torch.cat([x.double(), y], 1).mT.cov(), x.shape[1]
        near, far = measure.start.covariance.double().diagonal().sqrt(), end.covariance.double().diagonal().sqrt()
        mean = ((y.mean(0) - end.mean) / far).abs().max()
        spread = ((both[dim:, dim:] - end.covariance) / torch.outer(far, far)).abs().max()
        found.append((mean, spread, ((both[:dim, dim:] - joint) / torch.outer(near, far)).abs().max()))
    mean, spread, cross = (max(float(value) for value in column) for column in zip(*found, strict=True))
    return mean, spread, cross


def test_it_finds_the_bridge_of_gaussians_in_one_dimension():
    """The independent start is off by 0.55 in the last number; Monte Carlo errors are 0.01."""
    ends = Gaussian(tensor([-1.0]).float(), tensor([[0.5]]).float()), Gaussian(torch.ones(1), torch.tensor([[1.5]]))
    solver = quick(
        pretraining=200,
        stages=4,
        updates=120,
        refresh=60,
        pairs=1024,
        network=MLP(16, 1),
        optimisation=Optimisation(learning_rate=1e-2, warm_up=20, ema_decay=0.97),
        grid=TimeGrid.uniform(25),
    )
    mean, spread, cross = end_errors(BridgeProblem(*ends, OrnsteinUhlenbeck(0.7, 1.0, 0.2)), solver)
    assert mean < 0.15
    assert spread < 0.15
    assert cross < 0.08


def test_it_finds_the_bridge_of_gaussians_under_a_matrix_reference():
    solver = quick(
        pretraining=250,
        stages=4,
        updates=120,
        refresh=60,
        **AFFINE,
    )
    mean, spread, cross = end_errors(gaussians(IN_THE_PLANE["OU, matrix"], torch.float32), solver)
    assert mean < 0.2
    assert spread < 0.2
    assert cross < 0.1


@pytest.mark.slow
def test_from_the_reference_it_converges_like_proportional_fitting():
    """The far marginal of the start is wrong by two standard deviations; every stage begins at true data."""
    solver = quick(
        coupling=ReferenceCoupling(),
        pretraining=300,
        stages=10,
        updates=200,
        refresh=100,
        **AFFINE,
    )
    mean, spread, cross = end_errors(gaussians(BrownianMotion(1.0), torch.float32), solver)
    assert max(mean, spread, cross) < 0.15


def test_the_optimal_start_is_already_the_answer():
    """Without stages, from the plan of 1500 draws: one regression of either network."""
    solver = quick(
        coupling=EntropicCoupling(rows=1500),
        pretraining=300,
        stages=0,
        **AFFINE,
    )
    assert max(end_errors(gaussians(BrownianMotion(1.0), torch.float32), solver)) < 0.2


# --- stages


def test_stages_alternate_and_begin_at_data():
    x0, xT = torch.randn(30, 2, generator=seeded(1)), torch.randn(50, 2, generator=seeded(2)) + 3.0
    problem, solver = BridgeProblem(Samples(x0), Samples(xT), BrownianMotion(1.0)), quick()
    state = solver.init(problem, 0)
    seen: list[tuple[int, int]] = []
    drawn: list[Tensor] = []

    def rows_of(part: Tensor, whole: Tensor) -> bool:
        return bool(((part.unsqueeze(1) - whole).abs().amax(2).amin(1) < 1e-6).all())

    assert solver.max_steps(problem) == 22
    while not solver.finished(problem, state):
        before, stage = state.step, solver.stage(state.step)[0]
        state, info = solver.step(problem, state)
        assert state.step == before + 1
        assert info["stage"] == stage + 1
        seen.append(tuple(state.learners[d].updates for d in (FORWARD, BACKWARD)))
        if not drawn or state.pairs[0] is not drawn[-1]:
            drawn.append(state.pairs[0])
        simulated = {-1: (True, True), 0: (False, True), 1: (True, False), 2: (False, True), 3: (True, False)}[stage]
        assert (rows_of(state.pairs[0], x0), rows_of(state.pairs[1], xT)) == simulated
    assert seen[:6] == [(k, k) for k in range(1, 7)]
    assert seen[6:14] == [(7, 6), (8, 6), (9, 6), (10, 6), (10, 7), (10, 8), (10, 9), (10, 10)]
    assert seen[14:] == [(11, 10), (12, 10), (13, 10), (14, 10), (14, 11), (14, 12), (14, 13), (14, 14)]
    assert [learner.length for learner in state.learners.values()] == [14, 14]
    assert len(drawn) == 2 + 4 * 2


def test_an_odd_number_of_stages_favours_the_forward_network():
    solver = quick(stages=1)
    state = solver.init(gaussians(BrownianMotion(1.0)), 0)
    assert [state.learners[d].length for d in (FORWARD, BACKWARD)] == [10, 6]


def test_the_bridge_uses_averaged_weights_and_is_frozen():
    solver, problem = quick(start=ZeroStart()), gaussians(BrownianMotion(1.0))
    state = solver.init(problem, 0)
    for _ in range(10):
        state, _ = solver.step(problem, state)
    control = solver.finish(problem, state).forward.control
    averaged = dict(state.learners[FORWARD].averaged.state_dict())
    current = dict(state.learners[FORWARD].module.state_dict())
    for key, value in control.state_dict().items():
        assert torch.equal(value, averaged[key])
        assert value.data_ptr() != averaged[key].data_ptr()
    assert not torch.equal(averaged["network.last.weight"], current["network.last.weight"])
    assert not any(parameter.requires_grad for parameter in control.parameters())
    assert all(parameter.requires_grad for parameter in state.learners[FORWARD].module.parameters())


# --- states


def run(solver: IMF, problem: BridgeProblem, state: MatchingState, until: int) -> MatchingState:
    while state.step < until:
        state, _ = solver.step(problem, state)
    return state


def same(left: StateDict, right: StateDict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


@pytest.mark.parametrize("start", [IndependentCoupling(), EntropicCoupling(rows=30)], ids=["independent", "entropic"])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6, 9, 11, 20, 22])
def test_a_run_taken_up_again_ends_in_the_same_bits(stop, start):
    solver, problem = quick(coupling=start), gaussians(IN_THE_PLANE["OU, matrix"], torch.float32)
    whole = run(solver, problem, solver.init(problem, 3), 22).state_dict()
    saved = run(solver, problem, solver.init(problem, 3), stop).state_dict()
    again = solver.resume(problem, saved)
    assert same(again.state_dict(), saved)
    assert same(run(solver, problem, again, 22).state_dict(), whole)


@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_it_keeps_the_laws_of_a_solver(name, dtype):
    check_solver(quick(), gaussians(IN_THE_PLANE[name], dtype), seed=4)


@pytest.mark.parametrize("coupling", [ReferenceCoupling(), EntropicCoupling(rows=30)], ids=["reference", "entropic"])
def test_it_keeps_them_from_every_start(coupling):
    rows = torch.randn(40, 2, generator=seeded(1))
    problem = BridgeProblem(Samples(rows, torch.ones(40) / 40), Samples(rows + 1), IN_THE_PLANE["OU, matrix"])
    check_solver(quick(coupling=coupling, stages=1, optimisation=Optimisation(batch=30)), problem, seed=4)


def test_seeds_decide_everything():
    problem = gaussians(BrownianMotion(1.0))
    one, again, other = (solve(problem, quick(), seed=seed) for seed in (1, 1, 2))
    x = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    assert torch.equal(one.transport(x, seed=0), again.transport(x, seed=0))
    assert not torch.equal(one.transport(x, seed=0), other.transport(x, seed=0))


def test_networks_work_in_the_dtype_of_the_data(dtype):
    state = quick().init(gaussians(BrownianMotion(1.0), dtype), 0)
    for learner in state.learners.values():
        assert {p.dtype for p in learner.module.parameters()} == {dtype}
    assert {side.dtype for side in state.pairs} == {dtype}
    bridge = solve(gaussians(BrownianMotion(1.0), dtype), quick(), seed=0)
    assert bridge.forward.sample(3, seed=0).x.dtype == dtype


# --- what cannot be


def test_what_it_refuses():
    normal = Gaussian(torch.zeros(2), torch.eye(2))
    curved = BridgeProblem(normal, normal, DriftProcess(lambda t, x: -x.sin(), 1.0))
    with pytest.raises(
        UnsupportedError, match="which DriftProcess does not have: use a LinearProcess such as BrownianMotion"
    ):
        solve(curved, quick(), seed=0)
    density = Density(lambda x: -x.square().sum(1), 2)
    for ends in ((normal, density), (density, normal)):
        with pytest.raises(UnsupportedError, match="and not unnormalised densities: draw"):
            solve(BridgeProblem(*ends, BrownianMotion(1.0)), quick(), seed=0)


@pytest.mark.parametrize("name", ["pretraining", "updates", "refresh", "pairs"])
def test_counts_must_be_positive(name):
    with pytest.raises(InvalidInputError, match=f"{name} must be positive, got 0"):
        IMF(**{name: 0})
    with pytest.raises(InvalidInputError, match="stages must not be negative, got -1"):
        IMF(stages=-1)


def test_a_state_of_another_solver_is_named():
    with pytest.raises(FileFormatError, match=r"no number 'seed'.*another solver"):
        quick().resume(gaussians(BrownianMotion(1.0)), {"step": 3})


@pytest.mark.parametrize(("dim", "epsilon"), [(2, 0.1), (16, 10.0)])
def test_it_is_stable_at_small_and_at_large_noise(dim, epsilon):
    """Conditional laws of a known plan: far nearer than without control, the ends right."""
    pair = MixturePair(dim, epsilon)
    x0, x1 = pair.sample(2000, seed=1)
    solver = IMF(pretraining=250, stages=2, updates=50, refresh=50, pairs=1024)
    bridge = fit(x0, x1, reference=pair.reference, solver=solver, seed=0)
    starts = pair.source.sample(30, generator_of(5)).float()
    moments, variance = pair.moments(starts), float(pair.end_moments[1].trace())
    still = PathMeasure(pair.reference, None, pair.source)
    found, trivial, perfect = (
        float(conditional_uvp(measure, starts, moments, variance, seed=3, draws=100).mean())
        for measure in (bridge.forward, still, pair.truth)
    )
    assert found - perfect < 0.25 * (trivial - perfect)
    ends = bridge.transport(pair.source.sample(2000, generator_of(6)).float(), seed=4)
    assert float(ends.var(0).sum()) == pytest.approx(variance, rel=0.1)


def test_pretraining_draws_as_many_pairs_as_it_is_told():
    solver = IMF(pairs=64, pretraining=1, stages=0, refresh=50)
    rows = torch.randn(100, 2, generator=generator_of(0))
    problem = BridgeProblem(Samples(rows), Samples(rows + 1.0), BrownianMotion(1.0))
    state, _ = solver.step(problem, solver.init(problem, 1))
    assert len(state.pairs[0]) == len(state.pairs[1]) == 64
