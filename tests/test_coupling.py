"""Starting couplings: their marginals, their dependence, and the entropic plan against POT and closed forms."""

import pytest
import torch
from families import RATE, SIGMA
from torch import Tensor

from sbridge.couplings import (
    Coupling,
    EntropicCoupling,
    IndependentCoupling,
    MinibatchCoupling,
    ReferenceCoupling,
)
from sbridge.errors import InvalidInputError, NotConvergedError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws import Gaussian, Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, LinearProcess, OrnsteinUhlenbeck
from sbridge.transport import Sinkhorn, entropic_plan

N = 40_000
OU = OrnsteinUhlenbeck(RATE, SIGMA, [1.0, -2.0, 0.5], 0.8)
M0, MT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), torch.tensor([-1.0, 0.3, 1.0], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(seed: int) -> Tensor:
    root = torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64)
    return root @ root.mT + 0.2 * torch.eye(3, dtype=torch.float64)


A, B = covariance(1), 0.5 * covariance(2)
GAUSSIANS = BridgeProblem(Gaussian(M0, A), Gaussian(MT, B), OU)


def moments_agree(x: Tensor, y: Tensor, mean: Tensor, joint: Tensor, errors: float = 4.5) -> None:
    """Mean and covariance of the pairs are ``mean`` and ``joint`` within standard errors of a Gaussian law."""
    pairs = torch.cat([x, y], 1)
    z = (pairs.mean(0) - mean) / (joint.diagonal() / len(pairs)).sqrt()
    assert float(z.abs().max()) < errors
    error = ((joint.square() + torch.outer(joint.diagonal(), joint.diagonal())) / len(pairs)).sqrt()
    assert float(((pairs.mT.cov() - joint) / error).abs().max()) < errors


def test_independent_ends():
    draw = IndependentCoupling()(GAUSSIANS, seeded())
    x, y = draw(N, seeded(1))
    moments_agree(x, y, torch.cat([M0, MT]), torch.block_diag(A, B))


def test_reference_ends():
    """``Cov(X_0, X_T) = A Φᵀ``, ``Cov X_T = Φ A Φᵀ + Q``."""
    x, y = ReferenceCoupling()(GAUSSIANS, seeded())(N, seeded(1))
    law = OU.transition(0.0, OU.horizon)
    phi, q = law.map.expanded(3), law.covariance.expanded(3)
    joint = torch.cat([torch.cat([A, A @ phi.mT], 1), torch.cat([phi @ A, phi @ A @ phi.mT + q], 1)])
    moments_agree(x, y, torch.cat([M0, law.mean(M0.unsqueeze(0))[0]]), joint)


@pytest.mark.parametrize("reference", [BrownianMotion(1.2), OU], ids=["Brownian", "OU"])
def test_the_entropic_plan_of_gaussians(reference):
    """Against the closed form; the plan of 1500 rows carries their sampling error, some 5 % of a covariance."""
    problem = BridgeProblem(GAUSSIANS.source, GAUSSIANS.target, reference)
    x, y = EntropicCoupling(rows=1500)(problem, seeded())(N, seeded(1))
    wanted = GaussianCoupling(M0, A, MT, B, reference).coupling
    found = torch.cat([x, y], 1).mT.cov()[:3, 3:]
    size = torch.outer(A.diagonal(), B.diagonal()).sqrt()
    assert float(((found - wanted) / size).abs().max()) < 0.08
    assert float((wanted / size).abs().max()) > 0.3


def test_the_entropic_plan_of_samples_is_that_of_pot():
    """All rows take part, each once: pairs are counted and compared by χ²."""
    x0 = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    x1 = torch.randn(5, 2, generator=seeded(2), dtype=torch.float64) + 0.5
    problem = BridgeProblem(Samples(x0), Samples(x1), BrownianMotion(0.9, 1.3))
    x, y = EntropicCoupling(sinkhorn=Sinkhorn(tolerance=1e-8))(problem, seeded())(N, seeded(3))
    i, j = ((a.unsqueeze(1) == b).all(2).int().argmax(1) for a, b in ((x, x0), (y, x1)))
    assert torch.equal(x0[i], x)
    assert torch.equal(x1[j], y)
    counts = torch.bincount(i * 5 + j, minlength=30).double()
    wanted = N * entropic_plan(x0, x1, 0.81 * 1.3).flatten()
    kept = wanted > 5
    chi2, freedom = ((counts - wanted).square() / wanted)[kept].sum(), int(kept.sum()) - 1
    assert float(chi2) < freedom + 4 * (2 * freedom) ** 0.5
    assert freedom > 15


def test_more_rows_than_asked_for_are_sampled_and_weights_are_respected():
    x0 = torch.randn(50, 2, generator=seeded(1))
    problem = BridgeProblem(Samples(x0), Samples(x0 + 1), BrownianMotion(1.0))
    x, _ = EntropicCoupling(rows=10)(problem, seeded())(5000, seeded(1))
    assert len(x.unique(dim=0)) <= 10
    weights = torch.zeros(50)
    weights[:2] = torch.tensor([0.9, 0.1])
    weighted = BridgeProblem(Samples(x0, weights), Samples(x0 + 1), BrownianMotion(1.0))
    x, _ = EntropicCoupling(rows=1000)(weighted, seeded())(5000, seeded(1))
    share = float((x == x0[0]).all(1).double().mean())
    assert abs(share - 0.9) < 4 * (0.09 * (1 / 1000 + 1 / 5000)) ** 0.5


COUPLINGS = {
    "independent": IndependentCoupling(),
    "reference": ReferenceCoupling(),
    "entropic": EntropicCoupling(rows=64),
    "minibatch": MinibatchCoupling(rows=16),
}


@pytest.mark.parametrize("name", COUPLINGS)
def test_pairs_follow_the_generator_and_keep_the_dtype(name, dtype):
    x0 = torch.randn(80, 3, generator=seeded(1), dtype=dtype)
    problem = BridgeProblem(Samples(x0), Samples(x0.flip(0) + 1), OU)
    coupling: Coupling = COUPLINGS[name]
    before = torch.get_rng_state()
    first, again = coupling(problem, seeded(2)), coupling(problem, seeded(2))
    for left, right in zip(first(30, seeded(3)), again(30, seeded(3)), strict=True):
        assert left.dtype == dtype
        assert left.shape == (30, 3)
        assert torch.equal(left, right)
    assert not torch.equal(first(30, seeded(3))[1], first(30, seeded(4))[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "coupling",
    [ReferenceCoupling(), EntropicCoupling(), MinibatchCoupling()],
    ids=["reference", "entropic", "minibatch"],
)
def test_couplings_by_the_reference_need_its_closed_form(coupling):
    curved = BridgeProblem(GAUSSIANS.source, GAUSSIANS.target, DriftProcess(lambda t, x: -x.sin(), 1.0))
    assert not isinstance(curved.reference, LinearProcess)
    with pytest.raises(UnsupportedError, match=r"needs transitions in closed form, .* or IPF\(\)"):
        coupling(curved, seeded())


def test_an_entropic_coupling_that_cannot_be():
    for kind in (EntropicCoupling, MinibatchCoupling):
        with pytest.raises(InvalidInputError, match="rows must be at least 2, got 1"):
            kind(rows=1)
    problem = BridgeProblem(GAUSSIANS.source, GAUSSIANS.target, BrownianMotion(0.05))
    with pytest.raises(NotConvergedError, match="after 3 iterations"):
        EntropicCoupling(64, Sinkhorn(max_iterations=3, batch=1, warm_batch=1))(problem, seeded())


# --- plans of minibatches


def excess_of_covariance(coupling: Coupling, dim: int, n: int) -> tuple[float, float]:
    """Mean over coordinates of Cov(X_0, X_T), over its exact value (√5 − 1)/2, minus 1; and its standard error."""
    normal = Gaussian(torch.zeros(dim), torch.eye(dim))
    x, y = coupling(BridgeProblem(normal, normal, BrownianMotion(1.0)), seeded())(n, seeded(1))
    products, exact = (x * y).mean(1) / ((5**0.5 - 1) / 2), 1.0
    return float(products.mean()) - exact, float(products.std()) / n**0.5


def test_plans_of_minibatches_lean_towards_independence_the_less_the_more_rows():
    """The numbers that the docstring tells, in 16 dimensions."""
    found = {rows: excess_of_covariance(MinibatchCoupling(rows), 16, 4096) for rows in (64, 256, 1024)}
    for rows, told in ((64, -0.27), (256, -0.14), (1024, -0.07)):
        bias, error = found[rows]
        assert abs(bias - told) < 4 * error + 0.01
    plane, error = excess_of_covariance(MinibatchCoupling(256), 2, 4096)
    assert abs(plane) < 0.01 + 3 * error


def test_minibatches_keep_the_ends_and_reach_every_row():
    x0 = torch.randn(90, 2, generator=seeded(1), dtype=torch.float64)
    weights = torch.linspace(0.5, 1.5, 90, dtype=torch.float64) / 90
    problem = BridgeProblem(Samples(x0), Samples(x0 + 1, weights), BrownianMotion(1.0))
    # Rows of a pair are drawn from those of its batch, so that counts vary up to twice as much as independent ones.
    n = 3000
    x, y = MinibatchCoupling(16)(problem, seeded())(n, seeded(2))
    for side, rows, wanted in ((x, x0, torch.full((90,), 1 / 90)), (y, x0 + 1, weights)):
        share = torch.bincount((side.unsqueeze(1) == rows).all(2).int().argmax(1), minlength=90) / n
        assert bool((share > 0).all())
        assert float(((share - wanted) / (4 * wanted / n).sqrt()).abs().max()) < 4.5


def test_one_batch_of_all_rows_is_the_plan_of_all_rows():
    x0, x1 = torch.randn(30, 2, generator=seeded(1)), torch.randn(40, 2, generator=seeded(2)) + 1
    problem = BridgeProblem(Samples(x0), Samples(x1), BrownianMotion(1.0))
    one, all_rows = (
        coupling(problem, seeded())(500, seeded(3)) for coupling in (MinibatchCoupling(40), EntropicCoupling(40))
    )
    assert torch.equal(one[0], all_rows[0])
    assert torch.equal(one[1], all_rows[1])
    # One end that fits into a batch does not keep the other from being drawn anew.
    _, reached = MinibatchCoupling(30)(problem, seeded())(600, seeded(3))
    assert len(reached.unique(dim=0)) == 40
