"""Steps with a variance of their own: weights are exact for any, and the matched one is the optimal Gaussian step."""

import dataclasses
import math

import pytest
import torch

from sbridge.benchmarks.densities import forty_modes, funnel
from sbridge.benchmarks.exact_controls import FunnelControl, mixture_control, stationary_noise
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.evaluation import evidence_upper_bound, log_normaliser
from sbridge.exact.mixture import MixtureControl, MixturePotential
from sbridge.laws import Density, Gaussian, GaussianMixture, Point
from sbridge.measures import ControlledKernel, Direction, MatchedKernel, PathMeasure, StepKernel
from sbridge.problems import ControlProblem
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import BrownianMotion, DriftProcess, OrnsteinUhlenbeck, VariancePreserving, log_snr_grid
from sbridge.solutions import ControlSolution
from sbridge.time import TimeGrid

F64 = torch.float64
MATCHED = MatchedKernel(1e-6, 1e6)
SHEAR, SPREAD = torch.tensor([[0.4, 1.5], [-0.3, 0.1]], dtype=F64), torch.tensor([[0.8, 0.0], [0.5, 1.1]], dtype=F64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def tilted(process, start, law, log_z=0.0, steps=8):
    """The solution of sampling ``law`` with its exact control: ``e^{−g} = law/r_T`` is a Gaussian mixture."""
    problem = sampling_problem(Density(lambda x: law.log_density(x) + log_z, law.dim), process, start)
    transition = process.transition(0.0, process.horizon)
    gaussian = isinstance(start, Gaussian)
    mean = start.mean if gaussian else start.position
    spread = start.covariance if gaussian else torch.zeros(law.dim, law.dim, dtype=F64)
    phi = transition.map.expanded(law.dim)
    end = phi @ spread @ phi.mT + transition.covariance.expanded(law.dim)
    end_mean = transition.mean(mean.unsqueeze(0))[0]
    plain = MixturePotential.of(process, law)
    away = torch.linalg.inv(end)
    potential = MixturePotential(process, plain.logits, plain.shifts - away @ end_mean, plain.precisions - away)
    measure = PathMeasure(process, MixtureControl(potential), start, grid=TimeGrid.uniform(steps))
    return ControlSolution(problem, measure)


TWO_MODES = GaussianMixture(
    torch.tensor([0.7, 0.3], dtype=F64),
    torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=F64),
    torch.stack([0.3 * torch.eye(2, dtype=F64), torch.tensor([[0.4, 0.1], [0.1, 0.2]], dtype=F64)]),
)
ORIGIN = Point(torch.zeros(2, dtype=F64))
DENSE = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=F64)


def one(mean, covariance):
    return GaussianMixture(torch.ones(1, dtype=F64), torch.tensor([mean], dtype=F64), covariance.unsqueeze(0))


GAUSSIANS = {
    "Brownian": (BrownianMotion(1.3), ORIGIN, one([0.5, -1.0], torch.diag(torch.tensor([0.3, 1.2], dtype=F64)))),
    "dense noise": (BrownianMotion(DENSE), ORIGIN, one([0.5, -1.0], 0.4 * DENSE @ DENSE.mT)),
    "diagonal OU": (
        OrnsteinUhlenbeck(torch.tensor([0.5, -0.3]), torch.tensor([1.0, 0.7]), mean=0.2, horizon=1.5),
        Point(torch.tensor([0.3, -0.2], dtype=F64)),
        one([1.0, 0.4], torch.diag(torch.tensor([0.05, 2.0], dtype=F64))),
    ),
    "stationary": (
        VariancePreserving(stationary_std=1.5, horizon=2.0),
        Gaussian(torch.zeros(2, dtype=F64), 2.25 * torch.eye(2, dtype=F64)),
        one([1.0, 0.4], torch.diag(torch.tensor([0.3, 1.5], dtype=F64))),
    ),
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_for_a_gaussian_density_all_weights_are_equal(name):
    """With a start that is forgotten to e^{−10} the optimal steps are Gaussian, and every weight is Z."""
    solution = tilted(*GAUSSIANS[name], log_z=1.7)
    found = log_normaliser(solution, 500, seed=0, kernel=MATCHED)
    rounding = 1e-2 if name == "stationary" else 1e-9
    assert found.weights.effective_sample_size == pytest.approx(500.0, rel=rounding**2 + 1e-12)
    assert found.log_normaliser.value == pytest.approx(1.7, abs=rounding)
    upper = evidence_upper_bound(solution, found.x, seed=1, kernel=MATCHED)
    assert upper.value == pytest.approx(1.7, abs=rounding)
    plain = log_normaliser(solution, 500, seed=0, kernel=ControlledKernel())
    assert plain.weights.effective_sample_size < 490.0


@dataclasses.dataclass(frozen=True)
class AnyKernel(StepKernel):
    """Shifts and variances without any relation to the density."""

    def on(self, chain, control):
        def at(j, x):
            return 0.2 * torch.sin(x + j), 1.0 + 0.3 * torch.cos(2.0 * x.flip(1) - j)

        return at


def wrong(t, x):
    return 0.4 * torch.tanh(x.flip(1)) - 0.2


@pytest.mark.parametrize("kernel", [AnyKernel(), ControlledKernel(), MatchedKernel()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("start", ["point", "stationary"])
def test_weights_have_the_mean_z_for_any_control_and_variance(kernel, start):
    process = BrownianMotion(1.4) if start == "point" else VariancePreserving(stationary_std=1.4)
    law = ORIGIN if start == "point" else Gaussian(torch.zeros(2, dtype=F64), 1.96 * torch.eye(2, dtype=F64))
    exact = tilted(process, law, TWO_MODES, 0.4, steps=6)
    solution = ControlSolution(exact.problem, dataclasses.replace(exact.measure, control=wrong))
    found = log_normaliser(solution, 20_000, seed=3, kernel=kernel)
    assert abs(found.log_normaliser.value - 0.4) < 4.0 * found.log_normaliser.standard_error
    mean = found.weights.values @ found.x
    error = math.sqrt(1.5 / found.weights.effective_sample_size)
    assert torch.allclose(mean, torch.tensor([0.4, 0.35], dtype=F64), atol=4.0 * error)
    exact_draws = TWO_MODES.sample(4000, generator(0))
    upper = evidence_upper_bound(solution, exact_draws, seed=4, kernel=kernel)
    assert found.lower_bound.value < 0.4 < upper.value


def test_the_controlled_kernel_is_the_controlled_chain():
    solution = tilted(BrownianMotion(1.2), ORIGIN, TWO_MODES)
    plain, kernel = (log_normaliser(solution, 300, seed=0, kernel=k) for k in (None, ControlledKernel()))
    torch.testing.assert_close(plain.x, kernel.x)
    torch.testing.assert_close(plain.weights.values, kernel.weights.values)


def test_the_upper_bound_is_the_mean_of_log_weights_under_the_density():
    """``E_{P*} log α = E_P[α log α]/Z``, estimated from weighted paths of the other direction."""
    exact = tilted(BrownianMotion(1.4), ORIGIN, TWO_MODES, 0.4, steps=6)
    solution = ControlSolution(exact.problem, dataclasses.replace(exact.measure, control=wrong))
    upper = evidence_upper_bound(solution, TWO_MODES.sample(20_000, generator(1)), seed=5, kernel=AnyKernel())
    forward = log_normaliser(solution, 50_000, seed=6, kernel=AnyKernel())
    weights = forward.weights.values
    logs = weights.log() + math.log(len(weights)) + forward.weights.log_mean
    other, error = float(weights @ logs), float((weights * (logs - upper.value)).norm())
    assert abs(upper.value - other) < 4.0 * math.hypot(upper.standard_error, error)


def test_mean_and_variance_are_those_of_the_optimal_step():
    """By quadrature of ``R(y | x) φ(t', y)`` in one dimension, coarse steps of a process that is not stationary."""
    process = OrnsteinUhlenbeck(0.7, 1.3, mean=0.4, horizon=1.2)
    mixture = GaussianMixture(
        torch.tensor([0.6, 0.4], dtype=F64), torch.tensor([[1.0], [-1.5]], dtype=F64), torch.tensor([[[0.1]], [[0.5]]])
    )
    potential = MixturePotential.of(process, mixture)
    x = torch.linspace(-2.0, 2.0, 9, dtype=F64).unsqueeze(1)
    chain = PathMeasure(process, None, Point(torch.zeros(1, dtype=F64)), grid=TimeGrid.uniform(4)).chain(x)
    at = MATCHED.on(chain, MixtureControl(potential))
    xi = torch.linspace(-12.0, 12.0, 4801, dtype=F64)
    for j in range(4):
        y = chain.push(j, x.repeat_interleave(len(xi), 0), xi.repeat(len(x)).unsqueeze(1))
        after = float(chain.times[j + 1])
        logs = potential.log_potential(after, y).reshape(len(x), -1) - 0.5 * xi.square()
        weights = torch.softmax(logs, 1)
        mean = weights @ xi
        variance = weights @ xi.square() - mean.square()
        shift, spread = at(j, x)
        torch.testing.assert_close(shift[:, 0], mean, rtol=0.0, atol=1e-8)
        torch.testing.assert_close(spread[:, 0].square(), variance, rtol=0.0, atol=1e-8)


def test_the_variance_is_bounded():
    solution = tilted(BrownianMotion(1.2), ORIGIN, TWO_MODES, steps=2)
    x = torch.randn(50, 2, generator=generator(0), dtype=F64)
    chain = solution.measure.chain(x)
    spread = MatchedKernel(0.9, 1.1).on(chain, solution.control)(1, x)[1].square()
    assert float(spread.min()) == pytest.approx(0.9)
    assert float(spread.max()) <= 1.1 + 1e-12


@pytest.mark.parametrize(("name", "least"), [("forty", 0.93), ("funnel", 0.75)])
def test_exact_controls_reach_their_ceiling(name, least):
    """The effective sample size of 100 steps under the exact control, float32; two thirds or less without matching."""
    if name == "forty":
        target, process, scale = forty_modes(), stationary_noise(30.0, 3.0), torch.full((2,), 30.0)
        control, resolution = mixture_control(target.mixture, process, 30.0), 0.3
    else:
        scale = torch.tensor([3.0, 6.0, 6.0, 6.0])
        target, process, resolution = funnel(4), stationary_noise(scale, 3.0), 0.02
        control = FunnelControl(scale, 3.0)
    start = Gaussian(torch.zeros(target.dim), scale.square().diag())
    grid = log_snr_grid(process, 100, resolution)
    measure = PathMeasure(process, control, start, grid=grid)
    solution = ControlSolution(sampling_problem(target.law, process, start), measure)
    n = 400
    found, plain = (log_normaliser(solution, n, seed=0, kernel=k) for k in (MATCHED, ControlledKernel()))
    assert found.weights.effective_sample_size > least * n
    assert plain.weights.effective_sample_size < 0.85 * found.weights.effective_sample_size
    assert abs(found.log_normaliser.value) < 4.0 * found.log_normaliser.standard_error
    upper = evidence_upper_bound(solution, target.sample(n, seed=1), seed=2, kernel=MATCHED)
    assert -4.0 * upper.standard_error < upper.value < 0.5


@pytest.mark.parametrize(
    "process",
    [stationary_noise(2.0, 3.0), BrownianMotion(0.7, 2.0), VariancePreserving(), OrnsteinUhlenbeck(SHEAR, SPREAD)],
)
def test_knots_are_equidistant_in_the_log_signal_to_noise_ratio(process):
    grid = log_snr_grid(process, 20, 1e-2)
    t = grid.times(process.horizon)
    assert grid.steps == 20
    law = process.transition(t[:-1], torch.full_like(t[:-1], process.horizon))
    back = law.map.inverse().expanded(2)
    ratio = (back @ law.covariance.expanded(2) @ back.mT).diagonal(dim1=1, dim2=2).mean(1).log()
    assert float(ratio[-1]) == pytest.approx(2.0 * math.log(1e-2), abs=1e-6)
    torch.testing.assert_close(ratio.diff(), ratio.diff().mean().expand(19), rtol=1e-6, atol=0.0)
    if process.dim is None and isinstance(process, OrnsteinUhlenbeck):
        torch.testing.assert_close(ratio, torch.log(4.0 * torch.expm1(2.0 * (3.0 - t[:-1]))), rtol=1e-6, atol=1e-6)


def test_bad_input_is_explained():
    with pytest.raises(InvalidInputError, match="at least 2 steps, got 1"):
        log_snr_grid(BrownianMotion(1.0), 1, 0.1)
    with pytest.raises(InvalidInputError, match=r"resolution must lie between .* got 3"):
        log_snr_grid(BrownianMotion(1.0), 10, 3.0)
    drift = DriftProcess(lambda t, x: -x, 1.0)
    with pytest.raises(UnsupportedError, match=r"TimeGrid\.refined"):
        log_snr_grid(drift, 10, 0.1)
    with pytest.raises(InvalidInputError, match="least = 2"):
        MatchedKernel(least=2.0)
    solution = tilted(BrownianMotion(1.2), ORIGIN, TWO_MODES)
    x = torch.zeros(3, 2, dtype=F64)
    for measure in (
        PathMeasure(drift, None, ORIGIN),
        dataclasses.replace(solution.measure, control=None, direction=Direction.BACKWARD),
    ):
        with pytest.raises(UnsupportedError, match="exact forward steps of a LinearProcess"):
            MatchedKernel().on(measure.chain(x), None)
    frozen = dataclasses.replace(solution.measure, control=lambda t, x: x.detach().clone())
    with pytest.raises(UnsupportedError, match="derivative of the control"):
        log_normaliser(ControlSolution(solution.problem, frozen), 10, seed=0, kernel=MatchedKernel())
    with pytest.raises(InvalidInputError, match=r"draws of shape \(n, 2\)"):
        evidence_upper_bound(solution, torch.zeros(5, 3), seed=0)
    control = ControlProblem(BrownianMotion(1.0), ORIGIN, terminal_cost=lambda x: x.sum(1))
    with pytest.raises(InvalidInputError, match="sampling_problem"):
        evidence_upper_bound(ControlSolution(control, solution.measure), torch.zeros(5, 2), seed=0)
