"""Known controls from which learning starts, and the annealing of a terminal cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.exact.riccati import ChainRiccati
from sbridge.laws import Gaussian, GaussianMixture, Law, Point, Samples, StoredRows, moments
from sbridge.laws.moments import is_singular
from sbridge.laws.stored import row_count
from sbridge.problems import BridgeProblem, ControlProblem, Quadratic
from sbridge.problems.costs import Costs, TerminalCost
from sbridge.processes import Direction, LinearProcess, StepRule
from sbridge.processes.base import Time, affine
from sbridge.random import generator
from sbridge.solvers.gaussian import moment_matched
from sbridge.storage.registry import register
from sbridge.time import TimeGrid

_START_ROWS, _JITTER, _KNOTS = 16_384, 1e-12, 256
_MOST_COLUMNS, _SAMPLES_A_COLUMN = 128, 10


class WarmStart(ABC):
    """A control from which learning starts: the network, zero at first, is added to it."""

    @abstractmethod
    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control | None:
        """The fixed control to which the network is added, for the chain of ``grid`` and ``rule``.

        It is a deterministic function of the arguments, and accepts times ``()`` and ``(batch,)``; ``None``: zero.
        """

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        """The fixed control of either direction of a bridge, to which its network is added; ``None``: zero.

        Raises:
            UnsupportedError: if the start is one for control problems only.
        """
        raise UnsupportedError(
            f"{type(self).__name__} is a start for control problems; for a bridge use GaussianStart() or ZeroStart()."
        )


@register
@dataclass(frozen=True)
class ZeroStart(WarmStart):
    """No known control: learning starts from the uncontrolled process."""

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> None:
        """None."""
        return None

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        """None."""
        return dict.fromkeys(Direction)


@register
@dataclass(frozen=True, eq=False)
class EarlierStart(WarmStart):
    """A known control, such as ``solution.control`` of an easier problem or of a coarser grid."""

    earlier: Control

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control:
        """``earlier``."""
        return self.earlier


@register
@dataclass(frozen=True)
class Annealing:
    """The terminal cost as ``λ g``, with λ rising geometrically from ``first`` to 1 over a share of the updates.

    While λ is small, the optimal distribution is broad, so that paths reach all modes of ``e^{−g}`` before one of them
    attracts the control.
    """

    first: float = 0.01
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.first <= 1.0 or not 0.0 < self.share <= 1.0:
            raise InvalidInputError(f"first and share must lie in (0, 1], got {self.first} and {self.share}.")

    def factor(self, progress: float) -> float:
        """λ after a share ``progress`` of all updates."""
        return self.first ** max(0.0, 1.0 - progress / self.share)

    def costs(self, costs: Costs, progress: float) -> Costs:
        """The same costs with ``λ g``."""
        factor = self.factor(progress)
        if costs.terminal is None or factor == 1.0:
            return costs
        return Costs(costs.running, _Scaled(costs.terminal, factor), costs.stopping)


@dataclass(frozen=True, eq=False)
class _Scaled:
    cost: TerminalCost
    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * self.cost(x)


@register
@dataclass(frozen=True)
class RiccatiStart(WarmStart):
    """The optimal control of the chain for both costs expanded to second order about the mean start.

    Negative curvatures are set to zero, so that the expanded problem has a solution. Exact for quadratic costs. The
    running cost is expanded at ``t = 0``.
    """

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control:
        """An affine control.

        Raises:
            UnsupportedError: for a process that is not linear, or with a stopping set.
        """
        if not isinstance(problem.process, LinearProcess) or problem.stopping is not None:
            raise UnsupportedError(
                "RiccatiStart needs a linear process such as OrnsteinUhlenbeck and no stopping set; start from a "
                "control that you know, EarlierStart(control), or from ZeroStart()."
            )
        costs, centre = problem.costs, problem.probe.double().mean(0).cpu()
        running = _expanded(lambda x: costs.rate(0.0, x), centre)
        return ChainRiccati(problem.process, running, _expanded(costs.end, centre), grid, rule).control


def _expanded(cost: Callable[[Tensor], Tensor], centre: Tensor) -> Quadratic:
    """Value, gradient and curvature at ``centre``."""

    def alone(x: Tensor) -> Tensor:
        return cost(x.unsqueeze(0)).sum()

    with torch.enable_grad():
        x = centre.clone().requires_grad_()
        value = alone(x)
        gradient = torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(centre)
        hessian = torch.autograd.functional.hessian(alone, centre)
    if not isinstance(hessian, Tensor):
        raise UnsupportedError("a cost of one argument has one matrix of second derivatives.")
    curvatures, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.mT))
    half = 0.5 * (vectors * curvatures.clamp_min(0.0)) @ vectors.mT
    vector = gradient - 2.0 * half @ centre
    constant = float(value.detach() - gradient @ centre + centre @ half @ centre)
    return Quadratic(0.5 * (half + half.mT), vector, constant)


@register
@dataclass(frozen=True, eq=False)
class GaussianStart(WarmStart):
    """The control of the Schrödinger bridge from a Gaussian start to a Gaussian end, for linear processes.

    For a bridge both ends have the means and covariances of the problem's ends. For a control problem the start has
    those of the problem's start, and the end those of ``end``. The control is affine, ``u = G(t) x + h(t)`` of
    :meth:`sbridge.exact.GaussianCoupling.forward_gain`, tabulated at the knots of the grid; it is optimal if start and
    ``e^{−g}`` are Gaussian.

    Args:
        end: mean and covariance of ``X_T`` under the optimal control, roughly; too wide does less harm than too narrow.
            ``None``: those of the distribution that the terminal cost names, as the costs of
            :func:`sbridge.reversal_problem` and :func:`sbridge.sampling_problem` do if it is a ``Gaussian`` or a
            ``GaussianMixture``. For other costs they are unknown, and learning starts from no control.
    """

    end: Gaussian | None = None

    def control(self, problem: ControlProblem, grid: TimeGrid, rule: StepRule) -> Control | None:
        """An affine control, or ``None`` if the end is not known.

        Raises:
            UnsupportedError: for an ``end`` with a process that is not linear.
            InvalidInputError: for an ``end`` of another dimension.
        """
        named, linear = getattr(problem.terminal_cost, "end", None), isinstance(problem.process, LinearProcess)
        end = named if self.end is None and isinstance(named, (Gaussian, GaussianMixture)) and linear else self.end
        if end is None:
            return None
        if not isinstance(problem.process, LinearProcess):
            raise UnsupportedError(
                f"GaussianStart has a closed form for linear processes, got a {type(problem.process).__name__}: start "
                "from a control that you know, EarlierStart(control), or from ZeroStart()."
            )
        if end.dim != problem.dim:
            raise InvalidInputError(f"the end of GaussianStart has dimension {end.dim}, the problem {problem.dim}.")
        mean, covariance = start_moments(problem.start)
        coupling = GaussianCoupling(mean, covariance, *moments(end), problem.process)
        times = grid.times(problem.process.horizon)
        return AffineControl(times, *coupling.forward_gain(times))

    def bridge_controls(self, problem: BridgeProblem) -> dict[Direction, Control | None]:
        """The controls of the bridge between Gaussians with the means and covariances of the ends, tabulated.

        Its path measure is the reference times a function of either end. Iterative proportional fitting and iterative
        Markovian fitting therefore have the same limit from it as from the reference.

        Raises:
            UnsupportedError: if the reference is not linear, the moments of an end are not known, or ``end`` is given.
            InvalidInputError: if a covariance is singular.
        """
        if self.end is not None:
            raise UnsupportedError("for a bridge GaussianStart takes its moments from the ends: leave end=None.")
        coupling, times = moment_matched(problem), TimeGrid.cosine(_KNOTS).times(problem.reference.horizon)
        gains = {Direction.FORWARD: coupling.forward_gain, Direction.BACKWARD: coupling.backward_gain}
        found: dict[Direction, Control | None] = {}
        for direction, gain in gains.items():
            like = problem.near(direction).sample(1, generator(0))
            found[direction] = AffineControl(times, *(part.to(like) for part in gain(times)))
        return found


@register
@dataclass(frozen=True, eq=False)
class AffineControl:
    """The affine control ``u(t, x) = G(t) x + h(t)``, linear in time between knots.

    Args:
        times: of the knots, increasing, shape ``(N,)``.
        matrices: ``G`` there, ``(N, dim, dim)``.
        vectors: ``h`` there, ``(N, dim)``.
    """

    times: Tensor
    matrices: Tensor
    vectors: Tensor

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at times ``()`` or ``(batch,)``, shape ``(batch, dim)``."""
        knots = self.times.to(x.device)
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        after = torch.searchsorted(knots, t).clamp(1, len(knots) - 1)
        share = ((t - knots[after - 1]) / (knots[after] - knots[after - 1])).clamp(0.0, 1.0).to(x)
        matrices, vectors = self.matrices.to(x), self.vectors.to(x)
        matrix = torch.lerp(matrices[after - 1], matrices[after], share[..., None, None])
        return affine(matrix, torch.lerp(vectors[after - 1], vectors[after], share[..., None]), x)


def usual_start(problem: BridgeProblem) -> WarmStart:
    """The default start of a bridge.

    :class:`GaussianStart` for a linear reference and ends that are Gaussians, mixtures of Gaussians, or samples with at
    least ten rows for each of at most 128 columns and a regular covariance; otherwise :class:`ZeroStart`.
    """
    if not isinstance(problem.reference, LinearProcess) or problem.dim > _MOST_COLUMNS:
        return ZeroStart()
    for end in (problem.source, problem.target):
        count = row_count(end)
        if count is not None:
            if count < _SAMPLES_A_COLUMN * problem.dim or is_singular(*moments(end)):
                return ZeroStart()
        elif not isinstance(end, (Gaussian, GaussianMixture)):
            return ZeroStart()
    return GaussianStart()


def known_controls(start: WarmStart | None, problem: BridgeProblem) -> dict[Direction, Control | None]:
    """The known control of either direction; of :func:`usual_start` for ``None``."""
    start = usual_start(problem) if start is None else start
    return start.bridge_controls(problem)


def start_moments(start: Law) -> tuple[Tensor, Tensor]:
    """Mean and covariance in float64, the latter with enough added to be positive definite."""
    known = isinstance(start, (Point, Gaussian, GaussianMixture, Samples, StoredRows))
    law = start if known else Samples(start.sample(_START_ROWS, generator(0)))
    mean, covariance = (value.double().cpu() for value in moments(law))
    size = 1.0 + float(mean.square().max()) + float(covariance.diagonal().max())
    return mean, covariance + _JITTER * size * torch.eye(start.dim, dtype=torch.float64)
