"""The training loop, the schedule, averaged weights, and states that can be kept and taken up again."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError
from sbridge.training import Flat, Info, Learner, Optimisation, flat_number, flat_tensor, minimise


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


def tensors(flat: Flat) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in flat.items() if isinstance(value, Tensor)}


def same(left: Flat, right: Flat) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) if isinstance(left[key], Tensor) else left[key] == right[key] for key in left
    )


# --- the loop


@dataclass
class Counter:
    step: int = 0

    def flat(self) -> Flat:
        return {"step": self.step}


def count(state: Counter) -> tuple[Counter, Info]:
    return Counter(state.step + 1), {"loss": 1.0 / (state.step + 1)}


def test_the_loop_runs_to_the_end_and_shows_every_step():
    seen: list[tuple[int, float]] = []
    last = minimise(count, Counter(2), lambda s: s.step >= 5, [lambda s, info: seen.append((s.step, info["loss"]))])
    assert last == Counter(5)
    assert seen == [(3, 1 / 3), (4, 1 / 4), (5, 1 / 5)]
    untouched = Counter(7)
    assert minimise(count, untouched, lambda s: True) is untouched


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_stops_the_loop_before_anyone_sees_it(value):
    seen: list[int] = []

    def step(state: Counter) -> tuple[Counter, Info]:
        return Counter(state.step + 1), {"error": 0.0, "loss": value if state.step == 3 else 1.0}

    with pytest.raises(NonFiniteError, match=f"loss became {value} at step 4.*learning rate"):
        minimise(step, Counter(), lambda s: s.step >= 10, [lambda s, info: seen.append(s.step)])
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
def test_a_learner_taken_up_again_ends_in_the_same_bits(stop):
    whole, first, second = learner(), learner(), learner(seed=1)
    train(whole, 0, 15)
    train(first, 0, stop)
    second.load(first.flat("net"), "net")
    assert same(second.flat("net"), first.flat("net"))
    train(second, stop, 15)
    assert same(second.flat("net"), whole.flat("net"))


def test_flat_and_load_share_no_memory_with_what_goes_on():
    one, other = learner(), learner(seed=1)
    train(one, 0, 5)
    flat = one.flat("net")
    kept = tensors(flat)
    other.load(flat, "net")
    train(one, 5, 10)
    train(other, 5, 10)
    assert all(torch.equal(flat[key], value) for key, value in kept.items())
    assert same(one.flat("net"), other.flat("net"))


def test_two_learners_fit_into_one_flat_form():
    one, other = learner(), learner(seed=1)
    train(one, 0, 3)
    train(other, 0, 4)
    flat = one.flat("forward") | other.flat("backward")
    back = learner(seed=2)
    back.load(flat, "backward")
    assert same(back.flat("backward"), other.flat("backward"))


def test_a_state_that_is_not_there_is_named():
    flat: Flat = {"step": 3, "weights": torch.zeros(2), "kind": "x"}
    assert flat_number(flat, "step") == 3
    assert torch.equal(flat_tensor(flat, "weights"), torch.zeros(2))
    for key in ("weights", "kind", "seed"):
        with pytest.raises(FileFormatError, match=f"no number '{key}'.*another solver"):
            flat_number(flat, key)
    for key in ("step", "kind", "f"):
        with pytest.raises(FileFormatError, match=f"no tensor '{key}'.*incomplete"):
            flat_tensor(flat, key)
    with pytest.raises(FileFormatError, match=r"net\.updates"):
        learner().load({}, "net")


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
