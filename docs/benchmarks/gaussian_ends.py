"""Gaussian ends against the closed form: ``python -m docs.benchmarks.gaussian_ends``.

Means ∓0.1, unit covariances, σ = 1, T = 1; 10 000 training samples a side. The scores are computed on 100 000 fresh
source samples: the mean over coordinates of Cov(X_0, X_1), whose exact value is (√5 − 1)/2, and both path divergences
to the process with the closed-form control, for the forward and for the backward process.

``--reference turning``: ends with random axes under an Ornstein–Uhlenbeck process whose rate rotates (:func:`sbridge.
benchmarks.pairs.turning_reference`, σσᵀ = 1 on average). The scores under the closed-form bridge, in both directions::

    drift      ∫ E|v − v*|² dt / ∫ E|v*|² dt               v = ±b + σu
    control    ∫ E|σ⁻¹(v − v*)|² dt / ∫ E|u*|² dt          σ, u* of the rotating reference

are printed with those of the closed-form bridge under a Brownian reference of the same noise, which shows the effect of
the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from torch import Tensor

from sbridge.benchmarks.output import row
from sbridge.benchmarks.pairs import GaussianPair, turning_reference
from sbridge.benchmarks.tables import SOLVERS, mean, timed
from sbridge.errors import check_known
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.fitting import fit, solve
from sbridge.laws import Gaussian
from sbridge.measures import PathMeasure, path_kl
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, Direction
from sbridge.random import derive, generator
from sbridge.solutions import Bridge
from sbridge.solvers.gaussian import GaussianBridge, GaussianControl

EXACT = (math.sqrt(5.0) - 1.0) / 2.0
_SHIFT = 0.1
_MOMENTS, _DRAWS = 20, 4000


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        reference: brownian, or turning.
        dims: dimensions.
        seeds: data seeds.
        solvers: names of rows of the solver table.
        rows: training samples a side.
        fresh: fresh samples for the scores; a tenth of them for each divergence.
    """

    reference: Literal["brownian", "turning"] = "brownian"
    dims: tuple[int, ...] = (5, 20, 50)
    seeds: int = 3
    solvers: tuple[str, ...] = ("IMF", "IMF, independent start")
    rows: int = 10_000
    fresh: int = 100_000

    def __post_init__(self) -> None:
        check_known("solver", self.solvers, SOLVERS)


def main(settings: Settings) -> None:
    """Prints a line per solver, dimension and direction."""
    if settings.reference == "turning":
        turning(settings)
        return
    for name in settings.solvers:
        for dim in settings.dims:
            runs = [run(name, dim, seed, settings) for seed in range(settings.seeds)]
            for direction in Direction:
                scores = [scores[direction] for scores, _ in runs]
                cells = {key: mean([score[key] for score in scores]) for key in scores[0]}
                worst = max(abs(score["cov"] / EXACT - 1.0) for score in scores)
                seconds = mean([seconds for _, seconds in runs])
                row(f"{name} d={dim} {direction.name.lower()}", **cells, worst=f"{worst:.2%}", seconds=seconds)


def run(name: str, dim: int, seed: int, settings: Settings) -> tuple[dict[Direction, dict[str, float]], float]:
    """Fits one data seed; the scores of both directions and the seconds of the fit."""
    mean0, identity = torch.full((dim,), -_SHIFT), torch.eye(dim)
    ends = Gaussian(mean0, identity), Gaussian(-mean0, identity)
    draws = generator(derive(seed, "data"))
    x0, x1 = (end.sample(settings.rows, draws) for end in ends)
    reference = BrownianMotion(sigma=1.0)
    bridge, seconds = timed(lambda: fit(x0, x1, reference=reference, solver=SOLVERS[name], seed=seed))
    exact = GaussianCoupling(mean0, identity, -mean0, identity, reference)
    return {direction: score(bridge, exact, ends, direction, settings.fresh) for direction in Direction}, seconds


def score(
    bridge: Bridge, exact: GaussianCoupling, ends: tuple[Gaussian, Gaussian], direction: Direction, fresh: int
) -> dict[str, float]:
    """Covariance and variance on fresh samples, and both divergences with their Monte Carlo standard errors."""
    there = (bridge.forward, ends[0]), (bridge.backward, ends[1])
    measure, start = there[0 if direction is Direction.FORWARD else 1]
    near = start.sample(fresh, generator(derive(7, "fresh")))
    far = measure.transport(near, seed=11)
    covariance = ((near - near.mean(0)) * (far - far.mean(0))).mean(0).mean()
    learned = replace(measure, start=start, end_kernel=None)
    truth = replace(learned, control=GaussianControl(exact, direction))
    to_truth = path_kl(learned, truth, fresh // 10, seed=12)
    from_truth = path_kl(truth, learned, fresh // 10, seed=13)
    return {
        "cov": float(covariance),
        "var": float(far.var(0).mean()),
        "KL(fit‖exact)": to_truth.value,
        "KL(exact‖fit)": from_truth.value,
        "mc_se": max(to_truth.standard_error, from_truth.standard_error),
    }


def turning(settings: Settings) -> None:
    """The rows of ``--reference turning``."""
    for dim in settings.dims:
        pairs = [GaussianPair(turning_reference(dim, 1.0, seed), dim, seed) for seed in range(settings.seeds)]
        rows = {"Brownian reference": [(under_brownian(pair), 0.0) for pair in pairs]}
        for name in settings.solvers:
            rows[name] = [fitted(name, pair, settings) for pair in pairs]
        for name, fits in rows.items():
            scored = [drift_errors(bridge, pair) for (bridge, _), pair in zip(fits, pairs, strict=True)]
            for direction in Direction:
                cells = {key: mean([score[direction][key] for score in scored]) for key in ("drift", "control")}
                worst = max(score[direction]["drift"] for score in scored)
                seconds = mean([seconds for _, seconds in fits])
                row(f"{name} d={dim} {direction.name.lower()}", **cells, worst=f"{worst:.2%}", seconds=seconds)


def fitted(name: str, pair: GaussianPair, settings: Settings) -> tuple[Bridge, float]:
    """One solver on samples of the pair, and its seconds."""
    x0, x1 = pair.sample(settings.rows, seed=derive(pair.seed, "data"))
    return timed(lambda: fit(x0, x1, reference=pair.reference, solver=SOLVERS[name], seed=pair.seed))


def under_brownian(pair: GaussianPair) -> Bridge:
    """The bridge between the same ends under Brownian motion with the mean noise of the pair's reference."""
    noise = float(pair.reference.scale(0.0).mean_square(pair.dim)) ** 0.5
    reference = BrownianMotion(noise, pair.reference.horizon)
    return solve(BridgeProblem(pair.source, pair.target, reference), GaussianBridge(), seed=0)


def drift_errors(bridge: Bridge, pair: GaussianPair) -> dict[Direction, dict[str, float]]:
    """Relative mean square errors of drifts and controls under the exact bridge, at twenty times between the ends."""
    exact, draws = pair.coupling, generator(derive(pair.seed, "drift errors"))
    times = [(k + 0.5) / _MOMENTS * pair.reference.horizon for k in range(_MOMENTS)]
    states = [(t, Gaussian(*exact.marginal(t)).sample(_DRAWS, draws)) for t in times]
    found = {}
    for measure in (bridge.forward, bridge.backward):
        truth = replace(measure, process=pair.reference, control=GaussianControl(exact, measure.direction))
        sums = torch.zeros(4, dtype=torch.float64)
        for t, x in states:
            wanted = drift(truth, t, x)
            off, units = drift(measure, t, x) - wanted, pair.reference.scale(t).inverse()
            parts = (off, wanted, units(off), units(wanted - truth.direction.value * pair.reference.drift(t, x)))
            sums += torch.stack([part.square().sum() for part in parts])
        found[measure.direction] = {"drift": float(sums[0] / sums[1]), "control": float(sums[2] / sums[3])}
    return found


def drift(measure: PathMeasure, t: float, x: Tensor) -> Tensor:
    """``±b + σu``, the control in float32 as it was trained."""
    u = torch.zeros_like(x) if measure.control is None else measure.control(t, x.float()).to(x)
    return measure.direction.value * measure.process.drift(t, x) + measure.process.scale(t)(u)


if __name__ == "__main__":
    main(tyro.cli(Settings))
