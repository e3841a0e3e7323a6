"""The built-in laws: supports, moments in standard errors, seeds, names."""

import math

import pytest
import torch

from sbridge.data import datasets
from sbridge.errors import InvalidInputError, UnknownNameError

N = 20_000


def draw(name, n=N, seed=0, dtype=torch.float64):
    return datasets.make(name, n, seed, dtype)


def assert_mean(values, truth):
    """The mean of independent rows is within 4.5 standard errors of the truth in every column."""
    error = (values.mean(0) - torch.as_tensor(truth, dtype=values.dtype)) / (values.std(0) / math.sqrt(len(values)))
    assert float(error.abs().max()) < 4.5


def moments(x):
    """First and second moments, as columns to average."""
    return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], 1)


@pytest.mark.parametrize("name", datasets.names())
def test_every_set(name, dtype):
    before = torch.random.get_rng_state()
    x = datasets.make(name, 101, 3, dtype)
    assert torch.equal(before, torch.random.get_rng_state())
    assert x.shape == (101, 2)
    assert x.dtype == dtype
    assert bool(torch.isfinite(x).all())
    assert torch.equal(x, datasets.make(name, 101, 3, dtype))
    assert not torch.equal(x, datasets.make(name, 101, 4, dtype))
    torch.testing.assert_close(x.double(), draw(name, 101, 3), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, getattr(datasets, name)(101, datasets.make_generator(3), dtype))


def test_float32_is_the_default():
    assert datasets.make("s_curve", 3, 0).dtype == torch.float32


def test_names_are_complete_and_errors_help():
    assert set(datasets.names()) >= {
        "gaussian",
        "two_moons",
        "eight_gaussians",
        "s_curve",
        "circles",
        "swiss_roll",
    }
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'two_moon'. Did you mean 'two_moons'\?"):
        datasets.make("two_moon", 10, 0)
    with pytest.raises(InvalidInputError, match="at least one row, got n = 0"):
        datasets.make("two_moons", 0, 0)


def test_gaussian():
    assert_mean(moments(draw("gaussian")), [0, 0, 1, 1, 0])


def test_eight_gaussians():
    x = draw("eight_gaussians")
    assert_mean(moments(x), [0, 0, 12.5 + math.sqrt(0.1), 12.5 + math.sqrt(0.1), 0])
    angle = torch.arange(8) * math.pi / 4
    centres = 5 * torch.stack([angle.cos(), angle.sin()], 1).double()
    which = torch.cdist(x, centres).argmin(1)
    counts = torch.bincount(which, minlength=8).double()
    assert float(((counts - N / 8) / math.sqrt(N * 7 / 64)).abs().max()) < 4.5
    # Standard deviation 0.562: the next centre is 3.83 away, so hardly a row is assigned wrongly.
    assert_mean((x - centres[which]).square(), [math.sqrt(0.1), math.sqrt(0.1)])


def moons(x):
    """Distance from the two half circles after the shift s·(1, 1) is taken off; NaN where no s fits."""
    s = torch.linspace(0, 0.2, 400, dtype=x.dtype)
    p = x[:, None] - s[:, None]
    upper = (p.norm(dim=-1) - 1).abs() + (p[..., 1] < -1e-3)
    lower = ((p - torch.tensor([1.0, 0.5])).norm(dim=-1) - 1).abs() + (p[..., 1] > 0.501)
    return torch.minimum(upper, lower).amin(1)


def test_two_moons():
    x = draw("two_moons")
    p = (x + 1) / 3
    assert float(moons(p[:2000]).max()) < 1e-3
    # E cos θ = 0, E sin θ = 2/π, E s = 0.1.
    assert_mean(p, [0.5 + 0.1, 0.25 + 0.1])
    # E x² over both arcs: ½(½) + ½(1 + ½), shifted by s with E s² = 0.04/3.
    assert_mean(p[:, :1] ** 2, [1.0 + 2 * 0.1 * 0.5 + 0.04 / 3])


def test_noisy_moons():
    x = draw("noisy_moons")
    assert_mean(x, [2 * 0.5 - 1, 2 * 0.25])
    assert_mean(((x + torch.tensor([1.0, 0.0])) / 2)[:, :1] ** 2, [1.0 + 0.05**2])


def test_s_curve():
    x = draw("s_curve") / 1.5
    # θ uniform on ±3π/2: E sin² = ½, E (cos θ − 1)² = ½ + 1 − 2 E cos θ, E cos θ = −2/(3π).
    mean_cos = -2 / (3 * math.pi)
    assert_mean(moments(x)[:, :4], [0, 0, 0.5 + 0.0025, 1.5 - 2 * mean_cos + 0.0025])
    # (0, ±1) are the centres of the two arcs.
    distance = torch.minimum((x - torch.tensor([0.0, 1.0])).norm(dim=1), (x + torch.tensor([0.0, 1.0])).norm(dim=1))
    assert float((distance - 1).abs().max()) < 0.25


def test_circles():
    x = draw("circles") / 3.5
    assert_mean(moments(x), [0, 0, 0.3125 + 0.0025, 0.3125 + 0.0025, 0])
    radius = x.norm(dim=1)
    assert_mean((radius > 0.75).double()[:, None], [0.5])
    assert float(torch.minimum((radius - 0.5).abs(), (radius - 1).abs()).max()) < 0.25


def test_two_spirals():
    x = draw("two_spirals")
    # |x|² = θ²/9 + noise with θ² = 9π² U.
    assert_mean(x.square().sum(1, keepdim=True), [math.pi**2 / 2 + 0.02])
    assert_mean(x, [0, 0])


def test_swiss_roll():
    x = draw("swiss_roll")
    # E θ² over U(a, b) is (a² + ab + b²)/3.
    a, b = 1.5 * math.pi, 4.5 * math.pi
    assert_mean(x.square().sum(1, keepdim=True), [(a * a + a * b + b * b) / 27 + 0.02])
    # ∫θ cos θ = θ sin θ + cos θ, ∫θ sin θ = sin θ − θ cos θ, at a and b where cos = 0.
    width = 3 * (b - a)
    assert_mean(x, [(b * math.sin(b) - a * math.sin(a)) / width, (math.sin(b) - math.sin(a)) / width])


def test_checkerboard():
    cell = (draw("checkerboard") / 2).floor().long()
    assert int(cell.min()) == -2
    assert int(cell.max()) == 1
    assert bool((cell.sum(1) % 2 == 0).all())
    counts = torch.bincount((cell[:, 0] + 2) * 4 + cell[:, 1] + 2, minlength=16)
    filled = counts[counts > 0].double()
    assert len(filled) == 8
    assert float(((filled - N / 8) / math.sqrt(N * 7 / 64)).abs().max()) < 4.5


def test_pinwheel():
    x = draw("pinwheel")
    assert_mean(x, [0, 0])
    assert_mean(x.square().sum(1, keepdim=True), [4 * (1 + 0.09 + 0.01)])
    # Turned by the angle of its blade, a row is near the axis: five blades.
    radius, angle = x.norm(dim=1) / 2, torch.atan2(x[:, 1], x[:, 0])
    unwound = torch.cos(5 * (angle - 0.25 * radius.exp()))
    assert float(unwound[radius > 0.7].mean()) > 0.7
