"""Functions of the source's equations that stand alone: urn, partitions, noise and average, heat in two dimensions."""

import itertools
import math

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.diffusion import ExactScore, noise_and_average
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Gaussian, Samples
from sbridge.measures import PathMeasure, partition_kl, path_kl
from sbridge.pde import Grid, heat_spectral, wavenumbers
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck
from sbridge.transport import log_transport_probability

KERNEL = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
MATRIX = OrnsteinUhlenbeck(
    rate=torch.tensor([[1.0, 0.4], [-0.7, 0.6]]), sigma=torch.tensor([[1.0, 0.0], [0.8, 1.5]]), mean=0.4, horizon=0.7
)


def test_probabilities_of_all_transports_sum_to_one():
    rows = [[(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)] for n in (4, 3)]
    counts = np.array(list(itertools.product(*rows)))
    logs = log_transport_probability(counts, KERNEL)
    assert logs.shape == (15 * 10,)
    assert np.exp(logs).sum() == pytest.approx(1.0, abs=1e-12)
    blocked = log_transport_probability(np.array([[1, 0], [1, 0]]), np.array([[0.5, 0.5], [0.0, 1.0]]))
    assert blocked == -math.inf


@pytest.mark.parametrize(
    ("counts", "kernel", "message"),
    [
        (np.ones((2, 2)), KERNEL, "the same cells"),
        (-np.ones((2, 3)), KERNEL, "must not be negative"),
        (np.ones((2, 3)), 2.0 * KERNEL, "sum one"),
    ],
)
def test_a_transport_that_is_none_is_refused(counts, kernel, message):
    with pytest.raises(InvalidInputError, match=message):
        log_transport_probability(counts, kernel)


def test_partitions_of_matrix_processes_tend_to_the_path_kl():
    start = Gaussian(torch.tensor([1.0, -0.5]).double(), torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double())
    still = BrownianMotion(torch.tensor([[1.0, 0.0], [0.8, 1.5]]), horizon=0.7)
    values = [partition_kl(MATRIX, still, start, torch.linspace(0.0, 0.7, n + 1)) for n in (1, 2, 4, 64, 128)]
    assert values == sorted(values)

    def control(t, x):
        return still.scale(t).inverse().to(x)(MATRIX.drift(t, x))

    grid = sb.TimeGrid.uniform(400)
    found = path_kl(
        PathMeasure(still, control, start, grid=grid), PathMeasure(still, None, start, grid=grid), 4000, seed=0
    )
    limit = 2.0 * values[4] - values[3]
    assert abs(found.value - limit) < 3.0 * found.standard_error + 0.01 * limit  # the chain is Euler's


def test_partitions_need_linear_processes_and_increasing_times():
    start = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    for times in ([0.0], [0.0, 0.5, 0.5], [-0.1, 0.5]):
        with pytest.raises(InvalidInputError, match="increasing"):
            partition_kl(BrownianMotion(1.0), BrownianMotion(1.0), start, torch.tensor(times))
    with pytest.raises(UnsupportedError, match="path_kl"):
        partition_kl(object(), BrownianMotion(1.0), start, torch.linspace(0, 1, 3))


def test_the_average_flux_is_the_score_of_the_noised_points():
    g = torch.Generator().manual_seed(0)
    rows, x = torch.randn(30, 3, generator=g, dtype=torch.float64), torch.randn(5, 3, generator=g, dtype=torch.float64)
    score = ExactScore(BrownianMotion(0.7), Samples(rows))(1.0, x)
    torch.testing.assert_close(noise_and_average(rows, x, 0.7), 0.49 * score)
    with pytest.raises(InvalidInputError, match="positive noise"):
        noise_and_average(rows, x, 0.0)


def test_heat_spreads_a_gaussian_in_two_dimensions():
    grid, sigma, t = Grid.of((-8.0, -9.0), (8.0, 9.0), (96, 80)), 0.8, 0.5
    start, end = (
        np.exp(-0.5 * (a**2 / (0.6 + v) + b**2 / (1.1 + v))) / math.sqrt((0.6 + v) * (1.1 + v))
        for a, b in [np.meshgrid(*grid.centres, indexing="ij")]
        for v in (0.0, sigma**2 * t)
    )
    np.testing.assert_allclose(heat_spectral(grid, start, sigma, t), end, atol=1e-9)
    np.testing.assert_allclose(heat_spectral(grid, end, sigma, -0.2 * t, highest=8.0).sum(), end.sum())
    assert wavenumbers(grid).shape == (96, 41)
