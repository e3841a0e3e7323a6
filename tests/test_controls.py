"""Controls: features of time, networks, seeds, units."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from sbridge.controls import (
    MLP,
    AdditiveMLP,
    FourierMLP,
    NetworkControl,
    ScaledControl,
    ScaledMLP,
    ZeroControl,
    seeded_control,
)
from sbridge.controls.networks import TIME_FEATURES, time_features
from sbridge.errors import InvalidInputError
from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import decode, encode, register


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(n: int = 6, dim: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, dim, generator=seeded(1), dtype=torch.float64).to(dtype)


def control(scale: float = 1.0, seed: int = 0, horizon: float = 2.0) -> NetworkControl:
    """One that has left its start at zero."""
    one = seeded_control(MLP(16, 2), 3, horizon, scale, seeded(seed))
    nn.init.normal_(one.network.last.weight, generator=seeded(seed))
    return one


# --- features of time


def test_features_are_what_they_say(dtype):
    t, horizon = 0.6, 2.0
    tau = t / horizon
    found = time_features(t, horizon, states(dtype=dtype))
    end = math.log(1e3)
    wanted = [2 * tau - 1, 1 + 2 * math.log(tau + 1e-3) / end, 1 + 2 * math.log(1 - tau + 1e-3) / end]
    wanted += [math.sin(j * math.pi * tau) for j in range(1, 5)] + [math.cos(j * math.pi * tau) for j in range(1, 5)]
    assert found.shape == (1, TIME_FEATURES)
    torch.testing.assert_close(found, torch.tensor([wanted], dtype=dtype))


def test_features_take_times_in_bulk_and_both_ends():
    times = torch.tensor([0.0, 1e-3, 0.7, 2.0], dtype=torch.float64)
    together = time_features(times, 2.0, states(dtype=torch.float64))
    assert torch.equal(together, torch.cat([time_features(float(t), 2.0, together) for t in times]))
    assert torch.equal(time_features(times[2], 2.0, together), together[2:3])
    assert bool(together.isfinite().all())
    assert float(together.abs().max()) <= 1.0 + 1e-3


@pytest.mark.parametrize("end", ["source", "target"])
def test_features_tell_times_near_the_ends_apart(end):
    """A factor of ten in the distance to an end moves them as much at 10⁻³ as it does far from it."""
    distances = torch.tensor([1e-3, 1e-2, 1e-1, 1.0], dtype=torch.float64)
    times = distances if end == "source" else 1.0 - distances
    moves = time_features(times, 1.0, states(dtype=torch.float64)).diff(dim=0).norm(dim=1)
    assert float(moves[0]) > 0.4
    assert float(moves.max() / moves.min()) < 12


# --- networks


def test_networks_start_at_zero_and_scale_their_output(dtype):
    fresh = seeded_control(MLP(), 3, 1.0, 5.0, seeded())
    assert torch.equal(fresh(0.3, states(dtype=dtype)), torch.zeros(6, 3, dtype=dtype))
    x = states(dtype=dtype)
    one, ten = control(1.0)(0.3, x), control(10.0)(0.3, x)
    assert one.dtype == dtype
    torch.testing.assert_close(ten, 10 * one)
    assert float(one.detach().abs().min()) > 0


@pytest.mark.parametrize("net", [torch.float32, torch.float64])
def test_a_network_computes_in_its_own_dtype_and_answers_in_that_of_the_states(net, dtype):
    one = control().to(net)
    assert one(0.3, states(dtype=dtype)).dtype == dtype
    assert one(torch.full((6,), 0.3, dtype=torch.float64), states(dtype=dtype)).dtype == dtype


def test_a_batch_of_times_is_time_by_time():
    one, x = control().double(), states(dtype=torch.float64)
    times = torch.linspace(0.0, 2.0, 6, dtype=torch.float64)
    rows = [one(float(t), x[i : i + 1]) for i, t in enumerate(times)]
    torch.testing.assert_close(one(times, x), torch.cat(rows))
    torch.testing.assert_close(one(torch.tensor(0.3), x), one(0.3, x), rtol=1e-6, atol=1e-7)


def test_time_is_measured_in_horizons():
    x = states()
    torch.testing.assert_close(control(horizon=2.0)(0.6, x), control(horizon=10.0)(3.0, x))


def test_seeds_decide_the_weights_and_the_global_state_stays():
    before = torch.get_rng_state()
    one, again, other = (seeded_control(MLP(8, 2), 3, 1.0, 1.0, seeded(seed)) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [dict(net.state_dict()) for net in (one, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["network.state.weight"], weights[2]["network.state.weight"])


def test_the_global_state_stays_when_a_recipe_fails():
    def broken(dim: int) -> nn.Module:
        torch.rand(3)
        raise RuntimeError("no network today")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no network today"):
        seeded_control(broken, 3, 1.0, 1.0, seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_width_and_depth_are_those_asked_for(depth):
    network = MLP(10, depth)(3)
    sizes = [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
    assert sizes == [(10, TIME_FEATURES), (10, 3), *[(10, 10)] * (depth - 1), (3, 10)]


@pytest.mark.parametrize(("width", "depth"), [(0, 2), (8, 0), (-1, 1)])
def test_no_network_of_nothing(width, depth):
    with pytest.raises(InvalidInputError, match=f"must be positive, got {min(width, depth)}"):
        MLP(width, depth)


def test_files_keep_networks_and_loading_leaves_the_global_state(dtype):
    one = control(3.0).to(dtype)
    tree, tensors = encode(one)
    before = torch.get_rng_state()
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert torch.equal(torch.get_rng_state(), before)
    assert next(back.parameters()).dtype == dtype
    assert torch.equal(back(0.3, states(dtype=dtype)), one(0.3, states(dtype=dtype)))


@register
class Rotation(nn.Module):
    """A network from outside the package, of another kind than a perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.angle = nn.Parameter(torch.tensor([0.5]))

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        return self.angle * features[:, :1] * x.roll(1, 1)


def test_any_module_of_features_and_states_will_do():
    one = seeded_control(Rotation, 3, 2.0, 4.0, seeded())
    x = states()
    torch.testing.assert_close(one(0.5, x), 4.0 * 0.5 * (2 * 0.25 - 1) * x.roll(1, 1))


# --- units


def test_controls_do_not_change_under_a_change_of_units(dtype):
    scaling = AffineScaling(
        torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([2.0, 0.1, 3.0], dtype=torch.float64)
    )
    inner, x = control(), states(dtype=dtype)
    outer = ScaledControl(inner, scaling)
    torch.testing.assert_close(outer(0.4, scaling.to_data(x)), inner(0.4, x), rtol=1e-4, atol=1e-5)
    assert outer(0.4, x).dtype == dtype


def test_no_control_is_zero(dtype):
    x = states(dtype=dtype)
    assert torch.equal(ZeroControl()(0.5, x), torch.zeros_like(x))


def test_fourier_features_let_a_network_bend(dtype):
    """A pull towards two wells is linear in them, and has no linear part that a plain network would see."""
    recipe = FourierMLP(8, 2, harmonics=3, frequency=1.5)
    net = seeded_control(recipe, 2, 1.0, 1.0, seeded()).to(dtype)
    x = torch.randn(5, 2, generator=seeded(1), dtype=dtype)
    assert not bool(net(0.3, x).any())
    seen = []
    net.network.inner.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    net(0.3, x)
    waves = [f(1.5 * j * x) for j in (1, 2, 3) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(seen[0], torch.cat([x, *waves], 1))
    with pytest.raises(InvalidInputError, match="must be positive"):
        FourierMLP(frequency=0.0)
    again = decode(*encode(net))
    torch.testing.assert_close(again(0.3, x), net(0.3, x))


def test_an_additive_network_is_a_perceptron_and_waves_of_each_coordinate(dtype):
    recipe = AdditiveMLP(8, 2, harmonics=3, frequency=1.5)
    net = seeded_control(recipe, 2, 1.0, 1.0, seeded(), input_scale=2.0).to(dtype)
    x = torch.randn(5, 2, generator=seeded(1), dtype=dtype)
    assert not bool(net(0.3, x).any())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=seeded(2))
    features = time_features(0.3, 1.0, x)
    weights = net.network.coefficients(features).reshape(7, 2)
    inside = x / 2.0
    expected = net.network.inner(features, inside) + weights[0] * inside
    for j in (1, 2, 3):
        angle = 1.5 * j * inside
        expected = expected + weights[2 * j - 1] * angle.sin() + weights[2 * j] * angle.cos()
    torch.testing.assert_close(net(0.3, x), expected)
    torch.testing.assert_close(net(torch.full((5,), 0.3, dtype=torch.float64), x), expected)
    again = decode(*encode(net))
    torch.testing.assert_close(again(0.3, x), net(0.3, x))
    with pytest.raises(InvalidInputError, match="must be positive"):
        AdditiveMLP(harmonics=0)


@pytest.mark.parametrize(("dim", "width"), [(1, 20), (5, 20), (6, 24), (9, 36), (10, 40), (500, 40)])
def test_a_scaled_network_is_a_plain_one_as_wide_as_the_state_asks(dim, width):
    recipe = ScaledMLP(factor=4, least=20, most=40, depth=2)
    one, other = (seeded_control(how, dim, 1.0, 1.0, seeded()) for how in (recipe, MLP(width, 2)))
    assert {key: value.shape for key, value in one.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }
    again = decode(*encode(one))
    x = torch.randn(3, dim, generator=seeded(1))
    assert torch.equal(again(0.3, x), one(0.3, x))


@pytest.mark.parametrize("wrong", [{"factor": 0}, {"least": 0}, {"depth": 0}, {"least": 30, "most": 20}])
def test_a_scaled_network_needs_bounds_in_order(wrong):
    with pytest.raises(InvalidInputError, match="factor, least and depth must be positive and most ≥ least"):
        ScaledMLP(**wrong)
