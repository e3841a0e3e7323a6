"""Schrödinger's urn: the probability that particles are transported between cells in given numbers."""

from __future__ import annotations

import numpy as np
import torch

from sbridge.errors import InvalidInputError


def log_transport_probability(counts: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Computes ``log Π_k N_k! Π_l g_kl^{c_kl}/c_kl!``, the multinomial probability of a transport (eq. (3.7)).

    ``N_k = Σ_l c_kl`` particles start in cell ``k``, and each moves to cell ``l`` with probability ``g_kl``. By
    Stirling's formula it is ``−N·KL(c/N ‖ p_0 g)`` up to logarithms of ``N`` (eq. (3.8)–(3.13)).

    Args:
        counts: ``c``, shape ``(…, rows, columns)``: non-negative; broadcast over leading axes.
        kernel: ``g``, shape ``(rows, columns)``, with rows that sum to one.

    Returns:
        Shape ``(…)``, in nats; ``−inf`` where particles move that cannot.

    Raises:
        InvalidInputError: for shapes that do not fit, negative counts, or a kernel that is not one.

    Source: Schrödinger 1931; Premkumar 2023, §3.1.

    Examples:
        >>> import numpy as np
        >>> import sbridge as sb
        >>> both = np.full((2, 2), 0.5)
        >>> round(float(np.exp(sb.transport.log_transport_probability(np.array([[1, 1], [2, 0]]), both))), 6)
        0.125
    """
    counts, kernel = np.asarray(counts, dtype=np.float64), np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2 or counts.shape[-2:] != kernel.shape:
        raise InvalidInputError(f"counts {counts.shape} and kernel {kernel.shape} must have the same cells.")
    if not (counts >= 0.0).all():
        raise InvalidInputError("counts of particles must not be negative.")
    if not ((kernel >= 0.0).all() and np.allclose(kernel.sum(1), 1.0, atol=1e-6)):
        raise InvalidInputError("the rows of a kernel are probabilities: not negative, with sum one.")
    c, g = torch.from_numpy(counts), torch.from_numpy(kernel)
    terms = torch.special.xlogy(c, g) - torch.lgamma(c + 1.0)
    return (terms.sum((-2, -1)) + torch.lgamma(c.sum(-1) + 1.0).sum(-1)).numpy()
