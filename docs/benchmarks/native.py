"""Plain torchsde, in time units and with its own Brownian motion, for comparison in the benchmark."""

from __future__ import annotations

import torch
import torchsde
from torch import Tensor

from sbridge.controls import Control


class _BrownianWithControl:
    """``dX = u dt + dW`` in the form that torchsde takes."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, control: Control) -> None:
        self._control = control

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        return self._control(t, x)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@torch.no_grad()
def native_euler(control: Control, x0: Tensor, steps: int, seed: int, hint: float | None) -> Tensor:
    """Euler states of ``dX = u dt + dW`` on ``[0, 1]``, shape ``(steps + 1, batch, dim)``.

    Args:
        control: ``u``.
        x0: start states.
        steps: number of steps; rounding of the times may add one.
        seed: of torchsde's Brownian motion.
        hint: the expected step size, or ``None``.
    """
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=x0.dtype)
    brownian = torchsde.BrownianInterval(
        0.0, 1.0, size=tuple(x0.shape), dtype=x0.dtype, device=x0.device, entropy=seed, dt=hint
    )
    equation = _BrownianWithControl(control)
    return torchsde.sdeint(equation, x0, times, bm=brownian, method="euler", dt=1.0 / steps)  # type: ignore[return-value]
