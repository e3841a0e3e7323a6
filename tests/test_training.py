"""The training loop, the schedule, averaged weights, and states that are saved and resumed."""

import math
from dataclasses import dataclass, field
from enum import Enum

import pytest
import torch
from torch import Tensor, nn

from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.training import Derived, Info, Learner, Optimisation, State, StateDict, run_loop


def linear(seed: int = 0) -> nn.Linear:
    module = nn.Linear(3, 2, bias=False).double()
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    module.load_state_dict({"weight": weights})
    return module


def learner(seed: int = 0, length: int = 50, **options: float) -> Learner:
    return Learner(linear(seed), Optimisation(**options), length)


def loss_of(one: Learner, step: int) -> Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (one.module(x) - x[:, :2]).square().mean()


def train(one: Learner, first: int, last: int) -> None:
    for step in range(first, last):
        one.update(loss_of(one, step))


def tensors(saved: StateDict) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in saved.items() if isinstance(value, Tensor)}


def same(left: StateDict, right: StateDict) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


# --- the loop


def at(step: int) -> State:
    state = State(0)
    state.step = step
    return state


def count(state: State) -> tuple[State, Info]:
    return at(state.step + 1), {"loss": 1.0 / (state.step + 1)}


def test_the_loop_runs_to_the_end_and_shows_every_step():
    seen: list[tuple[int, float]] = []
    last = run_loop(count, at(2), lambda s: s.step >= 5, [lambda s, info: seen.append((s.step, info["loss"]))])
    assert last.step == 5
    assert seen == [(3, 1 / 3), (4, 1 / 4), (5, 1 / 5)]
    untouched = at(7)
    assert run_loop(count, untouched, lambda s: True) is untouched


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stops_the_loop_before_anyone_sees_it(value):
    seen: list[int] = []

    def step(state: State) -> tuple[State, Info]:
        return at(state.step + 1), {"error": 0.0, "loss": value if state.step == 3 else 1.0}

    with pytest.raises(NonFiniteError, match=f"loss became {value} at step 4.*learning rate"):
        run_loop(step, at(0), lambda s: s.step >= 10, [lambda s, info: seen.append(s.step)])
    assert seen == [1, 2, 3]


# --- how a network is trained


def test_learning_rate_warms_up_and_decays_to_a_hundredth():
    options = Optimisation(learning_rate=2.0, warm_up=4)
    assert options.rate(0, 1000) == pytest.approx(2.0 / 5, rel=1e-5)
    assert options.rate(1, 1000) == pytest.approx(2.0 * 2 / 5, rel=1e-5)
    assert options.rate(4, 10**9) == pytest.approx(2.0)
    assert options.rate(500, 1000) == pytest.approx(2.0 * (0.01 + 0.99 * 0.5))
    assert options.rate(250, 1000) == pytest.approx(2.0 * (0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5))))
    assert options.rate(1000, 1000) == options.rate(5000, 1000) == pytest.approx(0.02)
    rates = [options.rate(k, 100) for k in range(4, 100)]
    assert rates == sorted(rates, reverse=True)
    assert Optimisation(warm_up=0).rate(0, 10) == Optimisation().learning_rate


def test_the_optimiser_uses_the_schedule_and_first_steps_are_of_its_size():
    """Adam's first step moves every weight by the learning rate, whatever the gradient."""
    one = learner(learning_rate=1e-2, warm_up=3, length=20)
    before = one.module.weight.detach().clone()
    one.update(loss_of(one, 0))
    step = (one.module.weight.detach() - before).abs()
    torch.testing.assert_close(step, torch.full_like(step, 1e-2 / 4), rtol=1e-5, atol=0)
    train(one, 1, 12)
    assert one.updates == 12
    assert one.optimiser.param_groups[0]["lr"] == one.options.rate(11, 20)


def test_averaged_weights_forget_the_first_ones_quickly():
    """Copy first, then ``w̄ ← d w̄ + (1 − d) w`` with ``d = min(decay, (1 + n)/(10 + n))`` after n updates."""
    one, wanted = learner(ema_decay=0.5), None
    for n in range(20):
        one.update(loss_of(one, n))
        now = one.module.weight.detach().clone()
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = now if wanted is None else decay * wanted + (1 - decay) * now
        torch.testing.assert_close(one.averaged.weight.detach(), wanted, rtol=1e-12, atol=1e-14)
    assert not torch.equal(one.averaged.weight, one.module.weight)


@pytest.mark.parametrize(("factor", "norm"), [(1.0, None), (1e6, 0.25)])
def test_gradients_are_clipped_at_a_norm(factor, norm):
    one = learner(clip=0.25)
    x = torch.ones(1, 3, dtype=torch.float64)
    unclipped = factor * torch.ones(2, 3, dtype=torch.float64) * 0.01
    one.update(0.01 * factor * one.module(x).sum())
    found = one.module.weight.grad
    torch.testing.assert_close(float(found.norm()), norm or float(unclipped.norm()), rtol=1e-5, atol=0)
    torch.testing.assert_close(found / found.norm(), unclipped / unclipped.norm())


def test_update_returns_the_loss_and_lowers_it():
    one = learner(learning_rate=3e-2, warm_up=0, length=300)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    values = [one.update((one.module(x) - x[:, :2]).square().mean()) for _ in range(300)]
    assert values[0] == pytest.approx(float((linear()(x) - x[:, :2]).detach().square().mean()))
    assert values[-1] < 1e-3 * values[0]
    assert float((one.averaged(x) - x[:, :2]).detach().square().mean()) < 1e-3 * values[0]


# --- states


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_learner_ends_in_the_same_bits(stop):
    whole, first, second = learner(), learner(), learner(seed=1)
    train(whole, 0, 15)
    train(first, 0, stop)
    second.load_state_dict(first.state_dict())
    assert same(second.state_dict(), first.state_dict())
    train(second, stop, 15)
    assert same(second.state_dict(), whole.state_dict())


def test_a_saved_learner_shares_no_memory_with_what_goes_on():
    one, other = learner(), learner(seed=1)
    train(one, 0, 5)
    saved = one.state_dict()
    kept = tensors(saved)
    other.load_state_dict(saved)
    train(one, 5, 10)
    train(other, 5, 10)
    assert all(torch.equal(saved[key], value) for key, value in kept.items())
    assert same(one.state_dict(), other.state_dict())


class Side(Enum):
    LEFT = 0
    RIGHT = 1


@dataclass(frozen=True)
class Pair:
    low: Tensor
    high: Tensor


@dataclass(eq=False)
class Everything(State):
    """A field of every kind."""

    fixed: Derived[object]
    generator: torch.Generator
    learners: dict[Side, Learner]
    rows: tuple[Tensor, Tensor]
    value: float | None = None
    best: Pair | None = None
    over: bool = False
    word: str = "a"
    memory: dict[str, Tensor | int | float] = field(default_factory=dict)


def everything(seed: int) -> Everything:
    learners = {side: learner(seed + index) for index, side in enumerate(Side)}
    rows = torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64)
    return Everything(seed, object(), torch.Generator().manual_seed(seed), learners, rows)


def advanced(state: Everything) -> Everything:
    for number, one in enumerate(state.learners.values(), 2):
        train(one, 0, number)
    state.rows = torch.randn(2, 3, generator=state.generator), torch.ones(2, dtype=torch.float64)
    state.step, state.value, state.over, state.word = 3, -0.25, True, "b"
    state.best = Pair(torch.ones(2), torch.tensor([4]))
    state.memory = {"x.1": torch.arange(3), "count": 2, "rate": 0.5}
    return state


def test_one_function_writes_every_kind_of_field_and_one_reads_it():
    state, other = advanced(everything(0)), everything(5)
    saved = state.state_dict()
    kept, fixed = tensors(saved), other.fixed
    assert all(isinstance(value, (Tensor, int, float, str)) for value in saved.values())
    assert not any(key.startswith("fixed") for key in saved)
    other.load_state_dict(saved)
    assert same(other.state_dict(), saved)
    assert (other.seed, other.step, other.value, other.over, other.word) == (0, 3, -0.25, True, "b")
    assert isinstance(other.best, Pair)
    assert other.fixed is fixed
    assert other.memory.keys() == {"x.1", "count", "rate"}
    assert torch.equal(torch.rand(3, generator=other.generator), torch.rand(3, generator=state.generator))
    # What is saved shares no memory with either state.
    for changed in (state, other):
        for tensor in (*changed.rows, changed.best.low, changed.memory["x.1"]):
            tensor.add_(1)
        for one in changed.learners.values():
            train(one, 5, 7)
    assert all(torch.equal(saved[key], value) for key, value in kept.items())
    fresh = everything(1)
    fresh.load_state_dict(everything(2).state_dict())
    assert (fresh.value, fresh.best, fresh.memory) == (None, None, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": None}, r"no number 'step'.*another solver"),
        ({"step": torch.zeros(1)}, "no number 'step'"),
        ({"over": 1}, "no bool 'over'"),
        ({"word": 2}, "no str 'word'"),
        ({"rows.1": None}, r"no tensor 'rows\.1'.*incomplete"),
        ({"best.high": None}, r"no tensor 'best\.high'"),
        ({"generator": None}, "no tensor 'generator'"),
        ({"generator": torch.zeros(16, dtype=torch.uint8)}, "does not fit one on cpu: resume on the kind of device"),
        ({"learners.left.updates": None}, "no number 'updates'"),
        ({"learners.left.module.weight": torch.zeros(5, 5)}, "weights in the state are those of another network"),
        ({"more": 1}, "no field for more"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, said):
    saved = advanced(everything(0)).state_dict() | change
    with pytest.raises(FileFormatError, match=said):
        everything(0).load_state_dict({key: value for key, value in saved.items() if value is not None})


def test_a_field_that_cannot_be_saved_is_named():
    state = everything(0)
    state.memory["function"] = len  # type: ignore[assignment]
    with pytest.raises(UnsupportedError, match=r"'memory\.function' of a state holds a builtin.*Derived"):
        state.state_dict()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"clip": -1.0}, "clip must be positive"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"warm_up": -1}, "warm_up be ≥ 0"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(InvalidInputError, match=said):
        Optimisation(**options)
