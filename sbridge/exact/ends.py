"""Bridges whose ends may change, as plain bridges between the ends that they choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.errors import UnsupportedError, shown
from sbridge.exact.plug_in import FarEnd
from sbridge.exact.soft_gaussian import SoftGaussianCoupling
from sbridge.laws import Gaussian, Samples
from sbridge.problems import BridgeProblem, Growth, Reweighting, SoftEnds, unknown_transition
from sbridge.problems.costs import Quadratic, checked
from sbridge.processes import Direction, LinearProcess
from sbridge.random import Seed, as_seed, generator
from sbridge.storage.registry import register
from sbridge.transport import Cloud, EntropicProblem, unbalanced

MOST_ROWS = 4096
"""Rows of either end between which potentials are computed; the others follow by one transform."""
_LEAST_WEIGHT = 1e-12  # relative to equal weights: a row of weight 0 has no logarithm


@register
@dataclass(frozen=True, eq=False)
class PlugInRatio:
    """``log dP/dp`` of an end between samples: ``exponent · log Σ_j e^{ℓ_j} R(z_j | x) − offset``, for any ``x``.

    Args:
        far: the rows ``z_j`` of the other end and their logits.
        exponent: ``1/(1 + λ)``.
        offset: such that the mean of the ratio over the given end is 1.
    """

    far: FarEnd
    exponent: float
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the log ratio, shape ``(batch,)``, float64."""
        near = 0.0 if self.far.direction is Direction.FORWARD else self.far.process.horizon
        return self.exponent * self.far.log_potential(near, x.double()) - self.offset


def balanced(problem: BridgeProblem, *, seed: Seed = 0, rows: int = MOST_ROWS) -> BridgeProblem:
    """Returns the plain problem between the ends that the answer of a problem with soft ends has.

    ``P = e^{f+g}R`` is the Schrödinger bridge between its own ends, so every solver of bridges gets it from them. The
    ``balance`` of the problem that is returned is the :class:`~sbridge.problems.Reweighting` of the given ends. Other
    problems are returned as they are. :func:`~sbridge.fitting.solve` and :func:`~sbridge.fitting.fit` do this first.

    With :class:`~sbridge.problems.Growth` the weights of the source rows are multiplied by ``e^{rate T}``.

    Between two Gaussians the ends have a closed form. Between samples they come from the entropic plan with marginal
    penalties: the rows stay, their weights change. The plan is relative to the product of the ends times the transition
    density, that is to ``R`` weighted by ``p_T(X_T)``, since samples have no density. For a hard target this is the
    same problem; for a soft one source rows far from the target lose weight, even with ``λ₀ = 0``.

    Args:
        problem: with two ends of samples or two Gaussians, and a linear reference.
        seed: of the rows that take part, if an end has more than ``rows``.
        rows: largest number of rows of either end between which potentials are computed.

    Raises:
        UnsupportedError: for other ends or another reference.
        InvalidInputError: if the noise is so small that the plan degenerates.
        NotConvergedError: if the potentials do not converge.
    """
    penalties = problem.balance
    if isinstance(penalties, Growth):
        return _grown(problem, penalties)
    if not isinstance(penalties, SoftEnds) or penalties.hard:
        return problem if penalties is None or isinstance(penalties, Reweighting) else problem.with_ends(None)
    source, target, reference = problem.source, problem.target, problem.reference
    if not isinstance(reference, LinearProcess):
        raise UnsupportedError(unknown_transition("a problem with soft ends", reference, "hard ends with IPF()"))
    if isinstance(source, Samples) and isinstance(target, Samples):
        return _between_samples(problem, source, target, reference, penalties, as_seed(seed), rows)
    if isinstance(source, Gaussian) and isinstance(target, Gaussian):
        return _between_gaussians(problem, source, target, reference, penalties)
    raise UnsupportedError(
        "soft ends need samples at both ends, or a Gaussian at both; got "
        f"{type(source).__name__} and {type(target).__name__}: draw samples first."
    )


@register
@dataclass(frozen=True, eq=False)
class GrowthRatio:
    """``log dP_0/dp_0 = rate(x) T − offset`` of a source that grows at a known rate."""

    rate: Callable[[Tensor], Tensor]
    horizon: float
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """Computes the log ratio, shape ``(batch,)``, float64."""
        rate = checked(self.rate(x), x, "growth rate", "these rows")
        return self.horizon * rate.double() - self.offset


def _grown(problem: BridgeProblem, growth: Growth) -> BridgeProblem:
    source, horizon = problem.source, problem.reference.horizon
    if not isinstance(source, Samples):
        raise UnsupportedError(
            f"growth at a known rate needs samples at the source, got {type(source).__name__}: draw samples first."
        )
    start, offset = _weighted(source, GrowthRatio(growth.rate, horizon, 0.0)(source.rows))
    mass = source.mass * math.exp(offset)
    masses = source.mass, problem.target.mass if isinstance(problem.target, Samples) else mass
    return problem.with_ends(Reweighting(GrowthRatio(growth.rate, horizon, offset), None, mass, masses), start)


def _between_gaussians(
    problem: BridgeProblem, source: Gaussian, target: Gaussian, reference: LinearProcess, penalties: SoftEnds
) -> BridgeProblem:
    found = SoftGaussianCoupling(source, target, reference, penalties)
    start, end = found.ends
    growth, explained = (None if new is old else _log_ratio(new, old) for new, old in ((start, source), (end, target)))
    return problem.with_ends(Reweighting(growth, explained, found.mass), start, end)


def _log_ratio(new: Gaussian, old: Gaussian) -> Quadratic:
    """Returns ``log new − log old`` as a quadratic function."""
    matrix, vector, constant = (
        torch.zeros((), dtype=torch.float64, device="cpu"),
        torch.zeros((), dtype=torch.float64, device="cpu"),
        0.0,
    )
    for sign, one in ((1.0, new), (-1.0, old)):
        mean, covariance = one.mean.double().cpu(), one.covariance.double().cpu()
        precision = torch.linalg.inv(covariance)
        matrix = matrix - 0.5 * sign * precision
        vector = vector + sign * precision @ mean
        constant -= 0.5 * sign * float(mean @ precision @ mean + torch.linalg.slogdet(covariance).logabsdet)
    return Quadratic(0.5 * (matrix + matrix.mT), vector, constant)


def _between_samples(
    problem: BridgeProblem,
    source: Samples,
    target: Samples,
    reference: LinearProcess,
    penalties: SoftEnds,
    seed: int,
    rows: int,
) -> BridgeProblem:
    draw = generator(seed)
    near, far = (_part(end, rows, draw) for end in (source, target))
    x, y = reference.transition(0.0, reference.horizon).whitened(near.rows.double(), far.rows.double())
    found = unbalanced(EntropicProblem(x, y, 1.0, near.weights, far.weights), penalties.source, penalties.target)
    a, b = found.problem.source_weights, found.problem.target_weights
    ahead = FarEnd(reference, Cloud(far.rows, found.g + b.log()), Direction.FORWARD)
    behind = FarEnd(reference, Cloud(near.rows, found.f + a.log()), Direction.BACKWARD)
    start, growth = _reweighted(source, ahead, penalties.source)
    end, explained = _reweighted(target, behind, penalties.target)
    mass = _mass(found.mass, (source.mass, target.mass), penalties)
    return problem.with_ends(Reweighting(growth, explained, mass, (source.mass, target.mass)), start, end)


def _mass(one: float, given: tuple[float, float], penalties: SoftEnds) -> float:
    """Returns the mass of the answer from that between ends of mass one."""
    if math.isinf(penalties.source):
        return given[0]
    if math.isinf(penalties.target):
        return given[1]
    logs = (1.0 + penalties.source) * math.log(given[0]) + penalties.target * math.log(given[1])
    return one * math.exp(logs / (1.0 + penalties.source + penalties.target))


def _reweighted(end: Samples, far: FarEnd, penalty: float) -> tuple[Samples, PlugInRatio | None]:
    """Returns the samples of an end with the weights of the answer, and the ratio of the two; a hard end unchanged."""
    if math.isinf(penalty):
        return end, None
    ratio = PlugInRatio(far, 1.0 / (1.0 + penalty))
    changed, offset = _weighted(end, ratio(end.rows))
    return changed, PlugInRatio(far, ratio.exponent, offset)


def _weighted(end: Samples, logs: Tensor) -> tuple[Samples, float]:
    """Returns the samples with weights times ``e^{logs}``, normalised, and the logarithm of their sum before."""
    weights = torch.full_like(logs, 1.0 / len(logs)) if end.weights is None else end.weights.to(logs)
    offset = float(torch.logsumexp(logs + weights.log(), 0))
    found = (logs + weights.log() - offset).exp().clamp(min=_LEAST_WEIGHT / len(logs))
    return Samples.sharing(end.rows, found / found.sum(), end.mass), offset


def _part(end: Samples, most: int, draw: torch.Generator) -> Samples:
    """Returns the rows of positive weight, or ``most`` of them in random order."""
    weights = end.weights
    index = torch.arange(len(end.rows), device="cpu") if weights is None else weights.nonzero().flatten().cpu()
    if len(index) > most:
        index = index[torch.randperm(len(index), generator=draw, device=draw.device)[:most].cpu().sort().values]
    elif weights is None:
        return end
    part = None if weights is None else weights[index].double() / weights[index].double().sum()
    return Samples.sharing(end.rows[index], part)


def describe(problem: BridgeProblem) -> str | None:
    """Returns one sentence on the changed ends of a problem that :func:`balanced` returned; ``None`` without any."""
    found = problem.balance
    if not isinstance(found, Reweighting):
        return None
    parts = []
    for name, law, ratio in (("source", problem.source, found.source), ("target", problem.target, found.target)):
        if ratio is None:
            parts.append(f"the {name} is hard")
        elif isinstance(law, Samples):
            logs = ratio(law.rows)
            low, high = logs.quantile(0.05).exp(), logs.quantile(0.95).exp()
            parts.append(
                f"{'growth of source rows' if name == 'source' else 'explained part of target rows'} {low:.3g} to "
                f"{high:.3g} (5 % and 95 %), effective sample size {law.effective_size:.0f} of {len(law.rows)}"
            )
        else:
            parts.append(f"the {name} is {shown(law)}")
    return "ends that change: " + "; ".join(parts)
