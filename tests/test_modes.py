"""What a caller has set in torch (gradient or inference mode, autocast, defaults) does not change results."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.controls import Hutchinson
from sbridge.modes import owned, standard_modes
from sbridge.solvers import IPF, AdjointBridge, AdjointHalfBridge, MaximumLikelihood, MeanMatching
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

G = np.random.default_rng(0)
X0, X1 = (G.standard_normal((40, 2)).astype(np.float32) + shift for shift in (0.0, 1.5))

SIGMA, RATE = torch.tensor([0.8, 1.0]), torch.tensor([[1.0, 0.4], [-0.4, 1.0]])


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
TINY = {
    "network": sb.networks.MLP(8, 2),
    "optimisation": Optimisation(batch=16, warm_up=1),
    "grid": TimeGrid.uniform(3),
}
SCORE = sb.ScoreMatching(updates=2, network=sb.networks.MLP(8, 1), grid=TimeGrid.uniform(30))
IPF_STEPS = {"half_steps": 2, "updates": 2, "refresh": 2, "paths": 16, **TINY}


def bridge(solver=None, source=X0, target=X1, **options):
    return sb.fit(
        source,
        target,
        reference=sb.BrownianMotion(SIGMA),
        solver=solver,
        seed=0,
        **options,
    )


def normal_density(x):
    return -0.5 * x.square().sum(1)


FITS = {
    "default": lambda: bridge(),
    "SinkhornBridge": lambda: bridge(sb.SinkhornBridge()),
    "GaussianBridge": lambda: bridge(sb.GaussianBridge(), sb.Gaussian(np.zeros(2), np.eye(2)), X1.astype(float)),
    "GaussianMixture": lambda: bridge(
        sb.MixtureBridge((1,), widths=(2,), rows=40, max_rows=80, iterations=4, matchings=2, rounds=1),
        sb.GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]),
        sb.Samples(X1.astype(float), np.full(40, 1 / 40)),
    ),
    "IMF": lambda: bridge(sb.IMF(pretraining=2, stages=2, updates=2, refresh=2, pairs=32, **TINY)),
    "MatchedBridge": lambda: bridge(sb.MatchedBridge(updates=3, refresh=2, pairs=32, **TINY)),
    "IPF": lambda: bridge(IPF(forward=MeanMatching(), backward=MaximumLikelihood(Hutchinson(1)), **IPF_STEPS)),
    "IPF, adjoint": lambda: bridge(IPF(forward=AdjointHalfBridge(), **IPF_STEPS), X0, sb.Density(normal_density, 2)),
    "AdjointBridge": lambda: bridge(AdjointBridge(updates=2, **TINY), X0, sb.Density(normal_density, 2)),
    "diffuse": lambda: sb.diffuse(X0, solver=SCORE, seed=0),
    "no scaling, Ornstein-Uhlenbeck": lambda: sb.fit(
        X0, X1, reference=sb.OrnsteinUhlenbeck(RATE, 0.8), scaling=sb.NoScaling(), seed=0
    ),
}  # fmt: skip


def look(fitted):
    rows = X0[:10].astype(str(fitted.forward.start.sample(1, torch.Generator("cpu")).dtype)[6:])
    return fitted.interpolate(rows, [0.3, fitted.horizon], seed=1), fitted.current_velocity(0.4, rows)


@pytest.mark.parametrize("fit", FITS)
def test_a_fit_does_not_depend_on_the_modes_of_the_caller(fit):
    want = look(FITS[fit]())
    for name, mode in MODES.items():
        with mode():
            fitted = FITS[fit]()
        for found, wanted in zip(look(fitted), want, strict=True):
            assert torch.equal(found, wanted), name
        with mode():
            looked = look(fitted)
        for found, wanted in zip(looked, want, strict=True):
            assert torch.equal(found, wanted), f"looked at under {name}"


@pytest.mark.filterwarnings("ignore:ReciprocalAdjointMatching has not reached")  # in two updates
@pytest.mark.parametrize(
    "solver", [sb.AdjointMatching, sb.LogVariance, sb.RelativeEntropy, sb.ReciprocalAdjointMatching]
)
def test_a_control_problem_does_not_depend_on_the_modes_of_the_caller(solver):
    options = {"updates": 2, "grid": TimeGrid.uniform(3), "network": sb.networks.MLP(8, 2)}

    def solved():
        problem = sb.ControlProblem(
            sb.BrownianMotion(1.0), sb.Point(np.zeros(2, np.float32)), None, lambda x: (x - 1.0).square().sum(1)
        )
        return sb.solve(problem, solver(**options), seed=0)

    want = solved().sample(20, seed=1).x
    for name, mode in MODES.items():
        with mode():
            solution = solved()
            inside = solution.sample(20, seed=1).x
        assert torch.equal(solution.sample(20, seed=1).x, want), name
        assert torch.equal(inside, want), f"sampled under {name}"


def test_the_modes_of_the_caller_return():
    with torch.no_grad(), torch.device("meta"), default_dtype(), torch.autocast("cpu"):
        for gradients in (True, False, None):
            with standard_modes(gradients=gradients):
                assert torch.is_grad_enabled() is bool(gradients)
                assert (torch.empty(1).dtype, torch.empty(1).device.type) == (torch.float32, "cpu")
                assert not torch.is_autocast_enabled("cpu")
            with pytest.raises(KeyError), standard_modes(gradients=gradients):
                raise KeyError
            assert not torch.is_grad_enabled()
            assert (torch.empty(1).dtype, torch.empty(1).device.type) == (torch.float64, "meta")
            assert torch.is_autocast_enabled("cpu")


def test_owned_tensors_can_be_differentiated_wherever_they_were_made():
    with torch.inference_mode():
        held = owned(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    (held * x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
