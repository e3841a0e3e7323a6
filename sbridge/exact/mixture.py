"""Gaussian-mixture potentials under a linear reference: tilt, plan and control in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from sbridge.controls.base import Time
from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.exact.conditional import ConditionalMixture
from sbridge.exact.tilts import DensePotentialAt, PotentialAt, SpectralPotentialAt, Spectrum, Tilt
from sbridge.laws import GaussianMixture
from sbridge.linear import LinearMap
from sbridge.processes import LinearProcess, Transition
from sbridge.processes.base import check_time
from sbridge.storage.registry import register

_CHUNK = 2**21  # numbers (rows × components × dim) that are looked at together, 16 MB in float64


@register
@dataclass(frozen=True, eq=False)
class MixturePotential:
    """The potential ``e^{g(y)} = Σ_k exp(b_k + η_k·y − ½ yᵀ Λ_k y)``, and a linear process tilted by it.

    With ``Φ, k, Q`` of ``X_T | X_t = x ~ N(m, Q)``, ``m = Φx + k``, and ``M_k = (I + QΛ_k)⁻¹``::

        φ(t, x) = E[e^{g(X_T)} | X_t = x] = Σ_k exp(b_k(t) + η_k(t)·m − ½ mᵀ Λ_k(t) m)
        Λ_k(t) = Λ_k M_k      η_k(t) = M_kᵀ η_k      b_k(t) = b_k − ½ log det(I + QΛ_k) + ½ η_kᵀ M_k Q η_k
        u*(t, x) = σᵀ Φᵀ Σ_k r_k (η_k(t) − Λ_k(t) m)      r_k: k-th term of φ over φ
        X_T | X_t = x ~ Σ_k r_k N(M_k (m + Q η_k), M_k Q)

    regular up to ``t = T``. For a Brownian reference this is the parametrisation of Korotin et al. 2024
    (arXiv:2310.01174), whose ``v(y)`` is ``e^{g(y) − |y|²/2ε}``. A precision ``Λ_k`` need not be positive:
    a plan with a larger variance than its reference needs negative ones. The condition is ``Λ_k + Q_T⁻¹ > 0``, so that
    ``c(x) = φ(0, x)`` is finite. Numbers are float64; results take dtype and device of the states. Times are floats,
    or tensors ``()`` or ``(batch,)``.

    Args:
        process: the reference.
        logits: ``b``, shape ``(K,)``.
        shifts: ``η``, shape ``(K, dim)``.
        precisions: ``Λ``, diagonals ``(K, dim)`` or symmetric matrices ``(K, dim, dim)``.

    Raises:
        UnsupportedError: if the process is not linear.
        InvalidInputError: for other shapes, numbers that are not finite, or a tilt with an infinite ``c``.
    """

    process: LinearProcess
    logits: Tensor
    shifts: Tensor
    precisions: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"a mixture potential needs a LinearProcess such as BrownianMotion, got {type(self.process).__name__}."
            )
        for name in ("logits", "shifts", "precisions"):
            value = getattr(self, name).detach().to(dtype=torch.float64, device="cpu")
            object.__setattr__(self, name, value)
        count, dim = self.shifts.shape if self.shifts.ndim == 2 else (-1, -1)
        shape = tuple(self.precisions.shape)
        if self.logits.shape != (count,) or shape not in ((count, dim), (count, dim, dim)) or count < 1:
            raise InvalidInputError(
                "a mixture potential needs logits (K,), shifts (K, dim) and precisions (K, dim) or (K, dim, dim), got "
                f"{tuple(self.logits.shape)}, {tuple(self.shifts.shape)} and {shape}."
            )
        if self.process.dim not in (None, dim):
            raise InvalidInputError(f"the process has dimension {self.process.dim}, the potential has {dim}.")
        if not all(bool(getattr(self, n).isfinite().all()) for n in ("logits", "shifts", "precisions")):
            raise InvalidInputError("the numbers of a mixture potential must be finite.")
        self._check_finite_tilt()

    @classmethod
    def of(cls, process: LinearProcess, mixture: GaussianMixture) -> MixturePotential:
        """Makes ``e^g`` the density ``Σ_k w_k N(·; μ_k, Σ_k)``."""
        means = mixture.means.double()
        roots = torch.linalg.cholesky(mixture.covariances.double())
        precisions = torch.cholesky_inverse(roots)
        shifts = (precisions @ means.unsqueeze(-1)).squeeze(-1)
        volume = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * mixture.dim * math.log(2.0 * math.pi)
        logits = mixture.weights.double().log() - volume - 0.5 * (means * shifts).sum(-1)
        return cls(process, logits, shifts, precisions)

    @property
    def dim(self) -> int:
        """The dimension of the states."""
        return self.shifts.shape[1]

    @property
    def components(self) -> int:
        """The number of components ``K``."""
        return len(self.logits)

    def __call__(self, y: Tensor) -> Tensor:
        """Computes ``g(y)``, shape ``(batch,)``."""
        return self.log_potential(self.process.horizon, y)

    def log_normaliser(self, x: Tensor) -> Tensor:
        """Computes ``log c(x) = log E_R[e^{g(X_T)} | X_0 = x]``, shape ``(batch,)``."""
        return self.log_potential(0.0, x)

    def log_potential(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``log φ(t, x)``, shape ``(batch,)``."""
        return torch.cat([torch.logsumexp(part.exponents, 1) for part in self._parts(t, x)]).to(x)

    def gradient(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``∇_x log φ(t, x)``, shape ``(batch, dim)``."""
        return torch.cat([part.gradient for part in self._parts(t, x)]).to(x)

    def far_mean(self, t: Time, x: Tensor) -> Tensor:
        """Computes ``E[X_T | X_t = x]`` under the tilted process, shape ``(batch, dim)``."""
        weighted = ((torch.softmax(part.exponents, 1), part.means) for part in self._parts(t, x))
        return torch.cat([torch.einsum("nk,nkd->nd", *both) for both in weighted]).to(x)

    def conditional(self, x: Tensor, t: Time = 0.0) -> ConditionalMixture:
        """Returns the distribution of ``X_T`` given ``X_t = x`` under the tilted process; at ``t = 0`` the plan."""
        parts = [part.far for part in self._parts(t, x)]
        covariances = parts[0].covariances
        if covariances.shape[0] > 1 and len(parts) > 1:
            covariances = torch.cat([part.covariances for part in parts])
        logits, means = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "means"))
        return ConditionalMixture(logits, means, covariances, x.dtype)

    @cached_property
    def _whole(self) -> Transition:
        return self.process.transition(0.0, self.process.horizon)

    @property
    def _maps(self) -> LinearMap:
        return LinearMap(self.precisions, dense=self.precisions.ndim == 3)

    def _check_finite_tilt(self) -> None:
        """Checks ``I + LᵀΛL > 0`` with ``Q_T = LLᵀ``."""
        root = self._whole.root
        inner = root.T @ self._maps @ root + LinearMap(torch.ones(1, dtype=torch.float64, device="cpu"))
        failed = torch.linalg.cholesky_ex(inner.values).info != 0 if inner.dense else (inner.values <= 0).any(-1)
        if bool(failed.any()):
            raise InvalidInputError(
                f"components {failed.nonzero().flatten().tolist()[:10]} tilt the reference by more than its own "
                "Gaussian tails: their precision Λ must exceed −Q_T⁻¹; otherwise E[exp g(X_T)] is infinite."
            )

    def _parts(self, t: Time, x: Tensor) -> Iterator[Tilt]:
        """Yields the rows of ``x`` in pieces of bounded size."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InvalidInputError(f"x must have shape (rows, {self.dim}), got {tuple(x.shape)}.")
        t = check_time(t, self.process.horizon)
        times = t if isinstance(t, Tensor) and t.ndim else None
        if times is not None and times.shape != x.shape[:1]:
            raise InvalidInputError(f"times must be one number or one per row ({len(x)}), got {tuple(times.shape)}.")
        matrices = self.components * self.dim * (self.dim if times is not None and self._maps.dense else 1)
        size = max(1, _CHUNK // matrices)
        at = self._at(t, x.device) if times is None else None
        for start in range(0, max(len(x), 1), size):
            rows = slice(start, start + size)
            yield (at or self._at(t if times is None else times[rows], x.device))(x[rows].double())

    def _at(self, t: Time, device: torch.device) -> Callable[[Tensor], Tilt]:
        """Returns a function that makes the tilt of rows."""
        ahead = self.process.transition(t, self.process.horizon)
        if self._maps.dense and ahead.covariance.dim is None:
            return partial(SpectralPotentialAt, ahead, self._spectrum.to(device))
        return partial(DensePotentialAt, PotentialAt.of(ahead, self.logits, self.shifts, self._maps, device))

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self.logits, self.shifts, self.precisions)


@register
@dataclass(frozen=True, eq=False)
class MixtureControl:
    """The control ``u*(t, x) = σᵀ ∇ log φ(t, x)``, regular on all of ``[0, T]``."""

    potential: MixturePotential

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the control at ``(t, x)``."""
        return self.potential.process.scale(t).T.to(x)(self.potential.gradient(t, x))


@register
@dataclass(frozen=True, eq=False)
class MixtureKernel:
    """The plan ``π(y | x)`` of a mixture potential: the distribution of ``X_T`` given ``X_0 = x``."""

    potential: MixturePotential

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one far end per row."""
        return self.potential.conditional(x).sample(generator)

    def mean(self, x: Tensor) -> Tensor:
        """Computes the conditional mean per row."""
        return self.potential.far_mean(0.0, x)
