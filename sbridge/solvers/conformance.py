"""Checks that a solver of your own follows the rules that everything else relies on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from sbridge.controls import Control
from sbridge.errors import InvalidInputError
from sbridge.laws import Density, Gaussian, Law, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.modes import standard_modes
from sbridge.problems import BridgeProblem, ControlProblem, StoppingSet
from sbridge.processes import BrownianMotion, DriftProcess
from sbridge.random import Seed, as_seed, derive, generator as generator_of
from sbridge.solutions import Bridge, ControlSolution
from sbridge.solvers.base import Method
from sbridge.storage.registry import decode, encode
from sbridge.training import State, StateDict

_ROWS = 5
_P = ParamSpec("_P")
_R = TypeVar("_R")


@standard_modes(gradients=True)
def check_solver(solver: Method[Any, Any, Any], problem: BridgeProblem | ControlProblem, *, seed: Seed = 0) -> None:
    """Checks that ``solver`` follows the rules of :class:`~sbridge.solvers.base.Method` on ``problem``.

    A solver is a frozen dataclass. ``refusal`` answers any problem with ``None`` or a sentence. The run ends within
    ``max_steps`` steps, each of which counts one and reports finite numbers. The state is a
    :class:`~sbridge.training.State` whose fields can be saved. Equal seeds give equal bits, and a resumed run goes on
    bit for bit. The bridge runs between the problem's ends in both directions, keeps dtype, can be saved, and does not
    change when its state is trained further. The same holds for the controlled process that solves a control problem.
    The global random state, dtype and number of threads do not change.

    The solver runs to the end three times, so give it few steps.

    Args:
        solver: with hyperparameters that make it quick.
        problem: a problem that it can solve.
        seed: of the runs, and of the step at which one is interrupted.

    Raises:
        InvalidInputError: with the rule and the violation.
    """
    trial = _Trial(solver, problem, as_seed(seed))
    _check_kind(trial)
    _check_refusals(trial)
    before = _surroundings()
    last = _run(trial, trial.begin(), checked=_check_step)
    _check_repeats(trial, last)
    _check_solution(trial, trial.finish(last))
    rule = "the global random state, default dtype and number of threads stay as they were"
    after = _surroundings()
    touched = [name for name, value in before.items() if after[name] != value]
    trial.require(rule=rule, holds=not touched, found=f"{', '.join(touched)} changed")


@dataclass(frozen=True)
class _Trial:
    solver: Method[Any, Any, Any]
    problem: BridgeProblem | ControlProblem
    seed: int

    def begin(self) -> State:
        seed = derive(self.seed, "run")
        state = self.call("init returns", self.solver.init, self.problem, seed)
        found = f"it returned a {type(state).__name__}"
        self.require(rule="init returns a State", holds=isinstance(state, State), found=found)
        self.require(rule="the state keeps the seed", holds=state.seed == seed, found=f"{state.seed} for {seed}")
        self.require(rule="init returns a state at step 0", holds=state.step == 0, found=f"it is at {state.step}")
        return state

    def require(self, *, rule: str, holds: bool, found: str) -> None:
        if not holds:
            raise InvalidInputError(f"{type(self.solver).__name__} violates the rule “{rule}”: {found}.")

    def equal(self, rule: str, left: StateDict, right: StateDict) -> None:
        """The same keys and the same bits."""
        keys = sorted({*left, *right})
        wrong = [key for key in keys if key not in left or key not in right or not _equal(left[key], right[key])]
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        self.require(rule=rule, holds=not wrong, found=f"{', '.join(map(repr, wrong[:5]))}{more} differ")

    def call(self, rule: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """``function(*args)``, any error of which violates the rule."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            name, said = type(error).__name__, str(error).rstrip(".")
            raise InvalidInputError(
                f"{type(self.solver).__name__} violates the rule “{rule}”: it raised {name}: {said}."
            ) from error

    def finish(self, state: State) -> Bridge | ControlSolution:
        solution = self.call("finish returns", self.solver.finish, self.problem, state)
        kind = Bridge if isinstance(self.problem, BridgeProblem) else ControlSolution
        found = f"it returned a {type(solution).__name__}"
        self.require(rule=f"finish returns a {kind.__name__}", holds=isinstance(solution, kind), found=found)
        return solution

    def saved(self, state: State) -> StateDict:
        """The state as data, which JSON can hold."""
        saved = self.call("the state can be saved", state.state_dict)
        for key, value in saved.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            self.require(rule="numbers of the state are finite", holds=finite, found=f"{key!r} is {value!r}")
        return saved


def _check_kind(trial: _Trial) -> None:
    parameters = getattr(trial.solver, "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    trial.require(rule="a solver is a frozen dataclass", holds=frozen, found="it is not")
    steps = trial.call("max_steps returns", trial.solver.max_steps, trial.problem)
    trial.require(
        rule="max_steps is a number of steps", holds=isinstance(steps, int) and steps >= 0, found=f"{steps!r}"
    )


def _check_refusals(trial: _Trial) -> None:
    own = trial.problem
    others = _other_bridges(own) if isinstance(own, BridgeProblem) else _other_controls(own)
    for problem in (own, *others):
        answer = trial.call("refusal answers", trial.solver.refusal, problem)
        sentence = isinstance(answer, str) and answer[:1].isupper() and answer.endswith(".") and " " in answer
        rule = "refusal answers with None or with a sentence"
        trial.require(rule=rule, holds=answer is None or sentence, found=f"it said {answer!r}")
        if problem is own:
            rule = "the problem of a trial is one that the solver can treat"
            trial.require(rule=rule, holds=answer is None, found=f"it said {answer!r}")


def _other_bridges(own: BridgeProblem) -> list[BridgeProblem]:
    dim = own.dim
    laws: list[Law] = [
        Samples(torch.eye(dim + 1)[:, :dim]),
        Gaussian(torch.zeros(dim), torch.eye(dim)),
        Density(lambda x: -x.square().sum(1), dim),
    ]
    curved = DriftProcess(lambda t, x: -x.sin(), 1.0, own.reference.horizon)
    ends = [(own.source, own.target), *((law, law) for law in laws)]
    pairs = [(reference, source, target) for reference in (own.reference, curved) for source, target in ends]
    return [BridgeProblem(source, target, reference) for reference, source, target in pairs[1:]]


def _other_controls(own: ControlProblem) -> list[ControlProblem]:
    dim, horizon = own.dim, own.process.horizon
    curved = DriftProcess(lambda t, x: -x.sin(), 1.0, horizon)
    gaussian = Gaussian(torch.zeros(dim), torch.eye(dim))
    far = StoppingSet(lambda x: x[:, 0] - 10.0)
    return [
        ControlProblem(curved, own.start, None, lambda x: x.square().sum(1)),
        ControlProblem(BrownianMotion(1.0, horizon), gaussian, lambda t, x: x.square().sum(1)),
        ControlProblem(own.process, own.start, own.running_cost, lambda x: (x > 0).any(1).to(x.dtype)),
        ControlProblem(own.process, own.start, own.running_cost, own.terminal_cost, far),
    ]


def _run(
    trial: _Trial,
    state: State,
    checked: Callable[[_Trial, int, State, Mapping[Any, Any]], None] | None = None,
    until: int | None = None,
) -> State:
    """Steps until it is finished, or has done ``until`` steps."""
    solver, problem = trial.solver, trial.problem
    longest = solver.max_steps(problem)
    while state.step != until and not trial.call("finished answers", solver.finished, problem, state):
        found = f"it is not finished at step {state.step}"
        trial.require(rule=f"a run ends within max_steps = {longest} steps", holds=state.step < longest, found=found)
        before = state.step
        state, info = trial.call("step returns", solver.step, problem, state)
        if checked is not None:
            checked(trial, before, state, info)
    return state


def _check_step(trial: _Trial, before: int, state: State, info: Mapping[Any, Any]) -> None:
    found = f"it went from {before} to {state.step}"
    trial.require(rule="a step counts one", holds=state.step == before + 1, found=found)
    for name, value in info.items():
        number = isinstance(value, float) or (isinstance(value, Tensor) and value.ndim == 0)
        holds = isinstance(name, str) and number and math.isfinite(value)
        trial.require(
            rule="a step reports finite numbers by name, floats or tensors without dimensions",
            holds=holds,
            found=f"{name!r} is {value!r}",
        )


def _check_repeats(trial: _Trial, last: State) -> None:
    """The same run again, interrupted once: repeated, resumed and finished in between."""
    solver, problem, steps = trial.solver, trial.problem, last.step
    stop = int(torch.randint(1, max(steps, 2), (1,), generator=generator_of(derive(trial.seed, "stop"))))
    state = _run(trial, trial.begin(), until=min(stop, steps))
    kept, end = _stored(trial.saved(state)), _stored(trial.saved(last))
    early = trial.finish(state)
    drawn = _draws(trial, early)
    trial.equal("finish leaves the state alone", trial.saved(state), kept)
    state = _run(trial, state)
    trial.equal("equal seeds give equal bits", trial.saved(state), end)
    same = all(torch.equal(a, b) for a, b in zip(drawn, _draws(trial, early), strict=True))
    rule = "later steps leave a finished bridge alone"
    trial.require(rule=rule, holds=same, found="its draws changed; finish must copy what training changes")
    other = trial.call("a state can be resumed", solver.resume, problem, _stored(kept))
    when = f"(here after {kept['step']} of {steps} steps)"
    trial.equal(f"a resumed state is the state that was saved {when}", trial.saved(other), kept)
    other = _run(trial, other)
    trial.equal(f"a resumed run goes on bit for bit {when}", trial.saved(other), end)


def _check_solution(trial: _Trial, solution: Bridge | ControlSolution) -> None:
    problem = trial.problem
    process = problem.reference if isinstance(problem, BridgeProblem) else problem.process
    kind = "bridge" if isinstance(solution, Bridge) else "solution"
    for name, (measure, direction, start) in _measures(trial, solution).items():
        rule = f"the {kind}'s {name} measure runs {name} from the problem's own end under its reference"
        drawn = isinstance(start, Density) and isinstance(measure.start, Samples)
        holds = measure.direction is direction and (measure.start is start or drawn) and measure.process is process
        found = f"it runs {measure.direction.name.lower()} from {type(measure.start).__name__}"
        trial.require(rule=rule, holds=holds, found=found)
        _check_measure(trial, name, measure)
    if isinstance(solution, Bridge):
        again = trial.call("the bridge can be saved", lambda: decode(*encode(solution)))
    else:
        again = replace(solution, measure=replace(solution.measure, control=_saved(trial, solution.control)))
    same = all(torch.equal(a, b) for a, b in zip(_draws(trial, solution), _draws(trial, again), strict=True))
    trial.require(rule=f"a saved {kind} draws the same", holds=same, found="its draws differ")


def _saved(trial: _Trial, control: Control) -> Control:
    return trial.call("the control can be saved", lambda: decode(*encode(control)))


def _measures(trial: _Trial, solution: Bridge | ControlSolution) -> dict[str, tuple[PathMeasure, Direction, Law]]:
    """The measures of a solution, with the direction and the start that they must have."""
    if isinstance(solution, Bridge) and isinstance(trial.problem, BridgeProblem):
        return {
            "forward": (solution.forward, Direction.FORWARD, trial.problem.source),
            "backward": (solution.backward, Direction.BACKWARD, trial.problem.target),
        }
    measure = solution.forward if isinstance(solution, Bridge) else solution.measure
    start = trial.problem.source if isinstance(trial.problem, BridgeProblem) else trial.problem.start
    return {"forward": (measure, Direction.FORWARD, start)}


def _check_measure(trial: _Trial, name: str, measure: PathMeasure) -> None:
    rows = _rows(trial, measure)
    for dtype in (torch.float32, torch.float64):
        x, middle = rows.to(dtype), 0.5 * measure.process.horizon
        ends = trial.call(f"the {name} measure draws ends", measure.transport, x, seed=0)
        found = f"for {dtype} {tuple(x.shape)}: {ends.dtype} {tuple(ends.shape)}"
        holds = ends.shape == x.shape and ends.dtype == dtype and bool(ends.isfinite().all())
        trial.require(rule=f"the {name} measure draws finite ends like its rows", holds=holds, found=found)
        if measure.control is None:
            continue
        batch = torch.full((len(x),), middle, dtype=torch.float64)
        u, together = (trial.call(f"the {name} control answers", measure.control, t, x) for t in (middle, batch))
        found = f"for {dtype} {tuple(x.shape)}: {u.dtype} {tuple(u.shape)}"
        holds = u.shape == x.shape and u.dtype == dtype and bool(u.isfinite().all())
        trial.require(rule=f"the {name} control is finite and like its rows", holds=holds, found=found)
        close = torch.allclose(u, together, rtol=1e-4, atol=1e-4 * float(u.abs().max()))
        rule = f"the {name} control at times (batch,) is the control time by time"
        trial.require(rule=rule, holds=close, found=f"they differ by {float((u - together).abs().max()):.2e}")


def _rows(trial: _Trial, measure: PathMeasure) -> Tensor:
    start = measure.start
    if isinstance(start, Density) and isinstance(trial.problem, BridgeProblem):
        ends = (trial.problem.source, trial.problem.target)
        start = next(
            (end for end in ends if not isinstance(end, Density)),
            Gaussian(torch.zeros(start.dim), torch.eye(start.dim)),
        )
    return start.sample(_ROWS, generator_of(derive(trial.seed, "rows")))


def _draws(trial: _Trial, solution: Bridge | ControlSolution) -> list[Tensor]:
    return [
        trial.call(f"the {name} measure draws ends", measure.transport, _rows(trial, measure), seed=0)
        for name, (measure, _, _) in _measures(trial, solution).items()
    ]


def _stored(saved: StateDict) -> StateDict:
    """What comes back from a file: tensors of its own, and scalars that were JSON."""
    return {
        key: value.clone() if isinstance(value, Tensor) else json.loads(json.dumps(value))
        for key, value in saved.items()
    }


def _equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(_bits(left), _bits(right))
    return type(left) is type(right) and left == right


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _surroundings() -> dict[str, object]:
    return {
        "the random state": torch.get_rng_state().numpy().tobytes(),
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
    }
