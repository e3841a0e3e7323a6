"""The optimal control as the posterior of the end: a network for its mean and variance given the current state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbridge.controls.base import Time
from sbridge.controls.networks import Perceptron, time_features
from sbridge.errors import UnsupportedError, check_at_least
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import LinearProcess
from sbridge.solvers.control.starts import start_moments
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

_LEAST_LOG, _MOST_LOG = -8.0, 5.0  # of the posterior variance in units of the noise ahead
_SPREAD_OF_LOGS = 5.0


@register
@dataclass(frozen=True)
class PosteriorNetwork:
    """Recipe of the network of a :class:`PosteriorControl`.

    Args:
        width, depth: of its hidden layers.
        harmonics: the state enters also as ``sin, cos(2^j x/s)``, ``j < harmonics``, for densities with many modes.
    """

    width: int = 128
    depth: int = 3
    harmonics: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, 1, "width", "depth")
        check_at_least(self, 0, "harmonics")


class _Shared:
    """A reference that copies of a module share, and whose parameters are not those of the module."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def __deepcopy__(self, memo: dict[int, object]) -> _Shared:
        return self

    def derivatives(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """``−∇g`` and the diagonal of ``∇²g`` at rows ``m``, both ``(batch, dim)``."""
        with torch.enable_grad():
            states = m.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.costs.end(states).sum(), states, create_graph=True)
            if not slope.requires_grad:  # a linear cost
                return -slope.detach(), torch.zeros_like(m)
            second = [
                torch.autograd.grad(slope[:, i].sum(), states, retain_graph=True, materialize_grads=True)[0][:, i]
                for i in range(m.shape[1])
            ]
        return -slope.detach(), torch.stack(second, 1)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of the end ``X_T`` given states ``x`` at times ``t``; tensors broadcast to ``(batch, dim)``.

    Attributes:
        slope: ``w = (E[X_T | x] − m)/Q``; the control is ``σΦ w``.
        log_variance: ``log V``, ``V = Var[X_T | x]/Q``.
        middle: ``m = Φx + k``, the mean of ``X_T`` of the uncontrolled process.
        spread: ``Q``, its variance.
        pull: ``σΦ``.
        curvature: the diagonal of ``∇²g(m)``.
    """

    slope: Tensor
    log_variance: Tensor
    middle: Tensor
    spread: Tensor
    pull: Tensor
    curvature: Tensor


class PosteriorControl(nn.Module):
    """The control ``u = σΦ (E[X_T | x] − m)/Q`` with a posterior mean and a posterior variance that are learned.

    With ``m = Φx + k`` and ``Q`` of the uncontrolled ``X_T`` given ``x``, ``q = −∇g(m)`` and ``h`` the diagonal of
    ``∇²g(m)``, bounded from below by the inverse variance ``1/s²`` of the uncontrolled end::

        (E[X_T | x] − m)/Q = a q/(1 + Qh) + b √(h/(1 + Qh)) + c (x − x̄)/s²         V = e^d (1 + Qh)^{−e}

    where ``a, b, c, d, e`` are outputs of a network, all zero at first, and ``x̄`` is the mean of the uncontrolled end.
    For a Gaussian ``e^{−g}`` with independent coordinates ``a = e = 1`` and ``b = c = d = 0`` are exact. The network
    sees ``x``, ``q`` and ``h`` in units in which they are of order one, far ones on a logarithmic scale, and the share
    of the way in the log signal-to-noise ratio.

    Args:
        problem: with a linear process whose coefficients are scalar or diagonal, and a terminal cost alone.
        grid: its knots are equidistant for the network.
        recipe: of the network.
    """

    centre: Tensor
    scale: Tensor
    levels: Tensor

    def __init__(self, problem: ControlProblem, grid: TimeGrid, recipe: PosteriorNetwork) -> None:
        super().__init__()
        process = problem.process
        if not isinstance(process, LinearProcess):
            raise UnsupportedError(f"a LinearProcess is needed, got a {type(process).__name__}.")
        self.process, self.shared, self.recipe = process, _Shared(problem.costs), recipe
        mean, covariance = start_moments(problem.start)
        law, dim = process.transition(0.0, process.horizon), problem.dim
        square = law.map.values.square() * covariance.diagonal() + law.covariance.values
        self.register_buffer("centre", law.mean(mean.unsqueeze(0))[0])
        self.register_buffer("scale", square.sqrt())
        knots = grid.times(process.horizon)[:-1]
        self.register_buffer("levels", self._level(knots))
        self.core = Perceptron((3 + 2 * recipe.harmonics) * dim, recipe.width, recipe.depth, 5 * dim)

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at times ``()`` or ``(batch,)``, shape ``(batch, dim)``."""
        return self.with_variance(t, x)[0]

    def with_variance(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the control and ``V``, both ``(batch, dim)``."""
        found = self.posterior(t, x)
        variance = found.log_variance.clamp(_LEAST_LOG, _MOST_LOG).exp()
        return (found.pull * found.slope).to(x), variance.to(x)

    def posterior(self, t: Time, x: Tensor) -> Posterior:
        """Computes what is known of the end, differentiable in the weights alone."""
        own = self.core.last.weight
        times = torch.as_tensor(t, dtype=torch.float64, device="cpu").reshape(-1).clamp(0.0, self.process.horizon)
        law = self.process.transition(times, torch.full_like(times, self.process.horizon))
        spread = law.covariance.values.to(own)
        pull = (self.process.scale(times).values * law.map.values).to(own)
        y = x.detach().to(own)
        middle = law.map.values.to(own) * y + law.offset.to(own)
        q, h = self.shared.derivatives(middle)
        bounded = torch.maximum(h, (1.0 / self.scale.square()).expand_as(h))
        damping = 1.0 + spread * bounded
        inside = (y - self.centre) / self.scale
        size = (bounded / damping).sqrt()
        features = [
            inside.asinh(),
            torch.asinh(q / (bounded * damping).sqrt()),
            (spread * bounded).log() / _SPREAD_OF_LOGS,
        ]
        for j in range(self.recipe.harmonics):
            features += [torch.sin(2.0**j * inside), torch.cos(2.0**j * inside)]
        progress = time_features(self._progress(times), 1.0, y)
        a, b, c, d, e = self.core(progress, torch.cat(features, 1)).chunk(5, 1)
        slope = a * q / damping + b * size + c * inside / self.scale
        return Posterior(slope, d - e * damping.log(), middle, spread, pull, h)

    def _level(self, t: Tensor) -> Tensor:
        """``log(Q/Φ²s²)``, the mean over coordinates, at times ``(n,)``."""
        law = self.process.transition(t, torch.full_like(t, self.process.horizon))
        ratio = law.covariance.values / (law.map.values * self.scale.double().cpu()).square()
        return ratio.mean(1).clamp_min(torch.finfo(torch.float64).tiny).log()

    def _progress(self, t: Tensor) -> Tensor:
        """The share of the way from the level of the first knot to that of the last before the end, at times."""
        first, last = (float(self.levels[i]) for i in (0, -1))
        return ((first - self._level(t)) / (first - last)).clamp(0.0, 1.0)


def dense_coefficients(process: LinearProcess) -> str | None:
    """Explains why a process with matrices cannot be used; ``None`` if its coefficients are scalar or diagonal."""
    law = process.transition(0.0, process.horizon)
    if not law.map.dense and not law.covariance.dense:
        return None
    return (
        "PosteriorMatching learns variances coordinate by coordinate and needs a process with a scalar or diagonal "
        "rate and σ: whiten the coordinates of the problem, or use ReciprocalAdjointMatching()."
    )
