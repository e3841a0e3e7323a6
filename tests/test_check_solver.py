"""The conformance check of solvers: it passes what keeps the laws and names the law that is broken."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.laws import Density, Gaussian, Samples
from sbridge.measures import Direction, PathMeasure
from sbridge.problems import BridgeProblem
from sbridge.processes import BrownianMotion, DriftProcess, LinearProcess, OrnsteinUhlenbeck, VariancePreserving
from sbridge.solutions import Bridge
from sbridge.solvers import GaussianBridge, SinkhornBridge, Solver, check_solver
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, State, StateDict
from sbridge.transport import Sinkhorn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


PROBLEM = BridgeProblem(
    Gaussian(tensor([0.0, 1.0]), torch.eye(2, dtype=torch.float64)),
    Gaussian(tensor([2.0, 0.0]), tensor([[2.0, 0.3], [0.3, 0.5]])),
    BrownianMotion(1.0, 2.0),
)


# --- a solver from outside the package: it learns the mean control by stochastic gradient descent


@register
@dataclass(frozen=True, eq=False)
class Drag:
    """``u(t, x) = value + slope · t``."""

    value: Tensor
    slope: float = 0.0

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return (self.value.to(x) + self.slope * times).expand(x.shape)


@dataclass(eq=False)
class DragState(State):
    value: Tensor
    generator: torch.Generator


@register
@dataclass(frozen=True)
class Shift(Solver[DragState]):
    """Moves the mean of the source to that of the target: a plain solver that keeps every law."""

    steps: int = 7

    def refusal(self, problem: BridgeProblem) -> str | None:
        if not isinstance(problem.reference, BrownianMotion) or isinstance(problem.target, Density):
            return "Shift needs a Brownian reference and a target with samples."
        return None

    def max_steps(self, problem: BridgeProblem) -> int:
        return self.steps

    def init(self, problem: BridgeProblem, seed: int) -> DragState:
        return DragState(seed, torch.zeros(problem.dim, dtype=torch.float64), seeded(seed))

    def step(self, problem: BridgeProblem, state: DragState) -> tuple[DragState, Info]:
        x0, x1 = (end.sample(16, state.generator).double() for end in (problem.source, problem.target))
        gap = (x1 - x0).mean(0) / problem.reference.horizon - state.value
        state.value = state.value + 0.5 * gap
        state.step += 1
        return state, {"gap": float(gap.norm())}

    def finish(self, problem: BridgeProblem, state: DragState) -> Bridge:
        return Bridge(
            PathMeasure(problem.reference, Drag(state.value), problem.source),
            PathMeasure(problem.reference, Drag(-state.value), problem.target, Direction.BACKWARD),
        )


def test_a_solver_that_keeps_the_laws_passes():
    check_solver(Shift(), PROBLEM, seed=0)
    check_solver(Shift(1), PROBLEM, seed=0)
    check_solver(Shift(0), PROBLEM, seed=0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "reference",
    [
        BrownianMotion(0.8, 1.5),
        OrnsteinUhlenbeck(tensor([[1.0, 0.6], [-0.8, 0.4]]), tensor([[0.8, 0.3], [0.1, 1.0]]), 0.5),
        VariancePreserving(mean=[0.5, 0.0]),
    ],
    ids=["Brownian", "OU", "VP"],
)
def test_the_package_s_own_solvers_pass(reference: LinearProcess, seed, dtype):
    rows = torch.randn(40, 2, generator=seeded(1), dtype=dtype)
    sampled = BridgeProblem(Samples(rows, torch.full((40,), 1 / 40)), Samples(rows[:30] + 1), reference)
    normal = BridgeProblem(Gaussian(rows.mean(0), rows.mT.cov()), Samples(rows + 1), reference)
    grid = TimeGrid.uniform(10)
    check_solver(GaussianBridge(grid), sampled, seed=seed)
    check_solver(GaussianBridge(grid), normal, seed=seed)
    quick = Sinkhorn(batch=2, warm_batch=2)
    check_solver(SinkhornBridge(20, sinkhorn=quick, grid=grid), sampled, seed=seed)


# --- one law broken at a time


@dataclass(frozen=True)
class Broken(Shift):
    fault: str = ""

    def refusal(self, problem: BridgeProblem) -> Any:
        if self.fault == "always refuses":
            return "Broken takes no problem."
        if self.fault == "refusal fails" and isinstance(problem.reference, DriftProcess):
            raise KeyError("reference")
        answer = super().refusal(problem)
        return {"flag": False, "mumble": "no"}.get(self.fault, answer) if answer else None

    def max_steps(self, problem: BridgeProblem) -> Any:
        return {"endless": 5, "half": 7.5, "negative": -1}.get(self.fault, self.steps)

    def finished(self, problem: BridgeProblem, state: DragState) -> bool:
        return state.step >= self.steps

    def init(self, problem: BridgeProblem, seed: int) -> Any:
        if self.fault == "init fails":
            raise RuntimeError("no memory")
        if self.fault == "no state":
            return {"step": 0}
        state = super().init(problem, seed)
        if self.fault == "global noise":
            state.value = torch.rand(2, dtype=torch.float64)
        if self.fault == "first step":
            state.step = 1
        if self.fault == "another seed":
            state.seed = 5
        if self.fault in BROKEN_STATES:
            return BROKEN_STATES[self.fault](seed, state.value, state.generator)
        return state

    def step(self, problem: BridgeProblem, state: DragState) -> Any:
        if self.fault == "step fails" and state.step == 3:
            raise ZeroDivisionError("division by zero")
        after, info = super().step(problem, state)
        if self.fault == "leap":
            after.step += 1
        if self.fault == "touches the global state":
            torch.rand(1)
        info = {"nan": {"gap": float("nan")}, "tensor": {"gap": torch.ones(1)}}.get(self.fault, info)
        return after, info

    def finish(self, problem: BridgeProblem, state: DragState) -> Any:
        bridge = super().finish(problem, state)
        if self.fault == "finish draws":
            state.value = state.value + 1e-9
        if self.fault == "a measure":
            return bridge.forward
        forward, backward = bridge.forward, bridge.backward
        changed = {
            "two forwards": Bridge(forward, forward),
            "swapped": bridge.reversed(),
            "start": Bridge(dataclasses.replace(forward, start=problem.target), backward),
            "reference": Bridge(dataclasses.replace(forward, process=BrownianMotion(1.0, 2.0)), backward),
            "function": Bridge(forward, dataclasses.replace(backward, control=lambda t, x: -x)),
            "shape": Bridge(forward, dataclasses.replace(backward, control=lambda t, x: -x[:, :1])),
            "infinite": Bridge(dataclasses.replace(forward, control=Drag(state.value / 0.0)), backward),
            "batch of times": Bridge(dataclasses.replace(forward, control=OneTime(state.value)), backward),
        }
        return changed.get(self.fault, bridge)


@register
@dataclass(frozen=True, eq=False)
class OneTime(Drag):
    """Understands one time only: of a batch it uses the first."""

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        first = t.flatten()[0] if isinstance(t, Tensor) else t
        return super().__call__(first, x) * (2.0 if isinstance(t, Tensor) else 1.0)


@dataclass(eq=False)
class ListState(DragState):
    history: list[int] = field(default_factory=list)


@dataclass(eq=False)
class InfiniteState(DragState):
    best: float = float("inf")


@dataclass(eq=False)
class ForgetfulState(DragState):
    def load_state_dict(self, saved: StateDict) -> None:
        super().load_state_dict(saved)
        self.value = torch.zeros(2, dtype=torch.float64)


BROKEN_STATES = {"list": ListState, "infinite number": InfiniteState, "forgets the value": ForgetfulState}

FAULTS = {
    "always refuses": "the problem of a trial is one that the solver can treat",
    "refusal fails": "refusal answers”: it raised KeyError",
    "flag": "refusal answers with None or with a sentence”: it said False",
    "mumble": "refusal answers with None or with a sentence”: it said 'no'",
    "endless": r"a run ends within max_steps = 5 steps”: it is not finished at step 5",
    "half": r"max_steps is a number of steps”: 7\.5",
    "negative": "max_steps is a number of steps”: -1",
    "init fails": "init returns”: it raised RuntimeError: no memory",
    "no state": "init returns a State”: it returned a dict",
    "another seed": "the state keeps the seed”: 5 for",
    "first step": "init returns a state at step 0”: it is at 1",
    "step fails": "step returns”: it raised ZeroDivisionError",
    "leap": "a step counts one”: it went from 0 to 2",
    "nan": "a step reports finite numbers by name.*”: 'gap' is nan",
    "tensor": "a step reports finite numbers by name.*",
    "list": "the state can be saved”: it raised UnsupportedError: the field 'history'",
    "infinite number": "numbers of the state are finite”: 'best' is inf",
    "global noise": "equal seeds give equal bits”: .*'value' differ",
    "touches the global state": "the global random state.*stay as they were”: the random state changed",
    "forgets the value": r"a resumed state is the state that was saved .*'value' differ",
    "finish draws": "finish leaves the state alone”: 'value' differ",
    "a measure": "finish returns a Bridge”: it returned a PathMeasure",
    "two forwards": "the bridge's backward measure runs backward.*it runs forward",
    "swapped": "the bridge's forward measure runs forward",
    "start": "the bridge's forward measure runs forward from the problem's own end under its reference",
    "reference": "the bridge's forward measure runs forward from the problem's own end under its reference",
    "function": "the bridge can be saved”: it raised UnsupportedError.*plain function",
    "shape": "the backward measure draws ends”: it raised InvalidInputError: a control maps",
    "infinite": "the forward measure draws ends”: it raised NonFiniteError",
    "batch of times": r"the forward control at times \(batch,\) is the control time by time",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_names_the_broken_law(fault):
    said = f"Broken violates the rule “.*{FAULTS[fault]}" if "”" not in FAULTS[fault] else FAULTS[fault]
    with pytest.raises(InvalidInputError, match=said):
        check_solver(Broken(fault=fault), PROBLEM, seed=0)


class Plain(Solver[DragState]):
    """No dataclass at all."""

    max_steps, init, step, finish = Shift.max_steps, Shift.init, Shift.step, Shift.finish


def test_a_solver_must_be_frozen():
    with pytest.raises(InvalidInputError, match="Plain violates the rule “a solver is a frozen dataclass”"):
        check_solver(Plain(), PROBLEM, seed=0)


def test_a_resumed_run_that_drifts_apart_is_found():
    """A state that hides something: here the number of draws so far, which is no field."""

    @dataclass(frozen=True)
    class Secretive(Shift):
        def step(self, problem: BridgeProblem, state: Any) -> Any:
            after, info = super().step(problem, state)
            after.drawn = getattr(state, "drawn", 0) + 1
            after.value = after.value + 1e-6 * after.drawn
            return after, info

    with pytest.raises(InvalidInputError, match=r"a resumed run goes on bit for bit \(here after \d of 7 steps\)"):
        check_solver(Secretive(), PROBLEM, seed=0)


def test_a_bridge_that_shares_what_training_changes_is_found():
    @dataclass(frozen=True)
    class Sharing(Shift):
        def step(self, problem: BridgeProblem, state: Any) -> Any:
            shared = state.value
            after, info = super().step(problem, state)
            after.value = shared.copy_(after.value)
            return after, info

    with pytest.raises(InvalidInputError, match="later steps leave a finished bridge alone”: its draws changed"):
        check_solver(Sharing(), PROBLEM, seed=0)
