"""Scores given by networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbridge.controls import NetworkRecipe
from sbridge.controls.base import Time
from sbridge.controls.networks import time_features
from sbridge.diffusion.conversions import as_times
from sbridge.errors import InvalidInputError
from sbridge.linear import LinearMap
from sbridge.processes import LinearProcess
from sbridge.processes.base import Transition
from sbridge.storage.registry import register


@register
class NetworkScore(nn.Module):
    """The score ``s(t, x) = −P⁻¹(x − m) + C F(features(t), z)``: that of noised isotropic data plus a network.

    For data ``N(mean, scale² I)`` the marginal of ``X_t`` is ``N(m, P)`` with ``P = scale² ΦΦᵀ + Q``, and the denoising
    target ``∇ log p(x | x_0)`` has mean ``−P⁻¹(x − m)`` and covariance ``Q⁻¹ − P⁻¹ = C Cᵀ`` given ``x``. So the inputs
    ``z = P^{−½}(x − m)`` and the targets of the network ``F`` have variance one at every time. For a scalar process
    this is the preconditioning of Karras et al. 2022 (arXiv:2206.00364, table 1), whose ``F`` for a
    variance-preserving process with scale 1 is v-prediction.

    Args:
        recipe: makes ``F``; times enter through :func:`~sbridge.controls.networks.time_features` of ``√(t/T)``, which
            resolve small times.
        process: the noising process.
        dim: dimension of the state.
        mean: mean of the data, shape ``(dim,)``; zeros by default.
        scale: standard deviation of the data, root mean square over coordinates.

    Raises:
        InvalidInputError: for a mean of another shape, or a scale that is not positive; when called at ``t = 0``.
    """

    mean: Tensor

    def __init__(
        self, recipe: NetworkRecipe, process: LinearProcess, dim: int, mean: Tensor | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        mean = torch.zeros(dim, dtype=torch.float64, device="cpu") if mean is None else mean.detach().clone()
        if mean.shape != (dim,) or not scale > 0:
            raise InvalidInputError(
                f"the mean of the data must have shape ({dim},) and their scale be positive, got "
                f"{tuple(mean.shape)} and {scale}."
            )
        self.arguments: dict[str, object] = {
            "recipe": recipe,
            "process": process,
            "dim": dim,
            "mean": mean,
            "scale": scale,
        }
        self.process = process
        self.scale = scale
        self.register_buffer("mean", mean, persistent=False)
        self.network = recipe(dim)

    def forward(self, t: Time, x: Tensor) -> Tensor:
        """Computes the score at ``(t, x)`` in the network's own dtype; returns it in that of ``x``."""
        times = as_times(t, x)
        if bool((times <= 0).any()):
            raise InvalidInputError(
                "a network score is defined for t > 0: at t = 0 its target, the score of a point, is infinite. Use the "
                "first knot of a time grid."
            )
        law = self.process.transition(0.0, t)
        total, inner = self._maps(law)
        start = law.mean(self.mean.to(x).expand(len(x), -1))
        white = total.cholesky().inverse().to(x)(x - start)
        own = next(self.network.parameters())
        clock = (times / self.process.horizon).sqrt()
        residual = self.network(time_features(clock, 1.0, white.to(own.dtype)), white.to(own.dtype)).to(x)
        return inner.to(x)(residual) - total.inverse().to(x)(x - start)

    def _maps(self, law: Transition) -> tuple[LinearMap, LinearMap]:
        """Computes ``P`` and ``C``: ``Q⁻¹ − P⁻¹ = Q⁻¹ (scale² ΦΦᵀ) P⁻¹``, without cancellation."""
        signal = law.map @ law.map.T * self.scale**2
        total = signal + law.covariance
        gap = law.precision @ signal @ total.inverse()
        return total, (LinearMap(0.5 * (gap.values + gap.values.mT), dense=True) if gap.dense else gap).cholesky()
