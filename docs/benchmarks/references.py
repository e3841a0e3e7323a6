"""References learned from snapshots: ``python -m docs.benchmarks.references FILE``.

The file is ``snapshots.npz`` of a simulated repressilator, a circuit of three genes (zsteve/nonequilibriumSBP), with
rows ``x``, ``x_validation`` and their times ``time_index``, ``time_index_validation``. Each inner time is left out. The
reference is learned from the others, and the rows of the time before are carried to the time left out by the bridge to
the time after. The prediction is judged on the validation rows of that time: W2² (exact transport) and the energy
distance. Beside it: other rows of the same time (the floor), the rows of the time before, those of both neighbours, and
the midpoints of the transport plan between them. ``--rounds 0`` is Brownian motion.

The second table draws ten snapshots of an Ornstein–Uhlenbeck process with an asymmetric rate, and compares all entries
of the rate and σ with the truth: Hotelling's test with the covariance of the resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import ot
import torch
import tyro
from scipy.stats import chi2, f
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import mean, timed
from sbridge.fitting import fit, learn_reference
from sbridge.laws import Gaussian
from sbridge.metrics import energy_distance
from sbridge.processes import BrownianMotion, OrnsteinUhlenbeck
from sbridge.solvers.gaussian import GaussianBridge

_SIGMA = 0.1  # of the simulation


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        file: ``snapshots.npz``.
        rounds: of learning.
        seeds: number of draws of the bridges, and of the Ornstein–Uhlenbeck snapshots.
        resamples: of the second table.
    """

    file: Annotated[Path, tyro.conf.Positional]
    rounds: tuple[int, ...] = (0, 3, 5, 200)
    seeds: int = 3
    resamples: int = 60


def main(settings: Settings) -> None:
    """Prints both tables."""
    _repressilator(settings)
    _ornstein_uhlenbeck(settings)


def _snapshots(file: Path, suffix: str) -> list[Tensor]:
    with np.load(file) as table:
        rows, times = table["x" + suffix], table["time_index" + suffix]
    return [torch.from_numpy(rows[times == time]).double() for time in np.unique(times)]


def _scores(predicted: Tensor, seen: Tensor) -> tuple[float, float]:
    cost = torch.cdist(predicted, seen).square().numpy()
    work = float(ot.emd2(ot.unif(len(predicted)), ot.unif(len(seen)), cost))  # type: ignore[arg-type]
    return work, energy_distance(predicted, seen)


def _repressilator(settings: Settings) -> None:
    rows, held = (_snapshots(settings.file, suffix) for suffix in ("", "_validation"))
    inner = range(1, len(rows) - 1)
    _line("other rows of the same time", [_scores(rows[k], held[k]) for k in inner])
    _line("rows of the time before", [_scores(rows[k - 1], held[k]) for k in inner])
    _line("rows of both neighbours", [_scores(torch.cat([rows[k - 1], rows[k + 1]]), held[k]) for k in inner])
    _line("midpoints of transport", [_scores(_midpoints(rows[k - 1], rows[k + 1]), held[k]) for k in inner])
    for rounds in settings.rounds:
        for sigma in (_SIGMA, None):
            if rounds or sigma:
                found, seconds = timed(lambda r=rounds, s=sigma: _left_out(rows, held, r, s, settings.seeds))
                name = f"{rounds} rounds, sigma {'learned' if sigma is None else 'given'}"
                _line(name, found, f"{seconds:.0f}")


def _midpoints(x: Tensor, y: Tensor) -> Tensor:
    plan = ot.emd(ot.unif(len(x)), ot.unif(len(y)), torch.cdist(x, y).square().numpy())
    return 0.5 * (x + y[torch.from_numpy(plan.argmax(1))])


def _left_out(
    rows: Sequence[Tensor], held: Sequence[Tensor], rounds: int, sigma: float | None, seeds: int
) -> list[tuple[float, float]]:
    """Returns both scores of each inner time, means over seeds."""
    found = []
    for k in range(1, len(rows) - 1):
        kept = [place for place in range(len(rows)) if place != k]
        if rounds:
            given, times = [rows[place] for place in kept], [float(place) for place in kept]
            process = learn_reference(given, times, sigma=sigma, rounds=rounds, resamples=0).process(2.0)
        else:
            process = BrownianMotion(sigma or _SIGMA, horizon=2.0)
        bridge = fit(rows[k - 1], rows[k + 1], reference=process, solver=GaussianBridge(), seed=0)
        draws = [_scores(bridge.interpolate(rows[k - 1], 1.0, seed=seed), held[k]) for seed in range(seeds)]
        found.append((sum(w for w, _ in draws) / seeds, sum(e for _, e in draws) / seeds))
    return found


def _line(name: str, scores: Sequence[tuple[float, float]], seconds: str = "") -> None:
    w2, energy = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    row(name, W2=f"{w2:.3f}", energy=f"{energy:.3f}", **({"seconds": seconds} if seconds else {}))


def _ornstein_uhlenbeck(settings: Settings) -> None:
    rate = torch.tensor([[1.0, 0.8, 0.0], [-0.8, 0.6, 0.3], [0.1, 0.0, 0.9]], dtype=torch.float64)
    process = OrnsteinUhlenbeck(rate, 0.6, torch.tensor([0.2, -0.4, 0.5]).double(), horizon=5.0)
    start = Gaussian(torch.tensor([2.0, -1.0, 1.0]).double(), torch.tensor([0.3, 0.6, 1.0]).double().diag())
    times, combined, sigmas = [0.5 * k for k in range(10)], 0.0, []
    for seed in range(settings.seeds):
        g = torch.Generator().manual_seed(seed)
        rows = [start.sample(1000, g)]
        for t in times[1:]:
            step = process.transition(0.0, t)
            rows.append(step.mean(start.sample(1000, g)) + step.root(torch.randn(1000, 3, generator=g).double()))
        learned, seconds = timed(lambda r=rows, s=seed: learn_reference(r, times, resamples=settings.resamples, seed=s))
        better = learned.corrected()
        error = torch.cat([(better.rate - rate).reshape(-1), torch.tensor([better.sigma - 0.6]).double()])
        draws = torch.cat([learned.rate_draws.flatten(1), learned.sigma_draws[:, None]], 1)
        count, size = draws.shape
        statistic = float(error @ torch.linalg.solve(draws.mT.cov(), error))
        chance = float(f.sf(statistic * (count - size) / (size * (count - 1)), size, count - size))
        combined -= 2.0 * math.log(chance)
        sigmas.append(better.sigma)
        largest = f"{float(error[:-1].abs().max()):.3f} (s.e. {float(learned.rate_error.max()):.3f})"
        told = f"{better.sigma:.4f} ± {learned.sigma_error:.4f}"
        row(f"seed {seed}", error=largest, sigma=told, p=f"{chance:.3f}", seconds=f"{seconds:.0f}")
    row("all seeds (Fisher)", p=f"{float(chi2.sf(combined, 2 * settings.seeds)):.3f}", sigma=f"{mean(sigmas)}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
