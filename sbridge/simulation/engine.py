"""torchsde in index time: the only file that imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torchsde
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.random import NormalNoise

Noise = Tensor | NormalNoise
"""Standard normal ``ξ``: a tensor ``(steps, batch, dim)``, or noise drawn again when needed."""


@runtime_checkable
class IndexEquation(Protocol):
    """An equation with a drift over one unit of index time and diffusion 1."""

    def f(self, index: Tensor, x: Tensor, /) -> Tensor:
        """How far the step from knot ``index`` moves ``x``, noise apart."""
        ...

    def g(self, index: Tensor, x: Tensor, /) -> Tensor:
        """Returns ones like ``x``."""
        ...


class Increments(torchsde.BaseBrownian):
    """Increments over unit intervals of index time, addressed by the interval's left end."""

    def __init__(self, source: Callable[[int], Tensor], like: Tensor) -> None:
        self._source = source
        self._like = like

    def __call__(
        self,
        ta: Tensor,
        tb: Tensor | None = None,
        return_U: bool = False,  # noqa: FBT001, FBT002 - torchsde's flags
        return_A: bool = False,  # noqa: FBT001, FBT002
    ) -> Tensor:
        """Returns the increment over ``[ta, ta + 1]``."""
        return self._source(int(ta.item()))

    def __repr__(self) -> str:
        return f"Increments(shape={tuple(self.shape)})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device of the states."""
        return self._like.device

    @property
    def shape(self) -> torch.Size:
        """The shape of one increment."""
        return self._like.shape

    @property
    def levy_area_approximation(self) -> str:
        """``none``: the diffusion does not depend on the state, so no area is needed."""
        return "none"


def euler(equation: IndexEquation, x0: Tensor, increment: Callable[[int], Tensor], steps: int) -> Tensor:
    """Runs ``x_{k+1} = x_k + f(k, x_k) + increment(k)`` for ``steps`` steps; returns the last state."""
    return torchsde.sdeint(equation, x0, _ends(steps), bm=Increments(increment, x0), method="euler", dt=1)[-1]


def reversible_heun(equation: IndexEquation, x0: Tensor, increment: Callable[[int], Tensor], steps: int) -> Tensor:
    """Runs the reversible Heun scheme (Kidger, Foster, Li & Lyons 2021, arXiv:2105.13493, Alg. 1) to the last state."""
    brownian = Increments(increment, x0)
    return torchsde.sdeint(equation, x0, _ends(steps), bm=brownian, method="reversible_heun", dt=1)[-1]


def reversible_heun_adjoint(
    equation: IndexEquation, x0: Tensor, increment: Callable[[int], Tensor], steps: int, parameters: tuple[Tensor, ...]
) -> Tensor:
    """Computes the same state, with a backward pass that reconstructs the path (ibid.)."""
    return torchsde.sdeint_adjoint(
        equation,  # pyright: ignore[reportArgumentType] - a module is needed only where parameters are not named
        x0,
        _ends(steps),
        bm=Increments(increment, x0),
        method="reversible_heun",
        adjoint_method="adjoint_reversible_heun",
        adjoint_params=parameters,
        dt=1,
    )[-1]


def _ends(steps: int) -> Tensor:
    # The two ends only: torchsde interpolates and keeps a state for every time it is asked for.
    return torch.tensor([0.0, float(steps)], dtype=torch.float64, device="cpu")


def noise_of_step(noise: Noise, steps: int, x: Tensor) -> Callable[[int], Tensor]:
    """Returns ``k ↦ ξ_k``; raises InvalidInputError unless states and noise fit."""
    if x.ndim != 2 or not x.is_floating_point():
        raise InvalidInputError(f"states must be floating point of shape (batch, dim), got {x.dtype} {tuple(x.shape)}.")
    shape = tuple(noise.shape) if isinstance(noise, Tensor) else (noise.steps, noise.batch, noise.dim)
    if shape != (steps, *x.shape) or noise.dtype != x.dtype:
        raise InvalidInputError(
            f"noise has shape {shape} and is {noise.dtype}; {steps} steps of these states need "
            f"{(steps, *x.shape)} in {x.dtype}."
        )
    return noise.unbind(0).__getitem__ if isinstance(noise, Tensor) else noise.step


def check_control(u: object, x: Tensor) -> None:
    """Raises InvalidInputError unless ``u`` is a tensor of the shape of ``x``, in no wider dtype."""
    if isinstance(u, Tensor) and u.shape == x.shape and torch.promote_types(u.dtype, x.dtype) == x.dtype:
        return
    got = f"{u.dtype} {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
    raise InvalidInputError(
        f"a control maps (t, x) to a tensor like x; for x = {x.dtype} {tuple(x.shape)} it returned {got}."
    )


def is_finite(x: Tensor) -> bool:
    """Returns whether no entry is NaN or infinite."""
    return bool(torch.isfinite(x).all())


def require_finite(value: Tensor, name: str, step: int, t: float) -> None:
    """Raises NonFiniteError with step, time and number of rows unless all of ``value`` is finite."""
    if is_finite(value):
        return
    rows = int((~torch.isfinite(value)).reshape(len(value), -1).any(1).sum())
    raise NonFiniteError(
        f"{name} is NaN or infinite at step {step} (t = {t:g}) in {rows} of {len(value)} rows. Use smaller steps "
        "(a finer TimeGrid), or check the control and the drift there."
    )
