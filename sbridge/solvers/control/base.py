"""What all control solvers share: network, start, simulation, states."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sbridge.controls import AdditiveMLP, Control, NetworkControl, NetworkRecipe, on_top, seeded_control
from sbridge.errors import ConvergenceWarning, InvalidInputError, NonFiniteError
from sbridge.measures import Estimate, PathMeasure, Paths
from sbridge.objectives.control import control_objective
from sbridge.problems import ControlProblem
from sbridge.problems.costs import Costs
from sbridge.processes import LinearProcess, StepRule, default_rule
from sbridge.random import as_seed, derive, generator as generator_of
from sbridge.simulation import Detached, GradientMethod
from sbridge.solutions import ControlSolution
from sbridge.solvers.base import Method
from sbridge.solvers.control.stability import check_steps
from sbridge.solvers.control.starts import Annealing, WarmStart, ZeroStart
from sbridge.solvers.control.trust_region import warn_if_short
from sbridge.time import TimeGrid
from sbridge.training import Derived, Info, Learner, Optimisation, State, frozen_copy, shared

PATHS_OPTIMISATION = Optimisation(learning_rate=5e-3, batch=128, ema_decay=0.99)
"""For losses on whole paths: an update sees the control at every step of every path, so it may go far."""
_SCALE_PATHS = 256
_JUDGED_PATHS = 256


@dataclass(frozen=True)
class ControlSolver(Method[ControlProblem, "ControlState", ControlSolution]):
    """Base of all control solvers: ``u = warm start + network``, trained on paths that the solver samples.

    Args:
        updates: number of updates.
        network: recipe of the network; zero output at first.
        optimisation: how it is trained.
        grid: time grid of the chain that is controlled.
        rule: how its steps are made; ``None``: exactly for linear processes, by Euler–Maruyama for others.
        start: a known control to begin from.
        annealing: brings the terminal cost in little by little; ``None``: at once.
    """

    updates: int = 1500
    network: NetworkRecipe = field(default_factory=AdditiveMLP)
    optimisation: Optimisation = PATHS_OPTIMISATION
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(100))
    rule: StepRule | None = None
    start: WarmStart = field(default_factory=ZeroStart)
    annealing: Annealing | None = None

    problem_type = ControlProblem

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1:
            raise InvalidInputError(f"updates must be positive, got {self.updates}.")

    def max_steps(self, problem: ControlProblem) -> int:
        """The number of updates."""
        return self.updates

    def init(self, problem: ControlProblem, seed: int) -> ControlState:
        """A network whose output is zero on top of the warm start."""
        check_steps(problem, self.grid, self.step_rule(problem))
        base = self.start.control(problem, self.grid, self.step_rule(problem))
        state = self.begun(problem, seed, base, generator_of(derive(seed, "training")))
        scales = self.scales(problem, state)
        sizes = scales["output"], derive(seed, "weights"), scales["input"]
        network = seeded_control(self.network, problem.dim, problem.process.horizon, *sizes)
        module = self.module(network.to(problem.probe), scales)
        state.learner = Learner(module, self.optimisation, self.updates)
        return state

    def begun(
        self, problem: ControlProblem, seed: int, base: Control | None, generator: torch.Generator
    ) -> ControlState:
        """The state before its network is made."""
        return ControlState(seed, base, generator)

    def step(self, problem: ControlProblem, state: ControlState) -> tuple[ControlState, Info]:
        """One update."""
        costs = problem.costs
        if self.annealing is not None:
            costs = self.annealing.costs(costs, state.step / self.updates)
        loss, info = self.loss(problem, costs, state)
        info = {"loss": state.learner.update(loss), **info}
        state.step += 1
        return state, info

    def finish(self, problem: ControlProblem, state: ControlState) -> ControlSolution:
        """The averaged network on top of the warm start; a copy, so that the state can be trained on."""
        control = state.on_top(frozen_copy(state.network(averaged=True)))
        warn_if_short(self, getattr(self, "trust_region", None), state.memory, state.step)
        self.warn_if_worse_than_nothing(problem, control, derive(state.seed, "judge"))
        return ControlSolution(problem, self.measure(problem, control))

    @abstractmethod
    def loss(self, problem: ControlProblem, costs: Costs, state: ControlState) -> tuple[Tensor, Info]:
        """The loss of one update, and numbers to report."""

    def scales(self, problem: ControlProblem, state: ControlState) -> dict[str, float]:
        """Numbers fixed before the first update: the sizes that states and controls are expected to have.

        ``input`` is the root mean square of states on paths of the control that learning starts from. ``output`` is the
        size of a control whose energy ``½ T dim |u_i|²`` equals the standard deviation of the costs of these paths.
        """
        paths, alive = self.sample(problem, state, state.base, _SCALE_PATHS)
        size = float(paths.x.double().square().mean().sqrt())
        if not math.isfinite(size):
            raise NonFiniteError(
                "paths of the control that learning starts from are NaN or infinite: take more steps, "
                "grid=TimeGrid.uniform(steps), or another start."
            )
        spread = float(control_objective(paths, problem.costs, alive).std())
        volume = problem.process.horizon * problem.dim
        return {"input": size, "output": math.sqrt(2.0 * spread / volume) if spread > 0 else volume**-0.5}

    def module(self, network: NetworkControl, scales: dict[str, float]) -> nn.Module:
        """What is trained: the network itself unless a loss has parameters of its own."""
        return network

    def warn_if_worse_than_nothing(self, problem: ControlProblem, control: Control, seed: int) -> None:
        """ConvergenceWarning if ``control`` has an objective above that of no control, by 1 % and four standard errors.

        Both are estimated on a few paths with equal starts and noise. Nothing is said where paths without control end
        in costs that are not finite.
        """
        try:
            found, idle = (self._objectives(problem, one, seed) for one in (control, None))
        except NonFiniteError:
            return
        more = Estimate.of(found - idle)
        if more.value > 4.0 * more.standard_error + 0.01 * float(idle.abs().mean()):
            single = isinstance(problem.process, LinearProcess) and problem.running_cost is None
            other = "ReciprocalAdjointMatching()" if single else "LogVariance(trust_region=TrustRegion())"
            warnings.warn(
                f"{type(self).__name__} did not improve on no control: the objective is {float(found.mean()):.4g}, and "
                f"{float(idle.mean()):.4g} without control (difference {more}). Use {other}, a known control to begin "
                "from (start=), or more updates at a lower learning rate.",
                ConvergenceWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def _objectives(self, problem: ControlProblem, control: Control | None, seed: int) -> Tensor:
        paths = self.measure(problem, control).sample(_JUDGED_PATHS, seed=seed)
        alive = None if problem.stopping is None else problem.stopping.alive(paths, derive(seed, "stopping"))
        return control_objective(paths, problem.costs, alive)

    def step_rule(self, problem: ControlProblem) -> StepRule:
        """``rule``, or the process's default."""
        return self.rule or default_rule(problem.process)

    def measure(self, problem: ControlProblem, control: Control | None) -> PathMeasure:
        """The controlled chain."""
        return PathMeasure(problem.process, control, problem.start, grid=self.grid, rule=self.step_rule(problem))

    def sample(
        self,
        problem: ControlProblem,
        state: ControlState,
        control: Control | None,
        n: int,
        gradient: GradientMethod = Detached(),
    ) -> tuple[Paths, Tensor | None]:
        """``n`` fresh paths of ``control``, and the mask of steps before their stopping time, if there is one."""
        measure, seed = self.measure(problem, control), as_seed(state.generator)
        paths = measure.simulate(measure.starts(n, seed=seed), seed=seed, gradient=gradient)
        if problem.stopping is None:
            return paths, None
        return paths, problem.stopping.alive(paths, derive(seed, "stopping"))


@dataclass(eq=False)
class ControlState(State):
    """The network under training, the generator, and what a solver keeps between updates.

    Attributes:
        base: the warm start, or ``None``.
        generator: of paths and batches.
        memory: tensors that a loss keeps between updates.
        learner: the network, its average and its optimiser.
    """

    base: Derived[Control | None]
    generator: torch.Generator
    memory: dict[str, Tensor] = field(default_factory=dict)
    learner: Learner = field(init=False)

    def network(self, *, averaged: bool) -> nn.Module:
        """The network alone, under training or with averaged weights."""
        module = self.learner.averaged if averaged else self.learner.module
        inner = getattr(module, "control", module)
        return inner if isinstance(inner, nn.Module) else module

    def on_top(self, network: nn.Module) -> Control:
        """Warm start plus ``network``."""
        return on_top(self.base, network)

    @property
    def control(self) -> Control:
        """The control under training."""
        return shared(self.on_top(self.network(averaged=False)))
