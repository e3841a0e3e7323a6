"""The discrete chain against the process it comes from, its objective, and DDIM as Euler's method."""

import math

import pytest
import torch

from sbridge.diffusion import ExactScore
from sbridge.diffusion.ddpm import DiscreteDenoising, DiscreteNoise, StepVariance
from sbridge.diffusion.objectives import Denoising
from sbridge.diffusion.pinned import pinned_kernel
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian
from sbridge.processes import BrownianMotion, CosineSchedule, VariancePreserving
from sbridge.simulation.ode import Euler, flow
from sbridge.storage.registry import decode, encode
from sbridge.time import TimeGrid

GRID = TimeGrid.refined(7, 0.5)
PROCESSES = {"linear": VariancePreserving(), "cosine": VariancePreserving(CosineSchedule(), horizon=1.4)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_chain_is_exact(process):
    chain = DiscreteNoise.of(process, GRID)
    products = torch.cat([torch.ones(1).double(), chain.alphas.cumprod(0)])
    assert torch.allclose(products, chain.alpha_bars, rtol=1e-10, atol=0)
    assert torch.allclose(chain.alpha_bars, process.transition(0.0, chain.times).map.values[:, 0].square(), rtol=1e-10)
    assert float(chain.variances[0]) == 0.0


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_posterior_is_the_pinned_kernel(process):
    chain, g = DiscreteNoise.of(process, GRID), generator(1)
    x_start, x = (torch.randn(4, 2, generator=g, dtype=torch.float64) for _ in range(2))
    for k in (1, 2, 4, 7):
        law = pinned_kernel(process, float(chain.times[k - 1]), float(chain.times[k]))
        assert torch.allclose(chain.posterior_mean(k, x_start, x), law.mean(x_start, x), atol=1e-12)
        variance = chain.step_variances(StepVariance.POSTERIOR)[k - 1]
        assert torch.allclose(variance, law.covariance.values, rtol=1e-9, atol=1e-15)
        # the ancestral mean is the posterior's with the start that the noise stands for
        noise = torch.randn(4, 2, generator=g, dtype=torch.float64)
        start = (x - chain.variances[k].sqrt() * noise) / chain.alpha_bars[k].sqrt()
        assert torch.allclose(chain.noised(k, start, noise), x, atol=1e-12)
        assert torch.allclose(chain.ancestral_mean(k, x, noise), chain.posterior_mean(k, start, x), atol=1e-11)


def test_weights_of_both_variances():
    """(4.16) over ½β/(1 − ᾱ): 1/α_k with β_k; (1 − ᾱ_k)/(α_k(1 − ᾱ_{k−1})) with β̃_k, infinite at 1, near 2 at 2."""
    chain = DiscreteNoise.of(VariancePreserving(), TimeGrid.uniform(10_000))
    plain = 0.5 * chain.betas / chain.variances[1:]
    assert torch.allclose(chain.weights(StepVariance.FORWARD) / plain, 1.0 / chain.alphas, rtol=1e-12)
    for variance in StepVariance:  # the formula as printed
        own = chain.step_variances(variance)[1:]
        printed = chain.betas[1:].square() / (2.0 * own * chain.alphas[1:] * chain.variances[2:])
        assert torch.allclose(chain.weights(variance)[1:], printed, rtol=1e-9)
    ratio = chain.weights(StepVariance.POSTERIOR) / plain
    assert math.isinf(float(ratio[0]))
    assert float(ratio[1]) == pytest.approx(2.0, rel=2e-2)


def test_objective_is_its_sum_and_tends_to_denoising():
    """With ε_θ = 0, E|ε − ε_θ|² = d: the objective is d Σ w_k; as β → 0 it tends to score matching with order 1."""
    process, start = VariancePreserving(), torch.randn(2000, 3, generator=generator(1), dtype=torch.float64)

    def nothing(t, x):
        return torch.zeros_like(x)

    gaps = []
    for steps in (50, 100):
        grid = TimeGrid.uniform(steps)
        for variance in StepVariance:
            weights = DiscreteNoise.of(process, grid).weights(variance)
            kept = DiscreteNoise.of(process, grid).times[1:] >= 0.2
            exact = 3.0 * float(weights[kept].sum())
            value = float(DiscreteDenoising(grid, variance)(process, nothing, start, 0.2, generator(2)))
            assert value == pytest.approx(exact, rel=0.1)
            if variance is StepVariance.FORWARD:
                fine = torch.linspace(0.2, 1.0, 20_001, dtype=torch.float64)
                rate = process.scale(fine).values[:, 0].square() / process.transition(0.0, fine).covariance.values[:, 0]
                gaps.append(abs(exact - 1.5 * float(torch.trapezoid(rate, fine))))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(1.0, abs=0.2)
    continuous = float(Denoising()(process, nothing, start, 0.2, generator(2)))
    assert continuous == pytest.approx(1.5 * float(torch.trapezoid(rate, fine)), rel=0.1)


def test_objective_asks_the_score_at_the_time_of_the_step():
    """For s(t, x) = −t x and standard normal data, E|ε − ε_θ|² = d (v t² − 2 v t + 1)."""
    process, start = VariancePreserving(), torch.randn(40_000, 2, generator=generator(1), dtype=torch.float64)
    chain = DiscreteNoise.of(process, TimeGrid.uniform(4))
    v, t = chain.variances[1:], chain.times[1:]
    exact = 2.0 * float((chain.weights(StepVariance.FORWARD) * (v * t.square() - 2.0 * v * t + 1.0)).sum())

    def score(t, x):
        return -t.unsqueeze(-1) * x

    value = float(DiscreteDenoising(TimeGrid.uniform(4))(process, score, start, 1e-3, generator(2)))
    assert value == pytest.approx(exact, rel=0.02)


def test_the_true_score_minimises_the_objective():
    process = VariancePreserving()
    data = Gaussian(torch.tensor([0.5, 0.0]).double(), 0.2 * torch.eye(2).double())
    score, start = ExactScore(process, data), data.sample(4000, generator(1))
    loss = DiscreteDenoising(TimeGrid.uniform(50))
    values = [
        float(loss(process, lambda t, x, a=a: score(t, x) * a, start, 0.05, generator(3))) for a in (0.85, 1.0, 1.15)
    ]
    assert values[1] < min(values[0], values[2])


def test_ddim_is_eulers_method_in_its_clock():
    """d(x/α)/d(√v/α) = ε_θ, integrated by the ODE solver in the clock √v/α."""
    process = VariancePreserving()
    chain = DiscreteNoise.of(process, GRID)
    data = Gaussian(torch.tensor([0.5, 0.0]).double(), 0.2 * torch.eye(2).double())
    score = ExactScore(process, data)
    clock = (chain.variances / chain.alpha_bars).sqrt()

    def noise(k, x):
        return -chain.variances[k].sqrt() * score(float(chain.times[k]), x)

    x = torch.randn(4, 2, generator=generator(2), dtype=torch.float64)
    for k in (7, 5, 2, 1):

        def velocity(c, y, k=k):
            assert c == pytest.approx(float(clock[k]))
            return noise(k, y * chain.alpha_bars[k].sqrt())

        end = flow(velocity, x / chain.alpha_bars[k].sqrt(), clock[[k, k - 1]], Euler()).x
        assert torch.allclose(chain.ddim(k, x, noise(k, x)), end * chain.alpha_bars[k - 1].sqrt(), atol=1e-11)


def test_single_precision_and_files():
    chain, x = DiscreteNoise.of(VariancePreserving(), GRID), torch.randn(4, 2, generator=generator(2))
    for value in (chain.ddim(3, x, x), chain.posterior_mean(3, x, x), chain.ancestral_mean(3, x, x)):
        assert value.dtype == torch.float32
    loss = DiscreteDenoising(TimeGrid.uniform(4), StepVariance.POSTERIOR)
    assert decode(*encode(loss)) == loss
    assert loss(VariancePreserving(), lambda t, y: -y, x, 1e-3, generator()).dtype == torch.float32


def test_refusals():
    x = torch.ones(2, 2)
    with pytest.raises(UnsupportedError, match="AncestralSampler"):
        DiscreteNoise.of(VariancePreserving(stationary_std=2.0), GRID)
    with pytest.raises(UnsupportedError, match=r"Denoising\(\)"):
        DiscreteDenoising()(BrownianMotion(1.0), lambda t, y: y, x, 0.1, generator())
    with pytest.raises(InvalidInputError, match="no step of the grid"):
        DiscreteDenoising(TimeGrid.uniform(1), StepVariance.POSTERIOR)(
            VariancePreserving(), lambda t, y: y, x, 0.1, generator()
        )
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        DiscreteNoise(torch.tensor([0.0, 1.0]), torch.tensor([1.0]), torch.tensor([0.0, 1.0]))
    with pytest.raises(InvalidInputError, match=r"N \+ 1"):
        DiscreteNoise(torch.tensor([0.0]), torch.tensor([0.5]), torch.tensor([0.0, 0.5]))
