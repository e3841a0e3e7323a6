"""The benchmark of reverse diffusion, at a size that takes seconds."""

import torch

from docs.benchmarks.diffusion import Settings, memorised, refined, run, samplers
from sbridge.controls import MLP
from sbridge.diffusion.training import ScoreMatching
from sbridge.laws import Samples


def test_tables_have_their_numbers():
    solver = ScoreMatching(updates=20, network=MLP(16, 1))
    settings = Settings(seeds=1, rows=30, fresh=40, solver=solver, levels=(0.1, 1.0), evaluations=(9,))
    found = {(block, line, column): value for block, line, column, value in run(0, settings)}
    assert found["memorisation", "exact kernel score", "share within 0.001"] == 1.0
    assert found["memorisation", "fresh rows", "share within 0.001"] < 0.2
    assert 0.0 < found["score", "t = 1 T", "relative error"] < found["score", "t = 0.1 T", "relative error"]
    assert sum(block == "samplers" for block, _, _ in found) == 8


def test_samplers_cost_alike():
    for name, sampler in samplers(41).items():
        assert sampler.grid.steps - 1 == {"flow, Heun": 20, "flow, Runge–Kutta 4": 10}.get(name, 40)
    assert refined(1e-3, 10).fractions[1] - 1e-3 < 1e-12


def test_copies_are_counted_to_the_last_digit():
    rows = 3.0 + torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    found = dict(memorised(rows + 1e-5, Samples(rows), Settings()))
    assert found["share within 0.001"] == 1.0
    assert found["median distance"] < 2e-5
