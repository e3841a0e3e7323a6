"""Bridges between two densities: where a density lies, its weighted draws, and the bridge from them."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sbridge.controls import MLP
from sbridge.errors import ConvergenceWarning, InvalidInputError, NonFiniteError, NotConvergedError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import fit, solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples
from sbridge.laws.scaling import CommonScale
from sbridge.measures import Direction
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.solutions import load
from sbridge.solvers import (
    AdjointBridge,
    DensitySampler,
    ReciprocalAdjointMatching,
    Replay,
    TrustRegion,
    check_solver,
)
from sbridge.solvers.control.tempering import covering, tempered
from sbridge.solvers.gaussian import GaussianControl
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Optimisation


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@register
@dataclass(frozen=True, eq=False)
class Scaled:
    """A log density plus a constant, in the dtype of the states."""

    law: Gaussian | GaussianMixture

    def __call__(self, x: Tensor) -> Tensor:
        return self.law.log_density(x.double()).to(x.dtype) - 41.0


def density(law: Gaussian | GaussianMixture) -> Density:
    return Density(Scaled(law), law.dim)


LIKE = torch.zeros((), dtype=torch.float64)
TWO = GaussianMixture(
    tensor([0.3, 0.7]), tensor([[-2.0, 4.0], [6.0, 5.0]]), torch.stack([tensor([[0.5, 0.2], [0.2, 0.8]])] * 2)
)
FAR_OFF = Gaussian(tensor([900.0, -300.0]), tensor([[1.0, 0.99], [0.99, 1.0]]))
LEFT = Gaussian(tensor([-1.0, 0.2]), tensor([[0.5, 0.2], [0.2, 1.0]]))
RIGHT = Gaussian(tensor([1.0, 0.5]), tensor([[1.5, -0.4], [-0.4, 0.7]]))


def quick(updates: int = 4, draws: int = 256, cover: Gaussian | None = None) -> DensitySampler:
    solver = ReciprocalAdjointMatching(
        updates=updates,
        network=MLP(16, 1),
        grid=TimeGrid.refined(20),
        replay=Replay(paths=1024, updates=20),
        trust_region=TrustRegion(1e3),
    )
    return DensitySampler(solver, draws, cover)


# --- where a density lies


@pytest.mark.parametrize("law", [TWO, FAR_OFF, Gaussian(tensor([0.0]), tensor([[1e-6]]))], ids=["two", "far", "narrow"])
def test_the_cover_is_wider_than_the_density_in_every_direction(law):
    """Its centre is within a few of its deviations of all modes; the width that is asked for does not decide."""
    means, covariances = (law.means, law.covariances) if law is TWO else (law.mean[None], law.covariance[None])
    for width in (0.3, 30.0):
        found = covering(density(law), width, LIKE)
        scale = math.sqrt(float(found.covariance[0, 0]))
        assert scale**2 >= float(torch.linalg.eigvalsh(covariances).max())
        assert float((means - found.mean).norm(dim=1).max()) < 2.0 * scale * math.sqrt(law.dim)
        assert scale < 20.0 * float(torch.linalg.eigvalsh(covariances).max()) ** 0.5


def test_tempering_finds_both_modes():
    rows = tempered(density(TWO), covering(density(TWO), 1.0, LIKE.float()), 2048, 5)
    assert rows.dtype == torch.float32
    left = rows[:, 0] < 2.0
    assert float(left.double().mean()) == pytest.approx(0.3, abs=0.06)
    for part, mean in ((rows[left].double(), TWO.means[0]), (rows[~left].double(), TWO.means[1])):
        torch.testing.assert_close(part.mean(0), mean, rtol=0, atol=0.15)
        torch.testing.assert_close(part.mT.cov(), TWO.covariances[0], rtol=0, atol=0.2)


def test_weights_make_ends_draws_of_the_density():
    """Of a sampler that has hardly learned: shares, means and squares within their errors, which unweighted ends miss.

    The weights are those of whole paths, so the check holds for any control.
    """
    found = quick(updates=20, draws=8192).sample(density(TWO), 1.0, 0)
    rows, weights = found.rows.double(), found.weights.double()
    functions = torch.cat([(rows[:, :1] < 2.0).double(), rows, rows.square()], 1)
    second = (TWO.weights[:, None] * (TWO.covariances.diagonal(dim1=1, dim2=2) + TWO.means.square())).sum(0)
    exact = torch.cat([tensor([0.3]), TWO.weights @ TWO.means, second])
    error = ((weights[:, None] * (functions - exact)).square().sum(0)).sqrt()
    assert bool(((weights @ functions - exact).abs() < 4.0 * error).all())
    plain = functions.std(0) / len(rows) ** 0.5
    assert bool(((functions.mean(0) - exact).abs() > 8.0 * plain).any())
    assert found.effective_size == pytest.approx(1.0 / float(weights.square().sum()))
    assert found.effective_size > 0.1 * len(rows)


def test_a_sampler_that_reaches_little_says_so():
    narrow = Gaussian(TWO.means[1], 0.5 * torch.eye(2, dtype=torch.float64))
    poor = ReciprocalAdjointMatching(1, MLP(4, 1), grid=TimeGrid.uniform(2), trust_region=TrustRegion(1e3))
    wells = GaussianMixture(
        torch.full((8,), 0.125).double(),
        9.0 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).double(),
        0.1 * torch.eye(6).double().expand(8, 6, 6),
    )
    with pytest.warns(ConvergenceWarning, match=r"effective sample size of \d+\.\d% of its 512 draws"):
        DensitySampler(poor, 512).sample(density(wells), 1.0, 0)
    assert quick(cover=narrow).sample(density(narrow), 1.0, 0).rows.dtype == torch.float64


# --- bridges


def small(updates: int, sampler: DensitySampler) -> AdjointBridge:
    return AdjointBridge(
        updates,
        network=MLP(64, 2),
        optimisation=Optimisation(learning_rate=1e-2, batch=256, ema_decay=0.99, clip=10.0, warm_up=20),
        grid=TimeGrid.uniform(32),
        sampler=sampler,
    )


def test_gaussian_densities_agree_with_the_closed_form():
    """Both controls under the exact marginals, and the mean and covariance of either end."""
    reference = BrownianMotion(1.0)
    exact = GaussianCoupling(LEFT.mean, LEFT.covariance, RIGHT.mean, RIGHT.covariance, reference)
    bridge = fit(density(LEFT), density(RIGHT), reference=reference, solver=small(300, quick(20, 4096)), seed=0)
    draws = torch.Generator().manual_seed(9)
    for measure in (bridge.forward, bridge.backward):
        off, size = 0.0, 0.0
        for t in (0.1, 0.3, 0.5, 0.7, 0.9):
            x = Gaussian(*exact.marginal(t)).sample(2000, draws)
            u, wanted = measure.control(t, x), GaussianControl(exact, measure.direction)(t, x)
            off, size = off + float((u - wanted).square().sum()), size + float(wanted.square().sum())
        assert off < 0.06 * size
    starts = bridge.forward.starts(20_000, seed=1)
    for rows, law in ((starts, LEFT), (bridge.transport(starts, seed=2), RIGHT)):
        torch.testing.assert_close(rows.double().mean(0), law.mean, rtol=0, atol=0.08)
        torch.testing.assert_close(rows.double().mT.cov(), law.covariance, rtol=0, atol=0.12)


NEAR = Gaussian(torch.zeros(2), 4.0 * torch.eye(2))


def tiny() -> AdjointBridge:
    return AdjointBridge(
        4,
        replay=Replay(paths=24, updates=3, kept=2),
        network=MLP(8, 2),
        optimisation=Optimisation(batch=32, warm_up=2),
        grid=TimeGrid.uniform(4),
        sampler=quick(2, 64, cover=NEAR),
    )


def test_it_keeps_the_laws_of_solvers_and_is_saved(tmp_path):
    problem = BridgeProblem(density(LEFT), density(RIGHT), BrownianMotion(1.0))
    check_solver(tiny(), problem, seed=1)
    told = []
    bridge = solve(problem, tiny(), seed=0, callbacks=[lambda state, info: told.append(info)])
    assert isinstance(bridge.forward.start, Samples)
    assert bridge.backward.start is problem.target
    assert bridge.backward.direction is Direction.BACKWARD
    assert told[-1]["source effective sample size"] == bridge.forward.start.effective_size
    bridge.save(tmp_path / "bridge")
    assert torch.equal(load(tmp_path / "bridge").forward.sample(5, seed=1).x, bridge.forward.sample(5, seed=1).x)


def test_densities_that_cannot_be_used_are_named():
    wide, good = BrownianMotion(1.0), Density(lambda x: -x.square().sum(1), 2)

    def fitted(source, target=good, **options):
        law = source if isinstance(source, Density) else Density(source, 2)
        return fit(law, target, reference=wide, solver=AdjointBridge(4, **options), seed=0)

    with pytest.raises(NonFiniteError, match="log density is NaN or infinite at states of size"):
        fitted(lambda x: x.square().sum(1) * math.nan)
    with pytest.raises(NonFiniteError, match="log density is NaN or infinite"):
        fitted(lambda x: x[:, 0].log() - x.square().sum(1))
    with pytest.raises(InvalidInputError, match="log density must return one number per row"):
        fitted(lambda x: -x.square())
    for hidden in (lambda x: -x.detach().square().sum(1), lambda x: (x > 0).all(1).float()):
        with pytest.raises(UnsupportedError, match="depends on x here but has none"):
            fitted(hidden)
        with pytest.raises(UnsupportedError, match="depends on x here but has none"):
            fitted(good, Density(hidden, 2))
    for flat in (lambda x: torch.zeros_like(x[:, 0]), lambda x: x.square().sum(1)):
        with pytest.raises(NotConvergedError, match="not flat and does not have the wrong sign, or say where"):
            fitted(flat)
    with pytest.raises(InvalidInputError, match="cover has dimension 1, the density has 2"):
        fitted(good, sampler=DensitySampler(cover=Gaussian(torch.zeros(1), torch.eye(1))))
    with pytest.raises(InvalidInputError, match="x0 has 2 columns, x1 has 3"):
        fitted(good, Density(lambda x: -x.square().sum(1), 3))
    with pytest.raises(InvalidInputError, match=r"x0 is an unnormalised density.*give a reference"):
        fit(good, good)
    with pytest.raises(InvalidInputError, match=r"scaling=NoScaling\(\)"):
        fit(good, good, reference=wide, scaling=CommonScale())
    with pytest.raises(InvalidInputError, match="draws must be at least 2"):
        DensitySampler(draws=1)
