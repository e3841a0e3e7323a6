"""Network recipes, and the control made of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, check_at_least
from sbridge.random import Seed, seeded
from sbridge.storage.registry import register

_HARMONICS = 4
_MOST_LAYERS = 1000  # far beyond use; a damaged file may ask for any number
_END_RESOLUTION = 1e-3
_GROUPS = 8
TIME_FEATURES = 3 + 2 * _HARMONICS


@runtime_checkable
class NetworkRecipe(Protocol):
    """Makes a network ``(features, x) → (batch, dim)``; ``features`` has shape ``(1 | batch, TIME_FEATURES)``."""

    def __call__(self, dim: int) -> nn.Module:
        """Makes a newly initialised network for states of dimension ``dim``."""
        ...


def time_features(t: Time, horizon: float, like: Tensor) -> Tensor:
    """Computes features of time that resolve both ends: shape ``(1, F)``, or ``(batch, F)`` for a batch of times.

    With ``τ = t/T`` and ``δ = 10⁻³``: ``2τ − 1``, ``1 + 2 log(τ + δ)/log(1/δ)`` and the same of ``1 − τ``, and
    ``sin, cos(jπτ)``, ``j = 1 … 4``. The logarithms resolve ``10⁻³`` and ``10⁻²`` as well as ``0.1`` and ``1``, as a
    control that grows like ``1/(T − t)`` needs. Computed in float64, returned like ``like``.
    """
    tau = (torch.as_tensor(t, dtype=torch.float64, device=like.device) / horizon).reshape(-1, 1)
    scale = 2.0 / math.log(1.0 / _END_RESOLUTION)
    harmonics = torch.arange(1, _HARMONICS + 1, dtype=torch.float64, device=like.device) * math.pi * tau
    ends = torch.cat([tau, 1.0 - tau], 1).clamp_min(0.0)
    logarithms = 1.0 + scale * torch.log(ends + _END_RESOLUTION)
    return torch.cat([2.0 * tau - 1.0, logarithms, harmonics.sin(), harmonics.cos()], 1).to(like.dtype)


@register
@dataclass(frozen=True)
class MLP:
    """Recipe: ``depth`` hidden layers of ``width`` SiLU units, last layer started at zero.

    Raises:
        InvalidInputError: if width or depth is not positive.
    """

    width: int = 128
    depth: int = 3

    def __post_init__(self) -> None:
        check_at_least(self, 1, "width", "depth")

    def __call__(self, dim: int) -> nn.Module:
        """Makes the network."""
        return Perceptron(dim, self.width, self.depth, dim)


@register
@dataclass(frozen=True)
class ScaledMLP:
    """Recipe: an :class:`MLP` whose layers are ``factor`` times as wide as the state, between two bounds.

    A hidden layer that is narrower than the state cannot represent the state.

    Raises:
        InvalidInputError: if a number is not positive, or the bounds are in the wrong order.
    """

    factor: int = 4
    least: int = 128
    most: int = 512
    depth: int = 3

    def __post_init__(self) -> None:
        if min(self.factor, self.least, self.depth) < 1 or self.most < self.least:
            raise InvalidInputError(f"factor, least and depth must be positive and most ≥ least, got {self}.")

    def width(self, dim: int) -> int:
        """Returns ``factor · dim``, within the bounds."""
        return min(max(self.factor * dim, self.least), self.most)

    def __call__(self, dim: int) -> nn.Module:
        """Makes the network."""
        return MLP(self.width(dim), self.depth)(dim)


class Perceptron(nn.Module):
    """The network of :class:`MLP`; time has its own matrix, so that one time for a whole batch costs one row."""

    def __init__(self, dim: int, width: int, depth: int, out: int) -> None:
        if depth > _MOST_LAYERS:
            raise InvalidInputError(f"a network has at most {_MOST_LAYERS} hidden layers, got depth = {depth}.")
        super().__init__()
        self.time = nn.Linear(TIME_FEATURES, width)
        self.state = nn.Linear(dim, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Computes the output for features of time ``(1 | batch, TIME_FEATURES)`` and inputs ``(batch, dim)``."""
        h = nn.functional.silu(self.time(features) + self.state(x))
        for layer in self.hidden:
            h = nn.functional.silu(layer(h))
        return self.last(h)


@register
@dataclass(frozen=True)
class FourierMLP:
    """Recipe: an :class:`MLP` with the inputs ``sin(jωx_i)``, ``cos(jωx_i)``, ``j = 1 … harmonics``, and ``x_i``.

    A plain network learns functions that are not monotone within the range of the data, such as a drift towards several
    wells, only after a long plateau; these features contain such functions. They repeat beyond half a period ``π/ω``,
    so choose ω for the range of the data.

    Raises:
        InvalidInputError: if a number is not positive.
    """

    width: int = 128
    depth: int = 3
    harmonics: int = 4
    frequency: float = 1.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.harmonics, self.frequency) <= 0:
            raise InvalidInputError(f"width, depth, harmonics and frequency must be positive, got {self}.")

    def __call__(self, dim: int) -> nn.Module:
        """Makes the network."""
        return _FourierPerceptron(dim, self)


class _FourierPerceptron(nn.Module):
    """The network of :class:`FourierMLP`."""

    def __init__(self, dim: int, recipe: FourierMLP) -> None:
        super().__init__()
        self.frequencies = [recipe.frequency * (j + 1) for j in range(recipe.harmonics)]
        self.inner = Perceptron(dim * (1 + 2 * recipe.harmonics), recipe.width, recipe.depth, dim)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        return self.inner(features, torch.cat([x, *_waves(x, self.frequencies)], -1))


@register
@dataclass(frozen=True)
class AdditiveMLP:
    """Recipe: an :class:`MLP` plus waves of each single coordinate, with coefficients linear in time features.

    ``MLP(t, x)_i + a_i(t) x_i + Σ_j b_ij(t) sin(jωx_i) + c_ij(t) cos(jωx_i)``, ``j = 1 … harmonics``: a generalised
    additive model (Hastie & Tibshirani 1986) plus a network. The coefficients enter linearly, so functions of a single
    coordinate, such as a drift from a saddle to either well, are learned quickly; a plain network fits a linear
    function first and needs long for them. The output is zero at first. Waves repeat beyond half a period ``π/ω``, so
    states should be of order one; :class:`NetworkControl` scales them.

    Raises:
        InvalidInputError: if a number is not positive.
    """

    width: int = 64
    depth: int = 3
    harmonics: int = 8
    frequency: float = 1.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.harmonics, self.frequency) <= 0:
            raise InvalidInputError(f"width, depth, harmonics and frequency must be positive, got {self}.")

    def __call__(self, dim: int) -> nn.Module:
        """Makes the network."""
        return _AdditivePerceptron(dim, self)


class _AdditivePerceptron(nn.Module):
    """The network of :class:`AdditiveMLP`."""

    def __init__(self, dim: int, recipe: AdditiveMLP) -> None:
        super().__init__()
        self.frequencies = [recipe.frequency * (j + 1) for j in range(recipe.harmonics)]
        self.inner = Perceptron(dim, recipe.width, recipe.depth, dim)
        self.coefficients = nn.Linear(TIME_FEATURES, (1 + 2 * recipe.harmonics) * dim)
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        coefficients = self.coefficients(features).unflatten(-1, (-1, x.shape[-1]))
        return self.inner(features, x) + (coefficients * torch.stack([x, *_waves(x, self.frequencies)], -2)).sum(-2)


def _waves(x: Tensor, frequencies: list[float]) -> list[Tensor]:
    """Computes sine and cosine of each multiple of ``x``."""
    angles = [frequency * x for frequency in frequencies]
    return [wave for angle in angles for wave in (angle.sin(), angle.cos())]


@register
@dataclass(frozen=True)
class UNet:
    """Recipe: a small convolutional network with skip connections (Ronneberger et al. 2015, arXiv:1505.04597).

    ``levels`` resolutions, each half of the one before, with ``depth`` residual blocks of two 3 × 3 convolutions on the
    way down and up. Level ``k`` has ``2ᵏ·width`` channels. Time is added to the channels of each block. The last layer
    starts at zero.

    Args:
        shape: of one sample, ``(channels, height, width)``; samples are flat inside a bridge.
        width: channels of the finest level, a multiple of 8.
        levels: number of resolutions; height and width must be divisible by ``2^(levels − 1)``.
        depth: residual blocks of a level and direction.

    Raises:
        InvalidInputError: for another kind of shape, one that cannot be halved so often, or data of another size.
    """

    shape: tuple[int, int, int]
    width: int = 32
    levels: int = 2
    depth: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, "width", "levels", "depth")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InvalidInputError(f"shape must be (channels, height, width), got {tuple(self.shape)}.")
        if self.width % _GROUPS:
            raise InvalidInputError(f"width must be a multiple of {_GROUPS}, got {self.width}.")
        factor = 2 ** (self.levels - 1)
        if any(side % factor for side in self.shape[1:]):
            raise InvalidInputError(
                f"height and width must be divisible by {factor} for {self.levels} levels, got {self.shape[1:]}: use "
                "fewer levels, or pad the images."
            )

    def __call__(self, dim: int) -> nn.Module:
        """Makes the network; raises InvalidInputError unless a sample has ``dim`` numbers."""
        if math.prod(self.shape) != dim:
            raise InvalidInputError(
                f"UNet(shape={tuple(self.shape)}) is for samples of {math.prod(self.shape)} numbers, and the data have "
                f"{dim}."
            )
        return _UNet(self)


class _UNet(nn.Module):
    """The network of :class:`UNet`."""

    def __init__(self, recipe: UNet) -> None:
        super().__init__()
        self.shape, widths = recipe.shape, [recipe.width * 2**level for level in range(recipe.levels)]
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(recipe.shape[0], widths[0], 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, recipe.depth) for width in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(low, high, 2, stride=2) for low, high in pairs)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(high, low, 2, stride=2) for low, high in pairs)
        self.up = nn.ModuleList(_blocks(width, recipe.depth) for width in widths[:-1])
        self.norm = nn.GroupNorm(_GROUPS, widths[0])
        self.last = nn.Conv2d(widths[0], recipe.shape[0], 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast("Tensor", self.last.bias))

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Computes the output for features of time ``(1 | batch, TIME_FEATURES)`` and inputs ``(batch, dim)``."""
        h, kept = self.first(x.unflatten(-1, self.shape)), list[Tensor]()
        for level, blocks in enumerate(self.down):
            if level:
                kept.append(h)
                h = self.coarser[level - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(features, h)
        for level in reversed(range(len(kept))):
            h = self.finer[level](h) + kept[level]
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(features, h)
        return self.last(nn.functional.silu(self.norm(h))).flatten(1)


def _blocks(width: int, depth: int) -> nn.ModuleList:
    return nn.ModuleList(_Residual(width) for _ in range(depth))


class _Residual(nn.Module):
    """``h + C₂ s(n(C₁ s(n(h)) + A features))`` with the SiLU ``s`` and group normalisation ``n``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(TIME_FEATURES, width)

    def forward(self, features: Tensor, h: Tensor) -> Tensor:
        inner = self.layers[0](nn.functional.silu(self.norms[0](h))) + self.time(features)[..., None, None]
        return h + self.layers[1](nn.functional.silu(self.norms[1](inner)))


@register
class NetworkControl(nn.Module):
    """The control ``u(t, x) = output_scale · network(features(t), x / input_scale)``.

    Args:
        recipe: makes the network.
        dim: dimension of the state.
        horizon: ``T``, to which time is scaled.
        output_scale: the size that controls are expected to have, so that the network works on numbers of order one.
        input_scale: the size that states are expected to have.

    Raises:
        InvalidInputError: if horizon or input_scale is not positive.
    """

    def __init__(
        self, recipe: NetworkRecipe, dim: int, horizon: float, output_scale: float = 1.0, input_scale: float = 1.0
    ) -> None:
        if not min(horizon, input_scale) > 0:
            raise InvalidInputError(f"horizon and input_scale must be positive, got {horizon} and {input_scale}.")
        super().__init__()
        self.arguments: dict[str, object] = {
            "recipe": recipe,
            "dim": dim,
            "horizon": horizon,
            "output_scale": output_scale,
            "input_scale": input_scale,
        }
        self.horizon = horizon
        self.output_scale = output_scale
        self.input_scale = input_scale
        self.network = recipe(dim)

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at ``(t, x)`` in the network's own dtype; returns it in that of ``x``."""
        own = next(self.network.parameters())
        inside = x.to(own.dtype) / self.input_scale
        return self.output_scale * self.network(time_features(t, self.horizon, inside), inside).to(x.dtype)


def seeded_control(
    recipe: NetworkRecipe, dim: int, horizon: float, output_scale: float, seed: Seed, input_scale: float = 1.0
) -> NetworkControl:
    """Makes a :class:`NetworkControl` whose initial weights follow from ``seed``."""
    return seeded(lambda: NetworkControl(recipe, dim, horizon, output_scale, input_scale), seed)
