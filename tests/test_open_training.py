"""Training of one's own: optimisers, schedules, accumulation, autocast, and runs that callbacks end."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sbridge as sb
from sbridge.controls import seeded_control
from sbridge.couplings import entropic
from sbridge.errors import FileFormatError, InvalidInputError, NonFiniteError, UnsupportedError
from sbridge.runs.checkpoints import Checkpoint, History
from sbridge.solvers import matching
from sbridge.storage.registry import decode, encode
from sbridge.training import Learner, Numbers, Optimisation, State, run_loop
from sbridge.transport import sinkhorn

G = torch.Generator().manual_seed(0)
X0, X1 = torch.randn(60, 2, generator=G), torch.randn(60, 2, generator=G) + 1.0
GRID = sb.TimeGrid.uniform(4)


@sb.register
class HalvedSGD(sb.Optimisation):
    """Stochastic gradient descent with momentum, whose rate is halved at half of the updates."""

    def optimiser(self, parameters):
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9)

    def rate(self, update, length):
        return self.learning_rate * (1.0 if update < length / 2 else 0.5)


def made_by(make: Callable[[list[nn.Parameter]], object], **options: object) -> Optimisation:
    class Own(Optimisation):
        def optimiser(self, parameters):
            return make(parameters)

    return Own(**options)


def linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(3, 2).double()


def loss_of(module: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return (module(x) - x[:, :2]).square().mean()


def train(one: Learner, first: int, last: int) -> None:
    for step in range(first, last):
        one.update(loss_of(one.module, step))


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().reshape(-1) for one in module.parameters()])


# --- optimisers and schedules


def test_an_own_optimiser_and_schedule_are_those_of_torch():
    one, plain = Learner(linear(), HalvedSGD(learning_rate=0.05, clip=math.inf), 10), linear()
    own = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(own, [5], gamma=0.5)
    for step in range(10):
        one.update(loss_of(one.module, step))
        own.zero_grad()
        loss_of(plain, step).backward()
        own.step()
        schedule.step()
    assert torch.equal(weights(one.module), weights(plain))


OPTIMISERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_state_of_any_optimiser_is_saved_and_resumed_bit_for_bit(name, tmp_path):
    options = made_by(OPTIMISERS[name], learning_rate=1e-2, accumulate=2)
    whole, first, second = (Learner(linear(seed), options, 20) for seed in (0, 0, 1))
    train(whole, 0, 12)
    train(first, 0, 7)  # one gradient waits for the next
    Checkpoint(0, first.state_dict(), [], "run").write(tmp_path / "c")
    second.load_state_dict(Checkpoint.read(tmp_path / "c", "run").state)
    train(second, 7, 12)
    for one, other in ((whole.module, second.module), (whole.averaged, second.averaged)):
        assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(whole.module), weights(linear()))


class Counting(torch.optim.SGD):
    """Its learning rate falls with a number that it keeps in the group, as optimisers without schedules do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.param_groups[0]["count"] = 1

    def step(self, closure=None):
        self.param_groups[0]["lr"] /= self.param_groups[0]["count"]
        self.param_groups[0]["count"] += 1
        return super().step(closure)


def test_numbers_that_an_optimiser_keeps_in_its_groups_are_saved():
    options = made_by(lambda p: Counting(p, 1e-1), learning_rate=1e-1)
    whole, first, second = (Learner(linear(), options, 20) for _ in range(3))
    train(whole, 0, 6)
    train(first, 0, 3)
    second.load_state_dict(first.state_dict())
    train(second, 3, 6)
    assert torch.equal(weights(whole.module), weights(second.module))


def test_groups_keep_the_ratio_of_their_rates():
    def make(parameters):
        return torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.002}], lr=0.01)

    one = Learner(linear(), made_by(make, learning_rate=0.01, warm_up=4), 10)
    train(one, 0, 3)
    rates = [group["lr"] for group in one.optimiser.param_groups]
    assert rates == pytest.approx([one.options.rate(2, 10), 0.2 * one.options.rate(2, 10)], rel=1e-12)


def test_a_checkpoint_of_the_first_version_is_read():
    whole, first, second = (Learner(linear(seed), Optimisation(), 20) for seed in (0, 0, 1))
    train(whole, 0, 8)
    train(first, 0, 4)
    old = {key.replace("optimiser.", "adam."): value for key, value in first.state_dict().items()}
    assert any(key.startswith("adam.") for key in old)
    second.load_state_dict(old)
    train(second, 4, 8)
    assert torch.equal(weights(whole.module), weights(second.module))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda p: torch.optim.LBFGS(p, lr=1e-2),
            r"Own\.optimiser returned LBFGS, whose step evaluates the loss again",
        ),
        (lambda p: None, r"Own\.optimiser must return a torch\.optim\.Optimizer .* got None"),
        (lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2), capturable=True), "Adam without a number lr"),
    ],
)
def test_optimisers_that_cannot_be_used_are_refused_at_once(make, said):
    with pytest.raises(InvalidInputError, match=said):
        Learner(linear(), made_by(make), 10)


@pytest.mark.parametrize("rate", [math.nan, -1.0, math.inf, None])
def test_a_rate_must_be_a_number(rate):
    class Own(Optimisation):
        def rate(self, update, length):
            return rate

    with pytest.raises(InvalidInputError, match="the learning rate of update 0 must be a number ≥ 0"):
        train(Learner(linear(), Own(), 10), 0, 1)


def test_what_an_optimiser_keeps_must_be_plain():
    one = Learner(linear(), Optimisation(), 10)
    train(one, 0, 1)
    one.optimiser.state[one.parameters[0]]["past"] = [1.0]
    with pytest.raises(UnsupportedError, match="Adam keeps 'past' as a list"):
        one.state_dict()
    with pytest.raises(FileFormatError, match="another network"):
        Learner(linear(), Optimisation(), 10).load_state_dict(
            {**Learner(linear(), Optimisation(), 10).state_dict(), "gradient.7": torch.ones(2)}
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate": 0}, "accumulate must be positive, got 0"),
        ({"autocast": "bfloat16"}, "autocast must be of kind bool"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(InvalidInputError, match=said):
        Optimisation(**options)


def test_a_registered_subclass_is_saved_by_name_and_another_is_refused():
    solver = sb.IMF(optimisation=HalvedSGD(batch=64))
    assert decode(*encode(solver)) == solver
    assert "accumulate" not in encode(Optimisation())[0]["fields"], "files without it are those of earlier versions"
    assert encode(Optimisation(accumulate=2))[0]["fields"]["accumulate"] == 2
    with pytest.raises(UnsupportedError, match=r"optimisation is a Own, which cannot be saved. .*register"):
        encode(sb.IMF(optimisation=made_by(OPTIMISERS["SGD"])))


# --- accumulation, preparation, autocast


def test_accumulated_gradients_are_those_of_one_large_batch():
    parts, whole = (Learner(linear(), HalvedSGD(learning_rate=0.1, accumulate=n), 100) for n in (3, 1))
    for step in range(4):
        before = weights(parts.module)
        for part in range(3):
            assert torch.equal(weights(parts.module), before), "nothing moves before the last part"
            parts.update(loss_of(parts.module, 3 * step + part))
        whole.update(sum(loss_of(whole.module, 3 * step + part) for part in range(3)) / 3.0)
    torch.testing.assert_close(weights(parts.module), weights(whole.module), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights(parts.averaged), weights(whole.averaged), rtol=1e-12, atol=1e-14)


def test_a_network_is_prepared_before_its_first_update():
    class Frozen(Optimisation):
        def prepare(self, module):
            module.bias.requires_grad_(requires_grad=False)

    one = Learner(linear(), Frozen(), 10)
    train(one, 0, 3)
    assert torch.equal(one.module.bias, linear().bias)
    assert torch.equal(one.solution().bias, linear().bias)
    assert not torch.equal(one.module.weight, linear().weight)


def seen_dtypes(module: nn.Module) -> list[torch.dtype]:
    """The dtypes that the first layer of hidden units computes in, in later calls."""
    seen: list[torch.dtype] = []
    module.network.state.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    return seen


def test_autocast_is_for_the_network_alone():
    one = Learner(seeded_control(sb.networks.MLP(8, 2), 2, 1.0, 1.0, 0), Optimisation(autocast=True), 10)
    inside, averaged = seen_dtypes(one.module), seen_dtypes(one.averaged)
    x = X0[:16]
    found = one.module(0.5, x)
    assert not torch.is_autocast_enabled("cpu")
    assert found.dtype == one.averaged(0.5, x).dtype == torch.float32
    assert (inside, averaged) == ([torch.bfloat16], [torch.float32])
    one.update((found - x).square().mean())
    assert {one.dtype for one in one.module.parameters()} == {torch.float32}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        one.module(0.5, X0[:, :1])
    assert not torch.is_autocast_enabled("cpu"), "a call that fails leaves it too"
    with pytest.raises(InvalidInputError, match=r"float64.*give float32 data"):
        Learner(linear(), Optimisation(autocast=True), 10)


def test_log_domain_work_is_the_same_in_a_fit_under_autocast(monkeypatch):
    """Pairs of every refresh come from entropic plans; their potentials are those of a fit without autocast."""
    kept: list[torch.Tensor] = []

    def noted(problem, options):
        found = sinkhorn(problem, options)
        kept.append(found.plan())
        return found

    monkeypatch.setattr(entropic, "sinkhorn", noted)
    monkeypatch.setattr(matching, "_PROBE_ROWS", 60)
    bridges = []
    for autocast in (False, True):
        training = Optimisation(batch=32, autocast=autocast)
        options = {"pairs": 60, "refresh": 2, "coupling": entropic.MinibatchCoupling(30)}
        solver = sb.MatchedBridge(updates=4, network=sb.networks.MLP(8, 2), optimisation=training, grid=GRID, **options)
        bridges.append(sb.fit(X0, X1, solver=solver, seed=0))
    half = len(kept) // 2
    assert half >= 4
    assert all(torch.equal(one, other) for one, other in zip(kept[:half], kept[half:], strict=True))
    plain, cast = (one.forward.control(0.3, X0) for one in bridges)
    assert not torch.equal(plain, cast)
    torch.testing.assert_close(plain, cast, rtol=0.05, atol=0.02)


# --- numbers of steps, and runs that callbacks end


@dataclass
class Falling:
    """A run whose loss falls until a step."""

    until: int
    length: int = 1000

    def run(self, *callbacks: object) -> State:
        def step(state: State) -> tuple[State, dict[str, float | torch.Tensor]]:
            state.step += 1
            return state, {"loss": torch.tensor(1.0 / min(state.step, self.until)), "stage": 1.0}

        return run_loop(step, State(0), lambda s: s.step >= self.length, callbacks)


@pytest.mark.parametrize(("until", "windows", "window"), [(40, 3, 10), (7, 1, 1), (25, 2, 10)])
def test_patience_ends_a_run_when_the_mean_of_a_window_has_stopped_falling(until, windows, window):
    state = Falling(until).run(sb.Patience("loss", windows=windows, window=window))
    means = [sum(1.0 / min(k * window + i + 1, until) for i in range(window)) / window for k in range(60)]
    best = next(k for k in range(60) if means[k] == min(means))
    assert state.step == (best + 1 + windows) * window
    assert state.stopped == f"loss has not fallen for {windows * window} steps"


def test_patience_counts_a_relative_fall():
    wanted = Falling(1000).run(sb.Patience("loss", windows=1, window=1, least=0.095)).step
    assert wanted == 11  # 1/10 → 1/11 is the first fall of less than 9.5 %


def test_patience_names_what_it_cannot_find_or_use():
    with pytest.raises(InvalidInputError, match="waits for 'los', but the steps report loss, stage"):
        Falling(3).run(sb.Patience("los"))
    with pytest.raises(InvalidInputError, match="windows must be"):
        sb.Patience(windows=0)
    with pytest.raises(InvalidInputError, match=r"least is a relative fall, in \[0, 1\), got 1"):
        sb.Patience(least=1.0)


def test_a_stop_at_the_last_step_is_no_early_stop():
    def stop(state: State, info: Numbers) -> None:
        if state.step == 5:
            raise sb.StopTraining("enough")

    assert Falling(3, length=5).run(stop).stopped is None
    assert Falling(3, length=6).run(stop).stopped == "enough"


def test_all_callbacks_see_the_step_at_which_one_ends_the_run():
    seen: list[int] = []

    def stop(state: State, info: Numbers) -> None:
        raise sb.StopTraining

    assert Falling(3).run(stop, lambda state, info: seen.append(state.step)).stopped == "a callback stopped it"
    assert seen == [1]


def test_numbers_on_another_device_are_read_when_asked_and_checked_now_and_then():
    read: list[int] = []

    class Away(torch.Tensor):
        """A number that is not on the CPU; it notes when it is read."""

        device = torch.device("meta")

        def __float__(self) -> float:
            read.append(1)
            return math.nan if self.bad else 0.5

    def away(*, bad: bool) -> torch.Tensor:
        one = torch.zeros(()).as_subclass(Away)
        one.bad = bad
        return one

    def run(length: int, bad_from: int, *callbacks: object) -> State:
        def step(state: State) -> tuple[State, dict[str, torch.Tensor]]:
            state.step += 1
            return state, {"loss": away(bad=state.step >= bad_from)}

        return run_loop(step, State(0), lambda s: s.step >= length, callbacks)

    kept: list[Numbers] = []
    run(250, 1000, lambda state, info: kept.append(info))
    assert len(read) == 3  # steps 100, 200 and the last
    assert [info["loss"] for info in kept for _ in range(2)] == [0.5] * 500
    assert len(read) == 250
    history = History(250)
    run(250, 1000, history)
    assert [dict(row) for row in history.rows[:2]] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    with pytest.raises(NonFiniteError, match="loss became nan at step 200"):
        run(250, 120)
    with pytest.raises(NonFiniteError, match="loss became nan at step 120"):
        run(250, 120, lambda state, info: info["loss"])


@sb.register
@dataclass(frozen=True)
class HalfSquare:
    """The log density of a normal distribution about 1."""

    def __call__(self, x):
        return -0.5 * (x - 1.0).square().sum(1)


TINY = {"network": sb.networks.MLP(8, 2), "optimisation": Optimisation(batch=16, warm_up=1), "grid": GRID}
PROBLEM = sb.ControlProblem(
    sb.BrownianMotion(1.0), sb.Point(torch.zeros(2)), terminal_cost=lambda x: (x - 1.0).square().sum(1)
)
FITS = {
    "IMF": lambda c: sb.fit(X0, X1, solver=sb.IMF(pretraining=3, pairs=32, **TINY), seed=0, callbacks=c),
    "IPF": lambda c: sb.fit(X0, X1, solver=sb.IPF(half_steps=2, updates=4, paths=32, **TINY), seed=0, callbacks=c),
    "MatchedBridge": lambda c: sb.fit(X0, X1, solver=sb.MatchedBridge(updates=4, **TINY), seed=0, callbacks=c),
    "MixtureBridge": lambda c: sb.fit(X0, X1, solver=sb.MixtureBridge((1,), iterations=4), seed=0, callbacks=c),
    "diffuse": lambda c: sb.diffuse(X0, solver=sb.ScoreMatching(updates=4), seed=0, callbacks=c),
    "AdjointBridge": lambda c: sb.fit(
        X0, sb.Density(HalfSquare(), 2), reference=sb.BrownianMotion(1.0), callbacks=c, seed=0,
        solver=sb.AdjointBridge(updates=4, **TINY),
    ),
    "AdjointMatching": lambda c: sb.solve(PROBLEM, sb.AdjointMatching(updates=40, grid=GRID), seed=0, callbacks=c),
    "LogVariance": lambda c: sb.solve(PROBLEM, sb.LogVariance(updates=4, grid=GRID), seed=0, callbacks=c),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_every_solver_that_is_stopped_hands_over_a_solution_that_says_so(name, tmp_path):
    def stop(state: State, info: Numbers) -> None:
        if state.step == 2:
            raise sb.StopTraining("tea time")

    early = FITS[name]([stop])
    assert early.stopped.startswith("tea time (after 2 of at most ")
    assert "tea time" in repr(early)
    early.save(tmp_path / "early")
    again = (
        sb.load(tmp_path / "early") if isinstance(early, sb.Bridge) else sb.load_control(tmp_path / "early", PROBLEM)
    )
    assert again.stopped == early.stopped
    draw = early.transport if isinstance(early, sb.Bridge) else early.sample
    drawn = draw(X0[:4], seed=1) if isinstance(early, sb.Bridge) else draw(4, seed=1).x
    assert bool(drawn.isfinite().all())


def test_the_loggers_of_the_page_get_every_number_of_every_step(monkeypatch):
    """The blocks of docs/extend.md for TensorBoard and Weights & Biases, with stand-ins for both packages."""
    logged: list[tuple[str, float, int]] = []

    class Logger:
        def __init__(self, *place: str, project: str = "") -> None:
            self.place = place or (project,)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            logged.append((name, value, step))

        def log(self, numbers: dict[str, float], step: int) -> None:
            logged.extend((name, value, step) for name, value in numbers.items())

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Logger))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Logger))
    page = Path(__file__).parents[1] / "docs" / "extend.md"
    blocks = re.findall(r"^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        logged.clear()
        Falling(2, length=3).run(*names["callbacks"])
        assert logged == [(name, value, step) for step in (1, 2, 3) for name, value in
                          (("loss", 1.0 / min(step, 2)), ("stage", 1.0))]  # fmt: skip


def test_more_gradients_than_updates_are_refused():
    with pytest.raises(InvalidInputError, match="accumulate = 5 gradients are more than the 4 updates"):
        Learner(linear(), Optimisation(accumulate=5), 4)


def test_patience_begins_again_with_another_run():
    patience = sb.Patience(windows=2, window=1)
    state = State(0)
    for _ in range(2):
        for state.step in (1, 2):
            patience(state, {"loss": 1.0})
        state.step = 3
        with pytest.raises(sb.StopTraining):
            patience(state, {"loss": 1.0})
