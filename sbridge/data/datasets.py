"""Built-in two-dimensional distributions, by name: :func:`make`.

Each is a function ``(n, generator, dtype) → (n, 2)`` of independent draws. ``U(a, b)`` is uniform, ``N`` standard
normal noise, ``θ`` an angle. Rows are drawn in float64 and cast, so both dtypes give the same points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sbridge.data.specs import BUILT_IN
from sbridge.errors import InvalidInputError, unknown_name
from sbridge.random import Seed, generator as make_generator

Sampler = Callable[[int, torch.Generator, torch.dtype], Tensor]


def gaussian(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``N(0, I)``."""
    return _normal(n, generator).to(dtype)


def eight_gaussians(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``5(cos kπ/4, sin kπ/4) + 0.1^¼ N``, ``k`` uniform on 0 … 7: covariance ``√0.1·I`` a component.

    The benchmark of Tong et al. (2024), "Improving and generalizing flow-based generative models", whose code
    hands ``√0.1`` to a normal distribution as its covariance.
    """
    angle = (math.pi / 4) * torch.randint(8, (n,), generator=generator, device=generator.device).double()
    return (5.0 * _circle(angle) + 0.1**0.25 * _normal(n, generator)).to(dtype)


def two_moons(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``3(p + s·(1, 1)) − 1``, ``s ~ U(0, 0.2)``, ``p`` on one of two half circles with ``θ ~ U(0, π)``.

    The half circles are ``(cos θ, sin θ)`` and ``(1 − cos θ, ½ − sin θ)``, each with probability ½. The other
    distribution of the benchmark of Tong et al. (2024), with ``θ`` random where its code spaces it evenly.
    """
    arc = _circle(math.pi * _uniform(n, generator))
    second = torch.rand(n, 1, generator=generator, device=generator.device) < 0.5
    points = torch.where(second, arc.new_tensor([1.0, 0.5]) - arc, arc)
    return (3.0 * (points + 0.2 * _uniform(n, generator)[:, None]) - 1.0).to(dtype)


def noisy_moons(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``2(p + 0.05 N) − (1, 0)``, ``p`` on the half circles of :func:`two_moons`."""
    arc = _circle(math.pi * _uniform(n, generator))
    second = torch.rand(n, 1, generator=generator, device=generator.device) < 0.5
    points = torch.where(second, arc.new_tensor([1.0, 0.5]) - arc, arc)
    return (2.0 * (points + 0.05 * _normal(n, generator)) - arc.new_tensor([1.0, 0.0])).to(dtype)


def s_curve(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``1.5((sin θ, sign(θ)(cos θ − 1)) + 0.05 N)``, ``θ ~ U(−3π/2, 3π/2)``."""
    angle = 3.0 * math.pi * (_uniform(n, generator) - 0.5)
    curve = torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1.0)], 1)
    return (1.5 * (curve + 0.05 * _normal(n, generator))).to(dtype)


def circles(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``3.5(r(cos θ, sin θ) + 0.05 N)``, ``r`` ½ or 1 with probability ½, ``θ ~ U(0, 2π)``."""
    angle = 2.0 * math.pi * _uniform(n, generator)
    radius = 0.5 + 0.5 * torch.randint(2, (n, 1), generator=generator, device=generator.device).double()
    return (3.5 * (radius * _circle(angle) + 0.05 * _normal(n, generator))).to(dtype)


def two_spirals(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``±(θ/3)(−cos θ, sin θ) + 0.1 N``, ``θ = 3π√U(0, 1)``, either sign with probability ½."""
    angle = 3.0 * math.pi * _uniform(n, generator).sqrt()
    sign = 2.0 * torch.randint(2, (n, 1), generator=generator, device=generator.device).double() - 1.0
    arm = torch.stack([-angle.cos(), angle.sin()], 1) * angle[:, None] / 3.0
    return (sign * arm + 0.1 * _normal(n, generator)).to(dtype)


def swiss_roll(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``(θ/3)(cos θ, sin θ) + 0.1 N``, ``θ ~ U(3π/2, 9π/2)``: the roll seen along its axis."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * _uniform(n, generator))
    return (_circle(angle) * angle[:, None] / 3.0 + 0.1 * _normal(n, generator)).to(dtype)


def checkerboard(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform on the eight squares ``[i, i+1] × [j, j+1]`` with ``i + j`` even, ``−2 ≤ i, j ≤ 1``, times 2."""
    first = 4.0 * _uniform(n, generator) - 2.0
    lift = 2.0 * torch.randint(2, (n,), generator=generator, device=generator.device).double() - 2.0
    second = _uniform(n, generator) + lift + first.floor() % 2.0
    return (2.0 * torch.stack([first, second], 1)).to(dtype)


def pinwheel(n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """``2R(φ)(1 + 0.3 N_1, 0.1 N_2)``, ``φ = 2πk/5 + ¼e^{1 + 0.3 N_1}``, ``k`` uniform on 0 … 4, ``R`` a rotation."""
    blade = _normal(n, generator) * torch.tensor([0.3, 0.1], dtype=torch.float64, device=generator.device)
    blade[:, 0] += 1.0
    which = torch.randint(5, (n,), generator=generator, device=generator.device).double()
    turn = _circle((2.0 * math.pi / 5.0) * which + 0.25 * blade[:, 0].exp())
    normal = torch.stack([-turn[:, 1], turn[:, 0]], 1)
    return (2.0 * (blade[:, :1] * turn + blade[:, 1:] * normal)).to(dtype)


_SAMPLERS: dict[str, Sampler] = {name: globals()[name] for name in BUILT_IN}


def names() -> tuple[str, ...]:
    """Returns the names that :func:`make` knows, sorted."""
    return BUILT_IN


def make(name: str, n: int, seed: Seed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws ``n`` independent samples of the distribution called ``name``, shape ``(n, 2)``, on the CPU.

    The same name, seed and ``n`` give the same rows; another ``n`` gives other rows.

    Raises:
        UnknownNameError: for a name that :func:`names` does not list.
        InvalidInputError: unless ``n ≥ 1``.
    """
    if name not in _SAMPLERS:
        raise unknown_name("data set", name, _SAMPLERS)
    if n < 1:
        raise InvalidInputError(f"a data set needs at least one row, got n = {n}.")
    return _SAMPLERS[name](n, make_generator(seed), dtype)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=generator, device=generator.device)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)
