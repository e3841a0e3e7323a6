"""The bridge between Gaussian ends, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, NonFiniteError, UnsupportedError, shown
from sbridge.exact.gaussian import GaussianCoupling
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples, StoredRows, moments
from sbridge.laws.moments import is_singular, sample_moments
from sbridge.laws.scaling import NoScaling, ScalingRecipe
from sbridge.linear import LinearMap
from sbridge.measures import PathMeasure
from sbridge.problems import BridgeProblem, not_plain, unknown_transition
from sbridge.processes import Direction
from sbridge.processes.base import affine
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, State


@register
@dataclass(frozen=True, eq=False)
class GaussianControl:
    """``u(t, x) = G(t) x + h(t)``: the control of a :class:`~sbridge.exact.GaussianCoupling` in one direction."""

    coupling: GaussianCoupling
    direction: Direction

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at ``(t, x)``.

        Raises:
            NonFiniteError: where it is too large for the dtype of ``x``.
        """
        gain = self.coupling.forward_gain if self.direction is Direction.FORWARD else self.coupling.backward_gain
        found = affine(*gain(t), x)
        if not bool(found.isfinite().all()):
            when, kind = shown(t), str(x.dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"the control of GaussianBridge is not finite in {kind} at t = {when}: over the horizon the reference "
                "multiplies deviations by more than the largest number. Take a shorter horizon or a smaller rate; "
                "transport() and interpolate() do not use the control."
            )
        return found


@register
@dataclass(frozen=True, eq=False)
class GaussianKernel:
    """``X_T | X_0`` (or ``X_0 | X_T``) of a Gaussian coupling."""

    coupling: GaussianCoupling
    direction: Direction

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end per row."""
        forward = self.direction is Direction.FORWARD
        covariance = self.coupling.end_covariance if forward else self.coupling.start_covariance
        # In float64: in float32 a covariance with two nearly parallel columns has no root.
        root = LinearMap(covariance, dense=True).cholesky().to(x)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        return self.mean(x) + root(noise)

    def mean(self, x: Tensor) -> Tensor:
        """Computes the conditional mean per row."""
        forward = self.direction is Direction.FORWARD
        return (self.coupling.end_given_start(x) if forward else self.coupling.start_given_end(x))[0]


@register
@dataclass(frozen=True)
class GaussianBridge(Solver[State]):
    """Closed form for Gaussian ends under a linear reference (see :class:`~sbridge.exact.GaussianCoupling`).

    Ends given by samples are replaced by Gaussians with the same means and covariances. The solution transports samples
    by the best affine map plus noise. For non-Gaussian data it is a baseline, not their bridge.

    If both ends are whitened by the noise of the reference and have covariances ``A`` (of the transported source) and
    ``B``, the plan sends ``x`` to ``N(S x + k, S)``, where ``S A S + S = B`` (Bunne et al. 2023, arXiv:2202.05722).

    Args:
        grid: time grid on which the solution is simulated.

    Raises:
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
        InvalidInputError: for samples with a singular covariance.
    """

    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(100))

    scaling: ClassVar[ScalingRecipe] = NoScaling()

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference, and ends that are Gaussian or sampled."""
        unknown = not_plain("GaussianBridge", problem) or unknown_transition("GaussianBridge", problem.reference)
        if unknown is not None:
            return unknown
        for law in (problem.source, problem.target):
            if not isinstance(law, (Gaussian, Samples, StoredRows)):
                return (
                    f"GaussianBridge needs Gaussians or samples, got {type(law).__name__}: draw samples from it first."
                )
        return None

    def max_steps(self, problem: BridgeProblem) -> int:
        """No steps."""
        return 0

    def init(self, problem: BridgeProblem, seed: int) -> State:
        """Nothing to prepare."""
        return State(seed)

    def step(self, problem: BridgeProblem, state: State) -> tuple[State, Info]:
        """Never needed."""
        return state, {}

    def finish(self, problem: BridgeProblem, state: State) -> Bridge:
        """The closed form."""
        reference, coupling = problem.linear_reference, moment_matched(problem)
        forward, backward = (
            PathMeasure(
                reference,
                GaussianControl(coupling, direction),
                start,
                direction,
                self.grid,
                end_kernel=GaussianKernel(coupling, direction),
            )
            for direction, start in ((Direction.FORWARD, problem.source), (Direction.BACKWARD, problem.target))
        )
        return Bridge(forward, backward)


def moment_matched(problem: BridgeProblem) -> GaussianCoupling:
    """The bridge between the Gaussians that have the means and covariances of the ends.

    Its path measure is the reference times a function of either end, so pinned paths are those of the reference.

    Raises:
        UnsupportedError: if the reference is not linear, or the moments of an end are not known.
        InvalidInputError: if a covariance is singular.
    """
    source, target = _moments(problem.source, "source"), _moments(problem.target, "target")
    return GaussianCoupling(*source, *target, problem.linear_reference)


def _moments(law: Law, name: str) -> tuple[Tensor, Tensor]:
    if isinstance(law, (Gaussian, GaussianMixture)):
        mean, covariance = moments(law)
        return mean.double(), covariance.double()
    if not isinstance(law, (Samples, StoredRows)):
        raise UnsupportedError(
            f"the mean and covariance of the {name}, a {type(law).__name__}, are not known; draw rows from it first."
        )
    if isinstance(law, StoredRows):
        count = len(law)
        mean, covariance = law.moments[0], law.moments[1] * (count / (count - 1))
    else:
        count = len(law.rows)
        mean, covariance = sample_moments(law.rows, law.weights)
    if is_singular(mean, covariance):
        raise InvalidInputError(
            f"the {count} rows of the {name} span fewer than their {law.dim} dimensions, so they have no "
            "Gaussian density; reduce the dimension (PCA), add rows, or use SinkhornBridge()."
        )
    return mean, covariance
