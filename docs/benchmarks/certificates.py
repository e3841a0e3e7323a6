"""How tight certificates are: ``python -m docs.benchmarks.certificates``.

For mixture pairs, whose ``V*`` is known, judges are fitted with different seeds on fresh samples. A line per dimension
gives the number of fits in which ``D(g) ≤ V* + 2 s.e.`` held (by chance it fails in one of 44), and the distance of the
bounds below ``V*``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import tyro

from sbridge.benchmarks.output import row
from sbridge.benchmarks.pairs import MixturePair
from sbridge.benchmarks.tables import timed
from sbridge.evaluation import dual_bound
from sbridge.exact import MixtureControl
from sbridge.fitting import solve
from sbridge.laws import Samples
from sbridge.measures import Estimate
from sbridge.problems import BridgeProblem
from sbridge.random import derive
from sbridge.solvers.mixture import MixtureBridge


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        dims: dimensions.
        epsilon: ε.
        fits: judges for each dimension, each on its own samples.
        rows: held-out samples a side; one half fits the judge.
    """

    dims: tuple[int, ...] = (2, 16)
    epsilon: float = 1.0
    fits: int = 40
    rows: int = 10_000


@dataclass(frozen=True)
class Tightness:
    """The bounds of all fits.

    Args:
        value: ``V*``.
        bounds: ``D(g)`` of every fit.
    """

    value: Estimate
    bounds: tuple[Estimate, ...]

    @property
    def held(self) -> int:
        """The number of fits with ``D(g) ≤ V* + 2 s.e.``."""
        error = self.value.standard_error
        return sum(
            found.value <= self.value.value + 2.0 * math.hypot(found.standard_error, error) for found in self.bounds
        )

    @property
    def deficits(self) -> torch.Tensor:
        """``V* − D(g)`` of every fit, in nats."""
        return self.value.value - torch.tensor([found.value for found in self.bounds], dtype=torch.float64)


def measure(pair: MixturePair, settings: Settings) -> Tightness:
    """Fits all judges on one pair."""
    bounds = []
    for seed in range(settings.fits):
        rows = pair.sample(settings.rows, seed=derive(seed, "certificate rows"))
        (fit0, judge0), (fit1, judge1) = (side.tensor_split(2) for side in rows)
        problem = BridgeProblem(Samples(fit0), Samples(fit1), pair.reference)
        control = solve(problem, MixtureBridge(), seed=seed).forward.control
        bounds.append(dual_bound(cast("MixtureControl", control).potential, judge0, judge1))
    return Tightness(pair.value, tuple(bounds))


def main(settings: Settings) -> None:
    """Prints a line per dimension."""
    for dim in settings.dims:
        pair = MixturePair(dim, settings.epsilon)
        found, seconds = timed(lambda pair=pair: measure(pair, settings))
        deficits = found.deficits
        row(
            f"d={dim} ε={settings.epsilon:g}",
            held=f"{found.held} of {settings.fits}",
            value=found.value,
            deficit=Estimate.of(deficits),
            largest=f"{float(deficits.max()):.4f}",
            seconds=f"{seconds:.0f}",
        )


if __name__ == "__main__":
    main(tyro.cli(Settings))
