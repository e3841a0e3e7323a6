"""Weighted draws of an unnormalised density, from a sampler that is learned for it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sbridge.errors import ConvergenceWarning, InvalidInputError
from sbridge.laws import Density, Gaussian, Point, Samples
from sbridge.laws.moments import sample_moments
from sbridge.linear import LinearMap
from sbridge.measures import importance_weights
from sbridge.objectives.control import weighted_ends
from sbridge.problems.sampling import sampling_problem
from sbridge.processes import BrownianMotion
from sbridge.random import derive
from sbridge.solvers.control import ControlSolver, GaussianStart, ReciprocalAdjointMatching, ZeroStart
from sbridge.solvers.control.tempering import covering, tempered
from sbridge.storage.registry import check_kinds, register
from sbridge.time import TimeGrid
from sbridge.training import run_loop

_PILOTS, _PILOTS_A_COLUMN = 2048, 20
_WIDER = 1.2  # how much wider the end of the uncontrolled process is than the density
_LEAST_SHARE = 0.1


@register
@dataclass(frozen=True)
class DensitySampler:
    """Learns a sampler of ``e^{−E}/Z`` and draws weighted samples of it.

    1. A few thousand rough draws by tempering from a wide Gaussian, ``cover``, give mean ``m`` and covariance ``C``.
    2. Brownian motion from the point ``m``, which would end in ``N(m, 1.44 C)``, is controlled so that it ends in the
       density: :func:`sbridge.sampling_problem`, solved by ``solver`` from the control towards ``N(m, C)``.
    3. Ends of the controlled paths get the weights of their paths, so that they are draws of the density whatever the
       control is. Their effective sample size measures the sampler.

    Args:
        solver: learns the control. A start of its own is used if it is a control that is known: neither
            :class:`~sbridge.solvers.ZeroStart` nor a :class:`~sbridge.solvers.GaussianStart` without an end.
        draws: number of weighted samples.
        cover: a Gaussian that is wider than the density; its dtype and device are those of the samples. ``None``:
            found from the gradient of the log density, in float32 on the CPU.

    Raises:
        InvalidInputError: for fewer than two draws.
    """

    solver: ControlSolver = field(
        default_factory=lambda: ReciprocalAdjointMatching(grid=TimeGrid.refined(50), start=ZeroStart())
    )
    draws: int = 16_384
    cover: Gaussian | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.draws < 2:
            raise InvalidInputError(f"draws must be at least 2, got {self.draws}.")

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and on the device of the samples."""
        return torch.zeros((), dtype=torch.float32) if self.cover is None else self.cover.mean

    def sample(self, density: Density, width: float, seed: int) -> Samples:
        """Learns the sampler and returns ``draws`` weighted samples.

        Args:
            density: with a gradient.
            width: about its size, within a factor of ``10⁵``; not used if there is a ``cover``.
            seed: of everything random.

        Warns:
            ConvergenceWarning: if the effective sample size is below a tenth of the draws.

        Raises:
            InvalidInputError: if ``cover`` has another dimension, or the log density another shape.
            NonFiniteError: if the log density or its gradient is NaN or infinite.
            NotConvergedError: if tempering does not find where the density lies.
        """
        if self.cover is not None and self.cover.dim != density.dim:
            raise InvalidInputError(f"cover has dimension {self.cover.dim}, the density has {density.dim}.")
        cover = covering(density, width, self.like) if self.cover is None else self.cover
        pilots = tempered(density, cover, max(_PILOTS, _PILOTS_A_COLUMN * density.dim), derive(seed, "pilots"))
        mean, covariance = sample_moments(pilots.double())
        root = LinearMap(covariance.cpu(), dense=True).cholesky()
        process = BrownianMotion(_WIDER * root.values)
        problem = sampling_problem(density, process, Point(mean.to(pilots)))
        solver, known = self.solver, self.solver.start
        if isinstance(known, ZeroStart) or (isinstance(known, GaussianStart) and known.end is None):
            solver = replace(solver, start=GaussianStart(end=Gaussian(mean, covariance)))
        state = solver.init(problem, derive(seed, "sampler"))
        state = run_loop(lambda s: solver.step(problem, s), state, lambda s: solver.finished(problem, s))
        ends, logs = weighted_ends(
            solver.finish(problem, state).measure, problem.costs, self.draws, seed=derive(seed, "draws")
        )
        weights = importance_weights(logs)
        share = weights.effective_sample_size / self.draws
        if share < _LEAST_SHARE:
            warnings.warn(
                f"the sampler of the source reaches an effective sample size of {share:.1%} of its {self.draws} draws, "
                "so few of them stand for the source: parts of it may be missing. Give a Gaussian that is wider than "
                "the density, AdjointBridge(sampler=DensitySampler(cover=Gaussian(mean, covariance))), or a solver "
                "with more updates and a finer grid; or pass samples of the source.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return Samples.sharing(ends, weights.values)
