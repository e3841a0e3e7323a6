"""Linear-quadratic control problems with the chain's exact optimum, for the tests of control."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sbridge.laws import Point
from sbridge.problems import ControlProblem
from sbridge.processes import DriftProcess


@dataclass(frozen=True)
class Quadratic:
    """``dX = A X dt + σ dW``, ``f = xᵀPx``, ``g = xᵀQx`` on ``[0, 1]`` with ``steps`` Euler steps."""

    A: Tensor
    P: Tensor
    Q: Tensor
    sigma: Tensor
    start: Tensor
    steps: int

    @property
    def problem(self) -> ControlProblem:
        process = DriftProcess(lambda t, x: x @ self.A.to(x).mT, self.sigma, 1.0, len(self.start))
        return ControlProblem(
            process,
            Point(self.start),
            lambda t, x: (x @ self.P.to(x) * x).sum(1),
            lambda x: (x @ self.Q.to(x) * x).sum(1),
        )

    def riccati(self) -> tuple[Tensor, float, float]:
        """Feedback gains ``u_k = G_k x``, the optimum over feedback controls, and ``−log E α`` of the chain."""
        eye, delta = torch.eye(len(self.start), dtype=torch.float64), 1.0 / self.steps
        M, F, s = eye + delta * self.A, self.Q, self.sigma
        gains, best, tilted = [], torch.zeros(()), torch.zeros(())
        for _ in range(self.steps):
            curvature = eye + 2 * delta * s.mT @ F @ s
            gains.append(-2 * torch.linalg.solve(curvature, s.mT @ F @ M))
            best = best + delta * torch.trace(s.mT @ F @ s)
            tilted = tilted + 0.5 * torch.logdet(curvature)
            F = delta * self.P + M.mT @ F @ M + delta * M.mT @ F @ s @ gains[-1]
        whole = self.start.double() @ F @ self.start.double()
        return torch.stack(gains[::-1]), float(whole + best), float(whole + tilted)

    @property
    def optimal(self) -> "Feedback":
        return Feedback(self.riccati()[0])


@dataclass(frozen=True, eq=False)
class Feedback:
    """``u(t_k, x) = G_k x`` on a uniform grid of ``[0, 1]``."""

    gains: Tensor

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        k = (torch.as_tensor(t, dtype=torch.float64).reshape(-1) * len(self.gains)).round().long()
        gain = self.gains.to(x)[k.clamp_max(len(self.gains) - 1)]
        return (gain @ x.unsqueeze(2)).squeeze(2)


def small(steps: int = 10, dtype: torch.dtype = torch.float64) -> Quadratic:
    """Two coordinates, nothing symmetric or commuting."""

    def tensor(value: object) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    return Quadratic(
        A=tensor([[0.3, -0.8], [0.5, 0.1]]),
        P=tensor([[0.8, 0.2], [0.2, 0.4]]),
        Q=tensor([[0.7, -0.1], [-0.1, 0.9]]),
        sigma=tensor([[1.0, 0.0], [0.4, 0.8]]),
        start=torch.tensor([0.7, -1.0], dtype=dtype),
        steps=steps,
    )


def isotropic(dim: int, rate: float, running: float, terminal: float, steps: int) -> Quadratic:
    """``b = rate·x``, ``f = running·|x|²``, ``g = terminal·|x|²``, ``|x_0|² = dim/4``, in float32."""
    eye = torch.eye(dim, dtype=torch.float64)
    return Quadratic(rate * eye, running * eye, terminal * eye, eye, torch.full((dim,), 0.5), steps)
