"""Samplers on Gaussian data, where every scheme is an affine recursion in closed form, and on points."""

import math

import pytest
import torch

from sbridge.controls import MLP
from sbridge.diffusion import ExactScore, NetworkScore, reverse_diffusion, score_of
from sbridge.diffusion.ddpm import DiscreteNoise, StepVariance
from sbridge.diffusion.samplers import (
    AncestralSampler,
    AnnealedLangevin,
    DDIMSampler,
    Denoise,
    FlowSampler,
    PredictorCorrector,
    StepToZero,
    StochasticSampler,
    StopEarly,
    denoised,
    langevin,
)
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.laws import Gaussian, GaussianMixture, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.processes import (
    BrownianMotion,
    DriftProcess,
    EulerMaruyama,
    ExactTransition,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.simulation.ode import DormandPrince, Euler, Heun, RungeKutta4
from sbridge.solutions import Bridge
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

EXACT = "donot_use_mm_for_euclid_dist"  # matrix products lose half of the digits of a small distance
RATE = torch.tensor([[1.0, 0.3], [-0.2, 0.7]], dtype=torch.float64)
PROCESSES = {
    "brownian": BrownianMotion(0.8),
    "diagonal": OrnsteinUhlenbeck(rate=[1.0, 0.2], sigma=[0.5, 1.5], mean=[0.3, -0.2]),
    "dense": OrnsteinUhlenbeck(rate=RATE, sigma=torch.tensor([[1.0, 0.4], [0.0, 0.6]]), mean=0.3),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(0.1, 3.0, horizon=1.5),
}
DATA = Gaussian(
    torch.tensor([0.6, -0.4], dtype=torch.float64), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
)
GRID = TimeGrid.refined(40, 0.5)
SAMPLERS = {
    "exact": StochasticSampler(ExactTransition()),
    "euler-maruyama": StochasticSampler(EulerMaruyama()),
    "euler": FlowSampler(Euler()),
    "heun": FlowSampler(Heun()),
    "rk4": FlowSampler(RungeKutta4()),
    "adaptive": FlowSampler(DormandPrince()),
    "ancestral": AncestralSampler(),
    "ancestral, forward": AncestralSampler(StepVariance.FORWARD),
    "ddim": DDIMSampler(),
    "predictor-corrector": PredictorCorrector(),
    "langevin": AnnealedLangevin(2),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bridge_of(process, data=DATA, grid=GRID):
    score = ExactScore(process, data)
    return reverse_diffusion(process, data, score, prior=score.marginal(process.horizon), grid=grid)


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.mT


def moments_agree(x, mean, covariance, slack=0.0):
    n = len(x)
    spread = covariance.diagonal()
    assert ((x.mean(0) - mean).abs() < 4.5 * (spread / n).sqrt() + slack).all()
    error = ((spread[:, None] * spread + covariance.square()) / n).sqrt()
    assert ((x.T.cov() - covariance).abs() < 4.5 * error + slack).all()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "name", ["exact", "euler-maruyama", "heun", "rk4", "adaptive", "ancestral", "ancestral, forward"]
)
def test_gaussian_data_come_back(name, process):
    """Up to the bias of 100 steps; StopEarly at s_min has the law of X_{s_min}."""
    grid = TimeGrid.refined(100, 0.5)
    bridge = bridge_of(PROCESSES[process], grid=grid)
    sampler = SAMPLERS[name]
    sampler = type(sampler)(**{**vars(sampler), "last": StopEarly()})
    x = sampler(bridge, 4000, seed=1)
    law = ExactScore(PROCESSES[process], DATA).marginal(grid.fractions[1] * bridge.horizon)
    moments_agree(x, law.mean, law.covariance, slack=0.015)


@pytest.mark.parametrize("process", ["diagonal", "vp", "ve"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (FlowSampler(Euler(), last=StopEarly()), 1),
        (DDIMSampler(last=StopEarly()), 1),
        (FlowSampler(Heun(), last=StopEarly()), 2),
        (FlowSampler(RungeKutta4(), last=StopEarly()), 4),
    ],
)
def test_flows_converge_with_their_order(sampler, order, process):
    """Where covariances commute the flow keeps P^{−½}(x − m): errors of 32 and 64 equal steps from s_min = T/4."""
    data = DATA if process != "diagonal" else Gaussian(DATA.mean, DATA.covariance.diagonal().diag())
    process = PROCESSES[process]
    score, x = ExactScore(process, data), 1.5 * torch.randn(8, 2, generator=generator(3), dtype=torch.float64)
    begin, end = score.marginal(0.25 * process.horizon), score.marginal(process.horizon)
    exact = begin.mean + (x - end.mean) @ root(end.covariance).inverse() @ root(begin.covariance)
    errors = []
    for steps in (32, 64):
        grid = TimeGrid((0.0, *(0.25 + 0.75 * k / steps for k in range(steps)), 1.0))
        errors.append(float((sampler(bridge_of(process, data, grid), x, seed=0) - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
    assert errors[1] < 0.1


def test_adaptive_flow_is_the_transport_of_gaussians():
    """In one dimension the flow keeps (x − m)/√P."""
    process, data = VariancePreserving(), Gaussian(torch.tensor([0.5]).double(), torch.tensor([[0.04]]).double())
    bridge = bridge_of(process, data)
    x = torch.linspace(-2.0, 2.0, 7, dtype=torch.float64)[:, None]
    score = ExactScore(process, data)
    end, begin = score.marginal(1.0), score.marginal(GRID.fractions[1])
    found = FlowSampler(DormandPrince(1e-10, 1e-10), last=StopEarly())(bridge, x, seed=0)
    assert torch.allclose(
        (found - begin.mean) / begin.covariance.sqrt(), (x - end.mean) / end.covariance.sqrt(), atol=1e-7
    )


def test_the_stochastic_sampler_is_the_backward_measure():
    bridge = bridge_of(PROCESSES["dense"])
    x = torch.randn(50, 2, generator=generator(3), dtype=torch.float64)
    found = StochasticSampler(last=StepToZero())(bridge, x, seed=7)
    assert torch.equal(found, bridge.backward.transport(x, seed=7))
    stopped = StochasticSampler(last=StopEarly()).run(bridge, x, seed=7)
    assert torch.equal(stopped.x, bridge.backward.interpolate(x, GRID.fractions[1], seed=7))
    assert stopped.evaluations == GRID.steps - 1
    cleaned = StochasticSampler()(bridge, x, seed=7)
    assert torch.allclose(cleaned, ExactScore(PROCESSES["dense"], DATA).start_mean(GRID.fractions[1], stopped.x))
    assert torch.equal(StochasticSampler(last=StepToZero())(bridge.reversed(), x, seed=7), found)


@pytest.mark.parametrize("variance", list(StepVariance))
def test_ancestral_steps_are_those_of_ddpm(variance):
    """The general sampler against the textbook's formulas on a variance-preserving chain, and its variance."""
    process, grid = VariancePreserving(), TimeGrid.uniform(8)
    bridge, score, chain = bridge_of(process, grid=grid), ExactScore(process, DATA), DiscreteNoise.of(process, grid)
    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64).expand(20_000, -1)
    mean, covariance = x[0], torch.zeros(2, 2, dtype=torch.float64)
    for k in range(8, 1, -1):
        root = float(chain.variances[k]) ** 0.5

        def step(y, k=k, root=root):
            return chain.ancestral_mean(k, y, -root * score(grid.fractions[k], y))

        derivative = torch.autograd.functional.jacobian(lambda y: step(y[None])[0], mean)
        mean = step(mean[None])[0]
        noise = float(chain.step_variances(variance)[k - 1]) * torch.eye(2).double()
        covariance = derivative @ covariance @ derivative.mT + noise
    found = AncestralSampler(variance, last=StopEarly())(bridge, x, seed=2)
    moments_agree(found, mean, covariance)


def test_ddim_is_the_textbook_step():
    process, grid = VariancePreserving(), TimeGrid.uniform(6)
    score, chain = ExactScore(process, DATA), DiscreteNoise.of(process, grid)
    x = torch.randn(5, 2, generator=generator(3), dtype=torch.float64)
    found = DDIMSampler(last=StopEarly())(bridge_of(process, grid=grid), x, seed=0)
    for k in range(6, 1, -1):
        x = chain.ddim(k, x, -(float(chain.variances[k]) ** 0.5) * score(grid.fractions[k], x))
    assert torch.allclose(found, x, atol=1e-12)


def test_langevin_follows_its_recursion():
    """x ← (1 − ½h q/P) x + …: the variance after k steps, in closed form, and its limit with a bias of order h."""
    process = VariancePreserving()
    data = Gaussian(torch.tensor([0.5]).double(), torch.tensor([[0.09]]).double())
    t, h, n = 0.3, 0.5, 40_000
    score = ExactScore(process, data)
    law, q = score.marginal(t), float(process.transition(0.0, t).covariance.values)
    factor = 1.0 - 0.5 * h * q / float(law.covariance)
    for steps in (1, 3, 25):
        x = langevin(process, score, t, torch.full((n, 1), 2.0).double(), step_size=h, steps=steps, seed=1)
        mean = law.mean + factor**steps * (2.0 - law.mean)
        variance = h * q * (1.0 - factor ** (2 * steps)) / (1.0 - factor**2)
        moments_agree(x, mean, torch.full((1, 1), variance).double())
    assert variance == pytest.approx(float(law.covariance) / (1.0 - 0.25 * h * q / float(law.covariance)), rel=1e-5)


def test_corrector_and_annealing_sample_the_law():
    data = GaussianMixture(
        torch.tensor([0.5, 0.5]).double(), torch.tensor([[-0.5], [0.5]]).double(), torch.full((2, 1, 1), 0.04).double()
    )
    for process in (VariancePreserving(), PROCESSES["ve"]):
        bridge = bridge_of(process, data, TimeGrid((0.0, *(0.01 ** (1.0 - k / 40) for k in range(40)), 1.0)))
        for sampler in (PredictorCorrector(1, 0.05, last=StopEarly()), AnnealedLangevin(15, 0.15, last=StopEarly())):
            x = sampler(bridge, 4000, seed=3)
            law = ExactScore(process, data).marginal(bridge.backward.grid.fractions[1] * process.horizon)
            for power in (1, 2, 4):
                exact = (law.sample(200_000, generator(1)) ** power).mean()
                assert abs(float((x**power).mean() - exact)) < 4.5 * float((x**power).std()) / 4000**0.5 + 0.015


@pytest.mark.parametrize("name", SAMPLERS)
def test_protocol(name, dtype):
    process, sampler = PROCESSES["vp"], SAMPLERS[name]
    bridge = bridge_of(process)
    start = bridge.backward.starts(40, seed=5).to(dtype)
    run = sampler.run(bridge, start, seed=5)
    assert run.x.dtype == dtype
    assert run.x.shape == (40, 2)
    assert torch.equal(sampler(bridge, start, seed=5), run.x)
    deterministic = isinstance(sampler, (FlowSampler, DDIMSampler))
    if dtype == torch.float64 or deterministic:  # noise of the two dtypes differs
        assert torch.allclose(sampler(bridge, 40, seed=5).to(dtype), run.x, atol=1e-4 if dtype != torch.float64 else 0)
    assert torch.equal(sampler(bridge, start, seed=6), run.x) == deterministic
    tree, tensors = encode(sampler)
    assert decode(tree, tensors) == sampler


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("last", [Denoise(), StopEarly(), StepToZero()])
def test_evaluations_are_counted(name, last):
    sampler = type(SAMPLERS[name])(**{**vars(SAMPLERS[name]), "last": last})
    score, calls = ExactScore(PROCESSES["vp"], DATA), []

    def counted(t, x):
        calls.append(t)
        return score(t, x)

    bridge = reverse_diffusion(PROCESSES["vp"], DATA, counted, grid=TimeGrid.uniform(6))
    assert sampler.run(bridge, 3, seed=0).evaluations == len(calls)
    assert sampler.grid is None
    finer = type(sampler)(**{**vars(sampler), "grid": TimeGrid.uniform(12)})
    calls.clear()
    assert finer.run(bridge, 3, seed=0).evaluations == len(calls)
    if name == "predictor-corrector":
        calls.clear()
        twice = PredictorCorrector(corrections=2, last=last)
        assert twice.run(bridge, 3, seed=0).evaluations == len(calls)


def test_points_are_returned_exactly():
    """Denoising at a small s_min ends on data points; stopping early leaves the noise of s_min."""
    points = 2.0 * torch.randn(20, 2, generator=generator(1), dtype=torch.float64)
    grid = TimeGrid((0.0, *(1e-5 ** (1.0 - k / 80) for k in range(80)), 1.0))
    process = VariancePreserving()
    bridge = reverse_diffusion(process, Samples(points), ExactScore(process, Samples(points)), grid=grid)
    for sampler in (StochasticSampler(), FlowSampler(), AncestralSampler(), DDIMSampler()):
        nearest = torch.cdist(sampler(bridge, 100, seed=1), points, compute_mode=EXACT).min(1).values
        assert float((nearest < 1e-6).double().mean()) > 0.97
    early = StochasticSampler(last=StopEarly())(bridge, 400, seed=1)
    noise = float(process.transition(0.0, 1e-5).root.values)
    left = torch.cdist(early, points, compute_mode=EXACT).min(1).values
    assert float(left.square().mean().sqrt()) == pytest.approx(noise * 2**0.5, rel=0.15)


def test_any_bridge_and_any_process():
    """Flow and stochastic samplers take what has no score in closed form; the others say why they cannot."""
    pull = DriftProcess(lambda t, x: -x, 1.0)
    ou = OrnsteinUhlenbeck(rate=1.0, sigma=1.0)
    score = ExactScore(ou, DATA)
    bridge = reverse_diffusion(pull, DATA, score, prior=score.marginal(1.0), grid=GRID)
    exact = bridge_of(ou)
    x = exact.backward.starts(30, seed=1)
    for method in (Heun(), RungeKutta4()):
        sampler = FlowSampler(method, last=StopEarly())
        assert torch.allclose(sampler(bridge, x, seed=0), sampler(exact, x, seed=0))
    euler = StochasticSampler(EulerMaruyama(), last=StopEarly())
    assert torch.allclose(euler(bridge, x, seed=0), euler(exact, x, seed=0))
    for sampler in (StochasticSampler(), AncestralSampler(), DDIMSampler(), PredictorCorrector(), AnnealedLangevin()):
        with pytest.raises(UnsupportedError, match=r"needs a LinearProcess .* StopEarly"):
            sampler(bridge, x, seed=0)
    both = Bridge(
        PathMeasure(ou, lambda t, y: 0.1 * y, DATA, Direction.FORWARD, GRID),
        PathMeasure(ou, lambda t, y: -0.1 * y, DATA, Direction.BACKWARD, GRID),
    )
    assert StochasticSampler(last=StepToZero())(both, 3, seed=0).shape == (3, 2)
    with pytest.raises(UnsupportedError, match="forward control is None"):
        DDIMSampler()(both, 3, seed=0)
    wide = OrnsteinUhlenbeck(rate=1.0, sigma=2.0)  # û = σᵀs, so the same control is another score
    spread = Bridge(
        PathMeasure(wide, None, DATA, Direction.FORWARD, GRID),
        PathMeasure(wide, lambda t, y: 2.0 * score(t, y), DATA, Direction.BACKWARD, GRID),
    )
    assert torch.allclose(score_of(spread)(0.5, x), score(0.5, x))
    saved = decode(*encode(exact))
    assert torch.equal(DDIMSampler()(saved, x, seed=0), DDIMSampler()(exact, x, seed=0))


def test_networks_are_sampled_in_their_dtype():
    process = VariancePreserving()
    network = NetworkScore(MLP(8, 2), process, 2)
    data = Samples(torch.randn(30, 2, generator=generator(1)))
    bridge = reverse_diffusion(process, data, network, grid=TimeGrid.refined(10, 0.5))
    for sampler in SAMPLERS.values():
        assert sampler(bridge, 4, seed=0).dtype == torch.float32
    # an untrained network is the score of N(0, I): nothing moves but the noise
    assert torch.allclose(denoised(bridge, 0.5, data.rows), data.rows * float(process.transition(0.0, 0.5).map.values))


def test_refusals():
    bridge = bridge_of(PROCESSES["dense"])
    with pytest.raises(UnsupportedError, match=r"FlowSampler\(Heun\(\)\)"):
        DDIMSampler()(bridge, 3, seed=0)
    with pytest.raises(InvalidInputError, match="leaves no step"):
        FlowSampler(grid=TimeGrid.uniform(1))(bridge, 3, seed=0)
    with pytest.raises(InvalidInputError, match="columns"):
        FlowSampler()(bridge, torch.ones(3, 3), seed=0)
    with pytest.raises(InvalidInputError, match="positive integer"):
        FlowSampler()(bridge, 0, seed=0)
    with pytest.raises(InvalidInputError, match="step size"):
        PredictorCorrector(step_size=3.0)
    with pytest.raises(InvalidInputError, match="noise level"):
        langevin(
            PROCESSES["vp"], ExactScore(PROCESSES["vp"], DATA), 0.0, DATA.mean[None], step_size=0.1, steps=1, seed=0
        )
    points = Samples(torch.randn(5, 2, generator=generator(1)).double())
    vp = PROCESSES["vp"]
    to_points = reverse_diffusion(vp, points, ExactScore(vp, points), grid=GRID)
    with pytest.raises(InvalidInputError, match="infinite at t = 0"):
        FlowSampler(last=StepToZero())(to_points, 3, seed=0)
    bad = reverse_diffusion(vp, points, lambda t, x: x if t > 0.5 else x * math.nan, grid=GRID)
    for sampler in SAMPLERS.values():
        with pytest.raises(NonFiniteError, match="t = 0"):
            sampler(bad, 3, seed=0)
    late = reverse_diffusion(vp, points, lambda t, x: x if t > GRID.fractions[1] else x * math.nan, grid=GRID)
    with pytest.raises(NonFiniteError, match="denoised state"):
        DDIMSampler()(late, 3, seed=0)


@pytest.mark.parametrize("sampler", [AncestralSampler(), DDIMSampler()])
def test_the_step_is_told_after_which_a_state_is_not_finite(sampler):
    bad = reverse_diffusion(PROCESSES["vp"], DATA, lambda t, x: x if t > 0.5 else x * math.nan, grid=GRID)
    times = GRID.times(1.0).flip(0)
    step = int((times > 0.5).sum()) + 1
    with pytest.raises(NonFiniteError, match=rf"at step {step} \(t = {float(times[step]):g}\) in 3 of 3 rows"):
        sampler(bad, 3, seed=0)
