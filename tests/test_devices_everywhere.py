"""Everything beyond plain fits on the simulated device: the same results as on the CPU, with no mix of devices."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from simulated_device import simulated_device
from small_fits import (
    CONTROL_SOLVERS,
    FITS,
    IPF_STEPS,
    NORMAL,
    RATE,
    TINY,
    X0,
    X1,
    Place,
    far,
    gaussian,
    given,
    mixture,
)
from torch import Tensor

import sbridge as sb
from sbridge import couplings, functionals, metrics, plotting, transport
from sbridge.diffusion import (
    Action,
    AncestralSampler,
    AnnealedLangevin,
    DDIMSampler,
    Denoising,
    ExactScore,
    FlowSampler,
    GuidedScore,
    Implicit,
    LinearObservation,
    PredictorCorrector,
    StochasticSampler,
    conditioned,
    draw_earlier,
    draw_start,
    log_likelihood,
    reverse_diffusion,
)
from sbridge.laws import Law
from sbridge.parts import visible_tensors
from sbridge.problems import StoppingSet
from sbridge.simulation import ReversibleAdjoint
from sbridge.solvers import IPF, DensityRatio, MaximumLikelihood, MeanMatching, PinnedPaths

GRID = sb.TimeGrid.uniform(4)
MIXTURE = sb.MixtureBridge((2,), iterations=3, grid=GRID)
MATCHED = sb.MatchedBridge(updates=2, refresh=2, pairs=32, **TINY)
SOFT = sb.ends.SoftEnds(1.0, 2.0)
DRIFT = sb.DriftProcess(lambda t, x: -x.tanh(), sigma=1.0)
REWARD = sb.costs.Quadratic.isotropic(-1.0, 2)
DAYS = [0.0, 1.0, 3.0]
Case = Callable[[Place], object]


def rows(place: Place) -> sb.Samples:
    return sb.Samples(given(X0.astype(float), place))


def snapshots(place: Place) -> list[Tensor]:
    return [given(X0, place), given(X1, place), given(X0, place) + 2.0]


def square(t: object, x: Tensor) -> Tensor:
    return x.square().sum(1)


def fitted(place: Place, solver: object = MIXTURE, **options: object) -> list[object]:
    options = {"reference": sb.BrownianMotion(1.0), **options}
    bridge = sb.fit(given(X0, place), given(X1, place), solver=solver, seed=0, **options)
    x = given(X0[:5], place)
    return [bridge.transport(x, seed=1), bridge.reversed().interpolate(x, 0.3, seed=2), bridge.score(0.4, x)]


def course(place: Place, **options: object) -> sb.Course:
    return sb.fit_course(snapshots(place), DAYS, sigma=1.0, solver=MIXTURE, **options)


def carried(place: Place, **options: object) -> Tensor:
    return course(place, **options).interpolate(given(X0[:5], place), 0.0, 2.5, seed=1)


def fates(place: Place, function: Callable[..., object]) -> str:
    return str(function(course(place), ["a", "b"] * 20, given(X0[:9], place), draws=5, seed=1))


def cross_validated(place: Place) -> str:
    return str(sb.cross_validate(snapshots(place), DAYS, seeds=[0], solvers={"fit": MIXTURE}, sigma=1.0))


def to_a_density(place: Place) -> Tensor:
    solver = sb.AdjointBridge(updates=2, **TINY)
    bridge = sb.fit(gaussian(place), NORMAL, reference=sb.BrownianMotion(1.0), solver=solver)
    return bridge.transport(given(X0.astype(float), place), seed=1)


def diffusion(place: Place, process: sb.LinearProcess, law: Callable[[Place], Law]) -> list[object]:
    """All samplers, densities, posteriors and guidance with the exact score."""
    data = law(place)
    score = ExactScore(process, data)
    prior = None if isinstance(data, sb.Samples) else score.marginal(process.horizon)
    bridge = reverse_diffusion(process, data, score, prior=prior, grid=sb.TimeGrid.refined(6, 0.5))
    samplers = [StochasticSampler(), FlowSampler(), PredictorCorrector(), AnnealedLangevin(2)]
    if isinstance(process, sb.VariancePreserving):
        samplers += [AncestralSampler(), DDIMSampler()]
    x = given(X0[:5].astype(float), place)
    found: list[object] = [sb.generate(bridge, 5, seed=1, sampler=sampler) for sampler in samplers]
    found += [draw_start(score, 0.3, x, seed=1), draw_earlier(score, 0.2, 0.3, x, seed=1), score.log_density(0.3, x)]
    if prior is not None:
        found.append(log_likelihood(bridge, x))
    observation = LinearObservation(torch.tensor([[1.0, 0.5]], dtype=torch.float64, device="cpu"), 0.3)
    y = torch.tensor([0.7], dtype=torch.float64, device=place)
    return [*found, conditioned(data, observation, y), GuidedScore(process, score, observation, y[None])(0.3, x)]


def learned_diffusion(place: Place, objective: object = Denoising()) -> sb.Bridge:
    solver = sb.ScoreMatching(
        updates=2, network=sb.networks.MLP(8, 1), grid=sb.TimeGrid.uniform(6), objective=objective
    )
    return sb.diffuse(given(X0, place), solver=solver, seed=0)


def generated(place: Place, objective: object) -> Tensor:
    return sb.generate(learned_diffusion(place, objective), 5, seed=1)


def tilted(place: Place) -> list[object]:
    bridge = sb.tilt(learned_diffusion(place), REWARD, solver=sb.LogVariance(updates=2, grid=GRID), seed=0)
    return [bridge.backward.sample(5, seed=1).x, bridge.value.value]


def reversed_by_control(place: Place) -> Tensor:
    problem = sb.reversal_problem(sb.VariancePreserving(), gaussian(place))
    return sb.solve(problem, sb.AdjointMatching(updates=2, grid=GRID), seed=0).sample(5, seed=1).x


def controlled(
    place: Place, name: str, law: Callable[[Place], Law], known: object = None, **options: object
) -> list[object]:
    options |= {} if known is None else {"start": known}
    stopping = StoppingSet(lambda x: x[:, 0] - 5.0) if name in ("LogVariance", "Moment", "CrossEntropy") else None
    problem = sb.ControlProblem(sb.OrnsteinUhlenbeck(0.5, 0.9), law(place), square, far, stopping=stopping)
    settings = {**TINY, "optimisation": sb.Optimisation(batch=16), "updates": 2, **options}
    solution = sb.solve(problem, CONTROL_SOLVERS[name](**settings), seed=0)
    return [solution.sample(5, seed=1).x, sb.evaluate_control(solution, n=64, seed=1).objective.value]


def figures(place: Place) -> list[str]:
    x0, x1 = given(X0, place), given(X1, place)
    history = [{"loss": 1.0}, {"loss": 0.5}]
    bridge, noisy = fit_of(place), learned_diffusion(place)
    made = [*plotting.standard_figures(bridge, x0, x1, history, Path("bridge"), seed=1)]
    made += plotting.standard_figures(noisy, x0, x0, history, Path("diffusion"), seed=1)
    folders = [Path("course"), Path("1"), Path("2")]
    made += plotting.course_figures(course(place), snapshots(place), [[], []], folders, seed=1)
    plotting.velocity_field(bridge, [0.3], seed=1)
    plotting.score_field(noisy, [0.3, 0.6], seed=1, n=50, exact=ExactScore(noisy.reference, noisy.forward.start))
    plt.close("all")
    return [str(path) for path in made]


def fit_of(place: Place) -> sb.Bridge:
    return sb.fit(given(X0, place), given(X1, place), reference=sb.BrownianMotion(1.0), solver=MIXTURE, seed=0)


def along_paths(place: Place) -> list[object]:
    start, control = sb.Samples(given(X0, place)), FITS["IMF"](place).forward.control
    measure = sb.PathMeasure(sb.OrnsteinUhlenbeck(RATE, 0.8), control, start, grid=GRID)
    paths, law = measure.sample(20, seed=0), gaussian(place)
    return [
        sb.log_ratio(paths, control, None),
        sb.path_kl(measure, replace(measure, control=None), 20, seed=1),
        functionals.heat(paths).values,
        functionals.work(paths, control, square).values,
        functionals.entropy_production(paths, control, lambda t, x: law.log_density(x)).values,
        functionals.kill(paths, square, seed=0).time,
    ]


def clouds(place: Place) -> list[object]:
    x, y = given(X0, place), given(X1, place)
    every = (*metrics.STANDARD_METRICS, metrics.HalfEnergyDistance(), metrics.MMD(), metrics.BuresUVP())
    scores = [metric(x, y, torch.Generator().manual_seed(0)) for metric in every]
    maps = transport.exact_map(x, y), transport.entropic_map(x, y, 1.0), transport.gaussian_map(x, y)
    floor = metrics.sampling_floor(metrics.EnergyDistance(), x, (9, 9), torch.Generator().manual_seed(0))
    return [scores, [one(x) for one in maps], floor.mean]


QUICK: dict[str, Case] = {
    "soft ends": partial(fitted, balance=SOFT),
    "tilt": tilted,
    "along paths": along_paths,
    "clouds": clouds,
}
SLOW: dict[str, Case] = {
    "course": carried,
    "state cost": partial(fitted, state_cost=sb.costs.Quadratic.isotropic(1.0, 2)),
    "course, soft ends": partial(carried, balance=SOFT),
    "fates": partial(fates, function=sb.fates),
    "ancestors": partial(fates, function=sb.ancestors),
    "cross-validation": cross_validated,
    "learned reference": lambda place: sb.learn_reference(snapshots(place), DAYS, rounds=5, resamples=2),
    "pairs": lambda place: sb.fit_pairs(*snapshots(place)[:2], solver=MATCHED).transport(given(X0, place), seed=1),
    "growth": partial(fitted, balance=sb.ends.Growth(lambda x: 1.0 + x[:, 0].abs())),
    "cost, a function": partial(fitted, solver=IPF(**IPF_STEPS), state_cost=square),
    "a density": to_a_density,
    "figures": figures,
    "reversal": reversed_by_control,
    "pinned paths": partial(fitted, solver=IPF(forward=PinnedPaths(), backward=PinnedPaths(), **IPF_STEPS)),
    "Riccati start": partial(controlled, name="RelativeEntropy", law=gaussian, known=sb.starts.RiccatiStart()),
    "annealing": partial(controlled, name="LogVariance", law=gaussian, annealing=sb.starts.Annealing(0.1, 0.5)),
    "adjoint": partial(controlled, name="RelativeEntropy", law=gaussian, gradient=ReversibleAdjoint()),
}


def named(*parts: object) -> str:
    return ", ".join(part if isinstance(part, str) else type(part).__name__ for part in parts)


PROCESSES = [sb.OrnsteinUhlenbeck(RATE, 0.8), sb.VariancePreserving(), sb.VarianceExploding(0.1, 3.0)]
IMF = sb.IMF(pretraining=2, stages=1, updates=2, refresh=2, pairs=32, **TINY)
for solver in (sb.SinkhornBridge(grid=GRID), MATCHED, IMF):
    SLOW[named("soft ends", solver)] = partial(fitted, solver=solver, balance=SOFT)
    SLOW |= {named(process, solver): partial(fitted, solver=solver, reference=process) for process in PROCESSES[:2]}
for coupling in (couplings.EntropicCoupling(), couplings.MinibatchCoupling(), couplings.ReferenceCoupling()):
    SLOW[named(coupling)] = partial(fitted, solver=replace(MATCHED, coupling=coupling))
for half in (MeanMatching(), MaximumLikelihood(), DensityRatio()):
    SLOW[named(half)] = partial(fitted, solver=IPF(forward=half, **IPF_STEPS), reference=DRIFT)
for network in (sb.networks.FourierMLP(8, 1), sb.networks.AdditiveMLP(8, 1), sb.networks.ScaledMLP(2, 4, 8, 1)):
    SLOW[named(network)] = partial(fitted, solver=replace(MATCHED, network=network))
for law in (gaussian, mixture, rows):
    SLOW |= {named(process, law.__name__): partial(diffusion, process=process, law=law) for process in PROCESSES}
for objective in (Action(), Implicit()):
    SLOW[named(objective)] = partial(generated, objective=objective)
for name in ("AdjointMatching", "RelativeEntropy", "LogVariance", "Moment", "CrossEntropy"):
    SLOW |= {f"{name}, {law.__name__}": partial(controlled, name=name, law=law) for law in (gaussian, rows)}
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{told}")
    for told in ("the start of the model is not memoryless", "the snapshots do not determine", "the tilted")
]


@pytest.fixture(autouse=True)
def device(tmp_path, monkeypatch) -> Iterator[torch.device]:
    monkeypatch.chdir(tmp_path)
    with simulated_device() as made:
        yield made


def same(found: object, wanted: object) -> None:
    """Compares texts and numbers, and tensors wherever they are."""
    if isinstance(wanted, (list, tuple)):
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, (str, float)):
        assert found == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-4))
    else:
        for one, other in zip(visible_tensors(found), visible_tensors(wanted), strict=True):
            torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu(name, device):
    case = {**QUICK, **SLOW}[name]
    wanted, found = case("cpu"), case(device)
    same(found, wanted)
    first = found[0] if isinstance(found, list) else found
    if isinstance(first, Tensor):
        assert first.device == device


@pytest.mark.slow  # test_no_module_leaves_a_device_to_the_caller is quick
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_the_default_device_changes_nothing(name, device):
    case = {**QUICK, **SLOW}[name]
    wanted = case("cpu")
    with torch.device(device):
        found = case("cpu")
    same(found, wanted)
    assert all(one.device.type == "cpu" for one in visible_tensors(found))
