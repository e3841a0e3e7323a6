"""Learning a score."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch

from sbridge.controls import MLP, NetworkRecipe
from sbridge.diffusion.networks import NetworkScore
from sbridge.diffusion.objectives import Denoising, ScoreObjective
from sbridge.diffusion.reverse import REVERSE_GRID, START_TIME, reverse_diffusion
from sbridge.errors import InvalidInputError, check_at_least
from sbridge.laws import Density
from sbridge.laws.scaling import NoScaling, ScalingRecipe
from sbridge.problems import BridgeProblem, not_plain
from sbridge.processes import LinearProcess
from sbridge.random import derive, generator as generator_of, seeded
from sbridge.solutions import Bridge
from sbridge.solvers.base import Solver
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, Learner, Optimisation, State

_PROBE_ROWS = 4096


@register
@dataclass(frozen=True)
class ScoreMatching(Solver["ScoreMatchingState"]):
    """Reverse diffusion: a network learns the score of the noised source, the backward control is ``û = σᵀ s_θ``.

    The forward control is zero, so the reference alone determines the end distribution. The target of the problem is
    the *prior*, from which the backward process starts. Choose a reference that forgets its start, and its end
    distribution as prior (:func:`~sbridge.diffusion.end_distribution`). The bound on the generated distribution is
    ``KL(source ‖ generated) ≤ ½∫ E|σᵀ(s_θ − ∇log ρ_s)|² ds + KL(ρ_T ‖ prior)`` (Song et al. 2021, arXiv:2101.09258,
    theorem 1).

    Args:
        objective: the loss; all have the same minimiser.
        updates: number of updates.
        network: recipe of the network inside :class:`~sbridge.diffusion.NetworkScore`.
        optimisation: how it is trained.
        start_time: ``s_min`` as a fraction of the horizon: scores are learned from there on.
        grid: time grid on which the solution is simulated; its first knot should not lie before ``start_time``.
    """

    objective: ScoreObjective = field(default_factory=Denoising)
    updates: int = 5000
    network: NetworkRecipe = field(default_factory=MLP)
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(learning_rate=2e-3, batch=512))
    start_time: float = START_TIME
    grid: TimeGrid = REVERSE_GRID

    scaling: ClassVar[ScalingRecipe] = NoScaling()

    def __post_init__(self) -> None:
        check_at_least(self, 1, "updates")
        if not 0.0 < self.start_time < 1.0:
            raise InvalidInputError(
                f"start_time is a fraction of the horizon strictly between 0 and 1, got {self.start_time:g}."
            )

    def refusal(self, problem: BridgeProblem) -> str | None:
        """Needs a linear reference and ends that can be sampled."""
        cost = not_plain("ScoreMatching", problem)
        if cost is not None:
            return cost
        if not isinstance(problem.reference, LinearProcess):
            return (
                f"ScoreMatching needs transitions in closed form, which {type(problem.reference).__name__} does not "
                "have: take a LinearProcess such as VariancePreserving as reference."
            )
        if isinstance(problem.source, Density) or isinstance(problem.target, Density):
            return (
                "ScoreMatching learns from samples, and one end is an unnormalised density: draw samples from it first."
            )
        return None

    def max_steps(self, problem: BridgeProblem) -> int:
        """The number of updates."""
        return self.updates

    def init(self, problem: BridgeProblem, seed: int) -> ScoreMatchingState:
        """A network whose output is zero: the score of an isotropic Gaussian with the moments of the data."""
        rows = problem.source.sample(_PROBE_ROWS, generator_of(derive(seed, "probe"))).double()
        mean, scale = rows.mean(0), float(rows.var(0).mean().sqrt())
        if not scale > 0:
            raise InvalidInputError("all samples of the data are equal, so there is no score to learn.")
        make = partial(NetworkScore, self.network, problem.linear_reference, len(mean), mean, scale)
        module = seeded(make, derive(seed, "weights"))
        like = problem.source.sample(1, generator_of(0))
        learner = Learner(module.to(like), self.optimisation, self.updates)
        return ScoreMatchingState(seed, learner, generator_of(derive(seed, "training")))

    def step(self, problem: BridgeProblem, state: ScoreMatchingState) -> tuple[ScoreMatchingState, Info]:
        """One update on fresh noise."""
        process, batch = problem.linear_reference, self.optimisation.batch
        start = problem.source.sample(batch, state.generator)
        loss = self.objective(process, state.score, start, self.start_time * process.horizon, state.generator)
        state.step += 1
        return state, {"loss": state.learner.update(loss)}

    def finish(self, problem: BridgeProblem, state: ScoreMatchingState) -> Bridge:
        """The noising process and its reversal by the averaged network."""
        score = state.learner.solution()
        return reverse_diffusion(problem.reference, problem.source, score, prior=problem.target, grid=self.grid)


@dataclass(eq=False)
class ScoreMatchingState(State):
    """The network under training, and the generator of times and noise."""

    learner: Learner
    generator: torch.Generator

    @property
    def score(self) -> NetworkScore:
        """The network under training."""
        module = self.learner.module
        if not isinstance(module, NetworkScore):
            raise InvalidInputError(f"a NetworkScore is trained here, found {type(module).__name__}.")
        return module
