"""One process of every kind, for tests that run over all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

import sbridge as sb
from sbridge.laws import Gaussian
from sbridge.linear import LinearMap
from sbridge.problems import BridgeProblem
from sbridge.processes import (
    BrownianMotion,
    CosineSchedule,
    LinearProcess,
    LinearSchedule,
    OrnsteinUhlenbeck,
    Process,
    Transition,
    VarianceExploding,
    VariancePreserving,
)
from sbridge.processes.base import Time
from sbridge.storage.registry import register

SOLVERS = (
    sb.AdjointBridge(),
    sb.GaussianBridge(),
    sb.IMF(),
    sb.IPF(),
    sb.MatchedBridge(),
    sb.MixtureBridge(),
    sb.SinkhornBridge(),
    sb.ScoreMatching(),
)

DIM = 3
# Far from symmetric, with a rotation and a slow and a fast direction.
RATE = torch.tensor([[1.0, 0.9, 0.0], [-1.1, 0.5, 0.3], [0.2, 0.0, 2.5]], dtype=torch.float64)
SIGMA = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.8, 0.1], [0.1, -0.3, 0.5]], dtype=torch.float64)
DIAGONAL = [0.5, 1.0, 1.8]
MEAN = [1.0, -2.0, 0.5]


def wave(t: Tensor) -> Tensor:
    return 0.8 + 0.4 * torch.sin(3.0 * t)


def wave_diagonal(t: Tensor) -> Tensor:
    return torch.stack([1.0 + 0.5 * t, torch.exp(-0.5 * t), 0.5 + 0.2 * torch.cos(2.0 * t)], -1)


def wave_matrix(t: Tensor) -> Tensor:
    return SIGMA * (1.0 + 0.5 * t).reshape(-1, 1, 1)


SIGMAS = {
    "scalar": 0.7,
    "diagonal": DIAGONAL,
    "matrix": SIGMA,
    "scalar(t)": wave,
    "diagonal(t)": wave_diagonal,
    "matrix(t)": wave_matrix,
}
RATES = {"scalar": 1.3, "zero": 0.0, "growing": -0.6, "diagonal": [0.0, 1.0, -0.7], "matrix": RATE}


class Lagging(LinearProcess):
    """A process from outside the package: ``dX = (cos(t) − X/2) dt + dW``, all closed forms."""

    horizon = 1.7

    @property
    def dim(self) -> int | None:
        return None

    def linear(self, t: Time) -> LinearMap:
        return LinearMap(torch.full_like(_column(t), -0.5))

    def offset(self, t: Time) -> Tensor:
        return torch.cos(_column(t))

    def scale(self, t: Time) -> LinearMap:
        return LinearMap(torch.ones_like(_column(t)))

    def transition(self, s: Time, t: Time) -> Transition:
        s, t = torch.broadcast_tensors(_column(s), _column(t))
        decay = torch.exp(-0.5 * (t - s))

        def forced(r: Tensor) -> Tensor:  # y' = cos r − y/2
            return (0.5 * torch.cos(r) + torch.sin(r)) / 1.25

        return Transition(LinearMap(decay), forced(t) - decay * forced(s), LinearMap(1.0 - decay.square()))


def _column(t: Time) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64).unsqueeze(-1)


def linear_processes() -> dict[str, LinearProcess]:
    """Every family × every form of its coefficients, horizons 1 and others."""
    found: dict[str, LinearProcess] = {"third party": Lagging()}
    for i, (form, sigma) in enumerate(SIGMAS.items()):
        horizon = (1.0, 2.5, 0.3)[i % 3]
        found[f"Brownian, {form} σ"] = BrownianMotion(sigma, horizon)
        for j, (kind, rate) in enumerate(RATES.items()):
            mean = 0.0 if form == "scalar" else MEAN
            horizon = (1.0, 0.4, 2.0)[(i + j) % 3]
            found[f"OU, {kind} rate, {form} σ"] = OrnsteinUhlenbeck(rate, sigma, mean, horizon)
    found["VP linear"] = VariancePreserving()
    found["VP linear, long"] = VariancePreserving(LinearSchedule(0.2, 3.0), DIAGONAL, 2.5, MEAN)
    found["VP cosine"] = VariancePreserving(CosineSchedule(), 0.6)
    found["VP cosine, cut off early"] = VariancePreserving(CosineSchedule(0.1, 4.0), SIGMA, 1.7, 0.4)
    found["VE scalar"] = VarianceExploding(0.05, 3.0)
    found["VE diagonal"] = VarianceExploding([0.1, 0.2, 0.3], [1.0, 0.9, 1.5], 2.5)
    return found


LINEAR = linear_processes()
# Every kind of reference in one dimension, where a grid is the judge.
ON_A_LINE: dict[str, LinearProcess] = {
    "Brownian": BrownianMotion(0.8),
    "Brownian, growing": BrownianMotion(lambda t: 0.5 + t, 1.5),
    "OU": OrnsteinUhlenbeck(rate=1.2, sigma=0.9, mean=0.4),
    "OU, expanding": OrnsteinUhlenbeck(rate=-0.7, sigma=0.9),
    "VP": VariancePreserving(LinearSchedule(0.1, 4.0)),
    "VE": VarianceExploding(0.1, 2.0),
}
# Of each kind one in the plane, with a Gaussian at either end: for solvers that learn.
IN_THE_PLANE: dict[str, LinearProcess] = {
    "Brownian": BrownianMotion(1.0),
    "Brownian, diagonal": BrownianMotion([0.6, 1.4], 2.0),
    "OU, matrix": OrnsteinUhlenbeck([[1.0, 0.6], [-0.8, 0.4]], [[0.8, 0.3], [0.1, 1.0]], [0.3, -0.5], 1.3),
    "VP": VariancePreserving(mean=[0.5, 0.0], horizon=0.5),
}
M0, MT = torch.tensor([[-1.0, 0.2], [1.0, 0.5]], dtype=torch.float64)
A, B = torch.tensor([[[0.5, 0.2], [0.2, 1.0]], [[1.5, -0.4], [-0.4, 0.7]]], dtype=torch.float64)
# For tests that cost more than a few milliseconds each.
FEW = {
    name: LINEAR[name]
    for name in (
        "third party",
        "Brownian, scalar σ",
        "Brownian, matrix(t) σ",
        "OU, scalar rate, diagonal σ",
        "OU, diagonal rate, matrix σ",
        "OU, matrix rate, matrix σ",
        "OU, matrix rate, diagonal(t) σ",
        "VP linear, long",
        "VP cosine, cut off early",
        "VE diagonal",
    )
}


def gaussians(reference: LinearProcess, dtype: torch.dtype = torch.float64) -> BridgeProblem:
    """Ends ``N(M0, A)`` and ``N(MT, B)``."""
    return BridgeProblem(Gaussian(M0.to(dtype), A.to(dtype)), Gaussian(MT.to(dtype), B.to(dtype)), reference)


def is_function_of_time(process: Process) -> bool:
    """Whether its σ is a plain function, which files cannot name."""
    return callable(getattr(process, "sigma", None))


def double_well(t: float | Tensor, x: Tensor) -> Tensor:
    weight = 1.0 + t if isinstance(t, float) or t.ndim == 0 else (1.0 + t).unsqueeze(-1)
    return -4.0 * weight * x * (x.square() - 1.0)


@register
@dataclass(frozen=True)
class Restoring:
    strength: float

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        return -self.strength * x


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(rows: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64, dim: int = DIM) -> Tensor:
    return torch.randn(rows, dim, generator=seeded(seed), dtype=torch.float64).to(dtype)


def dense(law: Transition, dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    covariance = law.covariance.expanded(dim)
    return law.map.expanded(dim), law.offset.expand(covariance.shape[:-1]), covariance


def tensor(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
