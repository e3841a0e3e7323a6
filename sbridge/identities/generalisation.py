"""Exact reversal returns the data points; a trained network does not.

The reversal of an empirical distribution ends on data points if it is driven by the exact score, because the
distribution that it reverses has no others (Cao et al. 2025, arXiv:2501.17054; Scarvelis et al. 2023,
arXiv:2310.12395). New points come from the error of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sbridge.controls import MLP
from sbridge.diffusion import ScoreMatching, generate, reverse_diffusion
from sbridge.diffusion.conversions import start_from_score
from sbridge.diffusion.reverse import end_distribution
from sbridge.errors import UnsupportedError
from sbridge.fitting import solve
from sbridge.identities.base import Kind, Outcome, identity
from sbridge.identities.settings import Setting
from sbridge.laws import Samples
from sbridge.problems import BridgeProblem
from sbridge.processes import LinearProcess, VariancePreserving
from sbridge.random import generator
from sbridge.simulation import propagate
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

generalisation_identity = partial(identity, group="generalisation")
_CAO = "Cao et al. 2025"
_NEAR = 1e-3
_POINTS = 48
_ROWS = 600
_MANY_ROWS = 2600  # for a standard error of .01 of a fraction
_CHUNK = 4000
_PER_SAMPLE = 5  # coordinates of paths for each sample of a setting, for a standard error of 1 % of a variance
_UPDATES = 150
_EXACT = "donot_use_mm_for_euclid_dist"  # matrix products lose half of the digits of a small distance


@generalisation_identity(
    statement="if the data are one point, the reverse process is the bridge pinned at that point",
    equation="Cao et al. 2025; Premkumar 2023, eq. (4.1)–(4.3)",
    kind=Kind.EQUALITY,
    left="mean and variance of simulated reverse paths with the score of that point",
    right="Gaussian conditioning of the noising process on both ends",
)
def dirac_start(setting: Setting) -> Iterator[Outcome]:
    """Checks paths from one end ``x_T``, at ``T/2`` and ``T/10``."""
    process, horizon, draws = setting.process, setting.horizon, generator(setting.seed_of("dirac"))
    point = setting.data.sample(1, draws).double()
    whole = process.transition(0.0, horizon)
    end = whole.mean(point) + whole.root(torch.randn(point.shape, generator=draws, dtype=torch.float64))
    for fraction in (0.5, 0.1):
        t = fraction * horizon
        pinned = process.pinned(t)
        mean, variance = pinned.mean(point, end), float(pinned.covariance.expanded(setting.dim).diagonal().sum())
        away = end - mean
        seen = [
            ((states @ away.mT).squeeze(1) / away.norm(), (states - mean).square().sum(1))
            for states in _back_to(setting, point, end, t)
        ]
        along = float((mean @ away.mT) / away.norm())
        for k, (right, what) in enumerate(((along, "mean towards the end"), (variance, "variance"))):
            yield Outcome.refined([one[k] for one in seen], right, f"{what}, t = {fraction:g} T")


@generalisation_identity(
    statement="exact reversal of an empirical distribution ends on data points",
    equation=_CAO,
    kind=Kind.EQUALITY,
    left="fraction of simulated ends within 10⁻³ standard deviations of a data point",
    right="1",
)
def empirical_start(setting: Setting) -> Outcome:
    """Checks ends after the last step ``E[X_0 | X_s]``, at an ``s`` whose noise is a tenth of that distance."""
    memory = Memory.of(setting)
    near = memory.distances(memory.ends(setting)) <= memory.radius
    return Outcome(float(near.double().mean()), 1.0, note=f"{len(memory.points)} points, {len(near)} ends")


@generalisation_identity(
    statement="exact reversal returns every data point with its multiplicity",
    equation=f"{_CAO}; Anderson 1982",
    kind=Kind.EQUALITY,
    left="fraction of simulated ends at data points whose first coordinate is below the median",
    right="fraction of such points in the data",
)
def empirical_law_returns(setting: Setting) -> Outcome:
    """Checks the points below the median; the time step is halved for the allowance."""
    memory = Memory.of(setting)
    lower = memory.points[:, 0] < memory.points[:, 0].median()
    levels = [lower[memory.nearest(memory.ends(setting, k, rows=_MANY_ROWS))].double() for k in (1, 2)]
    return Outcome.refined(levels, float(lower.double().mean()), "steps halved")


@generalisation_identity(
    statement="exact reversal preserves the support: every end is a data point",
    equation=_CAO,
    kind=Kind.INEQUALITY,
    left="largest distance of a simulated end from the data, in standard deviations",
    right="10⁻³",
)
def support_containment(setting: Setting) -> Outcome:
    """Checks the end that is farthest from the data."""
    memory = Memory.of(setting)
    worst = float(memory.distances(memory.ends(setting)).max())
    return Outcome(worst / memory.std, memory.radius / memory.std, note=f"{_ROWS} ends")


@generalisation_identity(
    statement="the posterior mean E[X_0 | X_s] of the last step is Tweedie's formula",
    equation="Efron 2011; Cao et al. 2025",
    kind=Kind.RESIDUAL,
    left="largest relative difference between Tweedie's formula and Bayes' formula over the points",
)
def last_step(setting: Setting) -> Iterator[Outcome]:
    """Checks the formula at ``s_min`` and ``T/10``, in float64."""
    memory, process = Memory.of(setting), setting.process
    for t, when in ((setting.s_min, "s_min"), (0.1 * setting.horizon, "T/10")):
        step, draws = process.transition(0.0, t), generator(setting.seed_of("last step"))
        noise = torch.randn(memory.points.shape, generator=draws, dtype=torch.float64)
        x = (step.mean(memory.points) + step.root(noise)).requires_grad_()
        logs = _log_kernels(process, t, memory.points, x)
        (score,) = torch.autograd.grad(torch.logsumexp(logs, 1).sum(), x)
        with torch.no_grad():
            bayes = torch.softmax(logs, 1) @ memory.points
            tweedie = start_from_score(process, t, x, score)
            worst = float((tweedie - bayes).abs().max()) / memory.std
        yield Outcome(worst, allowance=1e-6, note=f"at {when}")


@generalisation_identity(
    statement="samples of a trained network are not data points",
    equation=_CAO,
    kind=Kind.DIFFERENCE,
    left="fraction of generated samples within 10⁻³ standard deviations of a training point",
    right="1, as for the exact reversal",
    applies=lambda setting: (
        isinstance(setting.data, Samples)
        if setting.network is not None
        else setting.dim == 2 and isinstance(setting.process, VariancePreserving)
    ),
)
def trained_network(setting: Setting) -> Outcome:
    """Checks the network of the setting; without one, a small network trained on a few points."""
    memory = Memory.of(setting) if setting.network is None else Memory.whole(setting)
    near = (memory.distances(_generated(setting, memory)) <= memory.radius).double()
    share = float(near.mean())
    error = math.sqrt(max(share * (1.0 - share), 1.0 / len(near)) / len(near))
    return Outcome(share, 1.0, error, note="given network" if setting.network else f"network of {_UPDATES} updates")


@dataclass(frozen=True, eq=False)
class Memory:
    """A few data points, and the distance within which a sample counts as equal to one of them.

    Attributes:
        points: shape ``(n, dim)``, float64.
        std: root mean square over coordinates of their standard deviation.
        radius: 10⁻³ of the spread, but at most 1 % of the median distance to the nearest other point.
    """

    points: Tensor
    std: float
    radius: float

    @classmethod
    def of(cls, setting: Setting) -> Memory:
        """Draws points from the data of the setting, without repeats."""
        return cls._from(setting.data.sample(_POINTS, generator(setting.seed_of("points"))))

    @classmethod
    def whole(cls, setting: Setting) -> Memory:
        """Takes all rows of the data, which are samples."""
        if not isinstance(setting.data, Samples):
            raise UnsupportedError(f"a {type(setting.data).__name__} has no data points; give Samples.")
        return cls._from(setting.data.rows)

    @classmethod
    def _from(cls, rows: Tensor) -> Memory:
        points = rows.double().unique(dim=0)
        std = float(points.var(0).mean().sqrt())
        some = points[:2000]
        between = torch.cdist(some, points, compute_mode=_EXACT).topk(2, largest=False).values[:, 1]
        return cls(points, std, min(_NEAR * std, 0.01 * float(between.median())))

    def distances(self, rows: Tensor) -> Tensor:
        """Computes distances from each row to the nearest point."""
        return torch.cdist(rows.double(), self.points, compute_mode=_EXACT).amin(1)

    def nearest(self, rows: Tensor) -> Tensor:
        """Returns the index of the nearest point for each row."""
        return torch.cdist(rows.double(), self.points, compute_mode=_EXACT).argmin(1)

    def ends(self, setting: Setting, refinement: int = 1, rows: int = _ROWS) -> Tensor:
        """Simulates ends of the exact reversal of these points, from exact draws of ``X_T``."""
        law = Samples(self.points)
        s_min = _time_of_noise(setting.process, self.radius / 10.0)
        inner = replace(setting, data=law, start_time=s_min / setting.horizon, network=None)
        bridge = reverse_diffusion(setting.process, law, inner.exact, grid=inner.grid(2 * refinement))
        draws, step = generator(setting.seed_of("ends", refinement)), setting.process.transition(0.0, setting.horizon)
        start = law.sample(rows, draws)
        x = step.mean(start) + step.root(torch.randn(start.shape, generator=draws, dtype=torch.float64))
        return generate(bridge, x, seed=setting.seed_of("reversal", refinement))


def _back_to(setting: Setting, point: Tensor, end: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Simulates states at ``t`` of reverse paths from ``end`` with the score of ``point``, with two step sizes.

    A long step uses the noise of its two short steps. The bias of a chain is of first order in the step, so the bias
    of the short steps is as large as the change from the long ones. Common noise makes that change precise.
    """
    process, law = setting.process, Samples(torch.cat([point, point]))
    count = max(setting.samples, _PER_SAMPLE * setting.samples // setting.dim)
    bridge = reverse_diffusion(
        process,
        law,
        lambda t, x: process.conditional_score(t, x, point.expand_as(x)),
        prior=end_distribution(process, law),
    )
    steps, draws = 2 * setting.steps, generator(setting.seed_of("pinned", int(1e6 * t / setting.horizon)))
    chains = [bridge.backward.chain(end, _between(t / setting.horizon, n)) for n in (steps, 2 * steps)]
    shares = chains[1].visited[:-1].diff().abs().reshape(steps, 2)
    shares = (shares / shares.sum(1, keepdim=True)).sqrt().reshape(steps, 2, 1, 1)
    found: list[list[Tensor]] = [[], []]
    for first in range(0, count, _CHUNK):
        rows = min(_CHUNK, count - first)
        short = torch.randn(2 * steps, rows, setting.dim, generator=draws, dtype=torch.float64)
        long = (shares * short.reshape(steps, 2, rows, setting.dim)).sum(1)
        for chain, noise, states in zip(chains, (long, short), found, strict=True):
            unused = noise.new_zeros(1, rows, setting.dim)  # of the step from t to 0, which is not taken
            start = end.expand(rows, -1).contiguous()
            states.append(propagate(chain, bridge.backward.control, start, torch.cat([noise, unused]), stop=len(noise)))
    return torch.cat(found[0]), torch.cat(found[1])


def _between(fraction: float, steps: int) -> TimeGrid:
    """Makes a grid with one step from 0 to ``fraction``, then geometric steps to 1; nested when ``steps`` doubles."""
    return TimeGrid((0.0, *(fraction ** (1.0 - k / steps) for k in range(steps)), 1.0))


def _log_kernels(process: LinearProcess, t: float, points: Tensor, x: Tensor) -> Tensor:
    """Computes ``log p(x_i | x_0 = point_j)``, shape ``(rows, points)``."""
    rows, count = len(x), len(points)
    starts, ends = points.repeat(rows, 1), x.repeat_interleave(count, 0)
    return process.log_transition(0.0, starts, t, ends).reshape(rows, count)


def _time_of_noise(process: LinearProcess, size: float) -> float:
    """Returns the time at which the noise ``√Q/Φ`` has reached ``size``; at most half the horizon."""
    low, high = 1e-14 * process.horizon, 0.5 * process.horizon
    for _ in range(60):
        middle = math.sqrt(low * high)
        step = process.transition(0.0, middle)
        seen = math.sqrt(float((step.map.inverse() @ step.root).mean_square(process.dim or 1)))
        low, high = (middle, high) if seen < size else (low, middle)
    return low


def _generated(setting: Setting, memory: Memory) -> Tensor:
    if setting.network is not None:
        bridge = reverse_diffusion(setting.process, setting.data, setting.network, grid=setting.grid())
    else:
        law = Samples(memory.points)
        solver = ScoreMatching(
            updates=_UPDATES, network=MLP(64, 2), optimisation=Optimisation(learning_rate=5e-3, batch=256),
            start_time=setting.start_time, grid=setting.grid(),
        )  # fmt: skip
        problem = BridgeProblem(law, end_distribution(setting.process, law), setting.process)
        bridge = solve(problem, solver, seed=setting.seed_of("training"))
    return generate(bridge, _ROWS, seed=setting.seed_of("generated"))
