"""Bridges between two unnormalised densities, against the exact bridge and the same fit from samples of the source.

``OMP_NUM_THREADS=1 python -m docs.benchmarks.both_ends --seeds 0 1 2`` hands over both ends as densities without their
normalisers. Pairs, with ε = 1: ``gaussian``, :class:`~sbridge.benchmarks.pairs.GaussianPair`; ``mixture``, whose plan
is ``φ̂(x) R(y | x) φ(y)`` with φ the potential of :class:`~sbridge.benchmarks.pairs.MixturePair` and φ̂ the density of
three Gaussians of unit variance on the sphere of radius 3, weights .5, .3 and .2. Both ends are mixtures.

Rows: ``densities``; ``samples``, the same solver from as many exact draws of the source; ``moments``, the closed form
between Gaussians with the exact moments of the ends; ``floor``, exact draws. Columns: path KL of the exact bridge to
the fitted one, on its steps and from the exact source; energy distance of 4000 ends from 4000 exact draws, and of the
source from which the fitted bridge starts; effective sample size of that source; CPU seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row, say
from sbridge.benchmarks.pairs import GaussianPair, MixturePair
from sbridge.benchmarks.tables import mean
from sbridge.fitting import solve
from sbridge.laws import Density, Gaussian, GaussianMixture, Samples, moments
from sbridge.measures import PathMeasure, path_kl
from sbridge.metrics import energy_distance
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion
from sbridge.random import derive, generator
from sbridge.solutions import Bridge
from sbridge.solvers import AdjointBridge, GaussianBridge

_ROWS, _RADIUS, _WEIGHTS, _CONSTANT = 4000, 3.0, (0.5, 0.3, 0.2), 7.0
End = Gaussian | GaussianMixture
Cells = dict[str, float]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two ends with normalised densities, and the exact forward control between them."""

    source: End
    target: End
    truth: PathMeasure


def gaussian_pair(dim: int, seed: int) -> Pair:
    """Gaussian ends."""
    pair = GaussianPair(BrownianMotion(1.0), dim, seed)
    return Pair(pair.source, pair.target, pair.truth)


def mixture_pair(dim: int, seed: int) -> Pair:
    """Ends of the plan ``Σ_jk a_j N(x; μ_j, I) N(y; x, I) b_k N(y; m_k, M_k)``: a mixture of joint Gaussians."""
    pair = MixturePair(dim, 1.0, seed)
    far, one = pair.potential.precisions, torch.eye(dim, dtype=torch.float64)
    normal = torch.randn(3, dim, generator=generator(derive(seed, "near", dim)), dtype=torch.float64)
    places = _RADIUS * normal / normal.norm(dim=1, keepdim=True)
    logs, parts = [], []
    for weight, place in zip(_WEIGHTS, places, strict=True):
        for k, precision in enumerate(far):
            joint = torch.cat([torch.cat([2.0 * one, -one], 1), torch.cat([-one, precision + one], 1)])
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(joint))
            shift = torch.cat([place, pair.potential.shifts[k]])
            # ∫∫ of the component, up to a factor that all components share
            log_mass = 0.5 * (shift @ covariance @ shift) - 0.5 * torch.logdet(joint)
            logs.append(log_mass + pair.potential.logits[k] + torch.tensor(weight, dtype=torch.float64).log())
            parts.append((covariance @ shift, 0.5 * (covariance + covariance.mT)))
    weights = torch.stack(logs).softmax(0)
    means, covariances = (torch.stack(found) for found in zip(*parts, strict=True))
    source = GaussianMixture(weights, means[:, :dim], covariances[:, :dim, :dim])
    target = GaussianMixture(weights, means[:, dim:], covariances[:, dim:, dim:])
    return Pair(source, target, pair.truth)


PAIRS: dict[str, Callable[[int, int], Pair]] = {"gaussian": gaussian_pair, "mixture": mixture_pair}


def unnormalised(law: End) -> Density:
    """Its density times a constant, in the dtype of the states."""
    return Density(lambda x: law.log_density(x.double()).to(x.dtype) + _CONSTANT, law.dim)


@dataclass(frozen=True)
class Settings:
    """Options.

    Args:
        pairs: kinds of pairs.
        dims: dimensions.
        seeds: of pairs and fits.
        updates: of ``AdjointBridge``.
    """

    pairs: tuple[str, ...] = tuple(PAIRS)
    dims: tuple[int, ...] = (2, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = AdjointBridge.updates


def main(settings: Settings) -> None:
    """Prints the table."""
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    for kind in settings.pairs:
        for dim in settings.dims:
            found: dict[str, list[Cells]] = {}
            say(f"{kind}, d = {dim}")
            for seed in settings.seeds:
                for name, cells in run(PAIRS[kind](dim, seed), seed, settings.updates).items():
                    found.setdefault(name, []).append(cells)
            for name, each in found.items():
                columns = {key: mean([cells[key] for cells in each]) for key in each[0]}
                row(name, **{key: f"{one.value:.4f} ± {one.standard_error:.4f}" for key, one in columns.items()})


def run(pair: Pair, seed: int, updates: int) -> dict[str, Cells]:
    """The cells of one pair, row by row."""
    solver, reference = AdjointBridge(updates=updates), pair.truth.process

    def draw(law: End, key: str, n: int = _ROWS) -> Tensor:
        return law.sample(n, generator(derive(seed, key))).float()

    source, target = unnormalised(pair.source), unnormalised(pair.target)
    exact = Samples(draw(pair.source, "samples", solver.sampler.draws))
    closed = BridgeProblem(_moment_matched(pair.source), _moment_matched(pair.target), reference)
    fits: dict[str, Callable[[], Bridge]] = {
        "densities": lambda: solve(BridgeProblem(source, target, reference), solver, seed=seed),
        "samples": lambda: solve(BridgeProblem(exact, target, reference), solver, seed=seed),
        "moments": lambda: solve(closed, GaussianBridge(), seed=seed),
    }
    fresh0, fresh1 = draw(pair.source, "fresh source"), draw(pair.target, "fresh target")
    found = {
        "floor": {
            "end": energy_distance(draw(pair.target, "other target"), fresh1),
            "source": energy_distance(draw(pair.source, "other source"), fresh0),
        }
    }
    row(f"seed {seed} floor", **{key: f"{value:.4f}" for key, value in found["floor"].items()})
    for name, fitted in fits.items():
        start = time.process_time()
        forward = fitted().forward
        seconds = time.process_time() - start
        starts = draw(pair.source, "starts")
        learned = replace(forward, start=Samples(starts), grid=solver.grid, end_kernel=None)
        known = replace(learned, control=pair.truth.control)
        own = forward.start.sample(_ROWS, generator(derive(seed, "own")))
        size = forward.start.effective_size if isinstance(forward.start, Samples) else float("nan")
        found[name] = {
            "path_kl": path_kl(known, learned, _ROWS, seed=derive(seed, "paths")).value,
            "end": energy_distance(learned.transport(starts, seed=derive(seed, "end")), fresh1),
            "source": energy_distance(own.float(), fresh0),
            "ess": size / solver.sampler.draws,
            "cpu": seconds,
        }
        row(f"seed {seed} {name}", **{key: f"{value:.4f}" for key, value in found[name].items()})
    return found


def _moment_matched(law: End) -> Gaussian:
    centre, covariance = moments(law)
    return Gaussian(centre.float(), covariance.float())


if __name__ == "__main__":
    main(tyro.cli(Settings))
