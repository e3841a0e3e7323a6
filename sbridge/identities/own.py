"""Identities on your own data and your own network: a setting from arrays and a plain ``torch`` module."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sbridge.controls.base import Time
from sbridge.diffusion.conversions import score_from_noise
from sbridge.errors import InvalidInputError, UnsupportedError, shown
from sbridge.identities.settings import Setting
from sbridge.laws import Samples, as_rows
from sbridge.processes import LinearProcess, VariancePreserving
from sbridge.random import Seed, as_seed, derive, generator

MAX_ROWS = 256
"""Rows of an empirical distribution: every identity of a run uses the same ones."""
Network = Callable[[Tensor, Tensor], Tensor]
"""A function ``(t, x) → (batch, dim)`` of times ``(batch,)`` in ``[0, T]`` and states ``(batch, dim)``."""


class Predicts(enum.Enum):
    """What a network returns."""

    SCORE = "score"
    """``∇log ρ_t(x)``."""
    NOISE = "noise"
    """``ε`` in ``x = Φ x_0 + k + L ε``, as denoising diffusion models do."""


@dataclass(frozen=True, eq=False)
class PlainScore:
    """The score of a network that knows nothing of this package.

    Args:
        network: called with one time for each row, in the dtype of its parameters.
        process: the noising process.
        predicts: what it returns.

    Raises:
        InvalidInputError: when called, if the network returns another shape, or numbers that are not finite.
    """

    network: Network
    process: LinearProcess
    predicts: Predicts = Predicts.SCORE

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """Computes the score, shape ``(batch, dim)``."""
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        own = next(iter(self.network.parameters()), x) if isinstance(self.network, nn.Module) else x
        found = self.network(times.to(own), x.to(own))
        if not isinstance(found, Tensor) or found.shape != x.shape or not bool(found.isfinite().all()):
            given = f"{tuple(found.shape)}, some not finite" if isinstance(found, Tensor) else shown(found)
            raise InvalidInputError(
                f"the network must return finite numbers of shape {tuple(x.shape)} for times ({len(x)},) and states "
                f"{tuple(x.shape)}; it returned {given}."
            )
        values = found.to(x)
        return values if self.predicts is Predicts.SCORE else score_from_noise(self.process, t, values)


def own_setting(
    data: Tensor | np.ndarray,
    *,
    score: Network | None = None,
    process: LinearProcess | None = None,
    predicts: Predicts = Predicts.SCORE,
    name: str = "your data",
    samples: int = 4000,
    max_rows: int = MAX_ROWS,
    seed: Seed = 0,
) -> Setting:
    """Makes the setting of an empirical distribution and, optionally, of a network that learned its score.

    Args:
        data: rows, shape ``(n, dim)``.
        score: a plain function or module ``(t, x) → (batch, dim)``; ``None`` for no network.
        process: the noising process under which it was trained; ``None`` for a variance-preserving process with the
            mean and the standard deviation of the data.
        predicts: what ``score`` returns.
        name: of the setting, for tables.
        samples: paths or points in a Monte Carlo mean.
        max_rows: rows of the empirical distribution; more are subsampled at random.
        seed: of all draws.

    Raises:
        InvalidInputError: for fewer than two different rows, NaN, or a network that does not fit.
        UnsupportedError: for a process that is not linear.
    """
    rows, seed = as_rows(data, "data", least=2).double(), as_seed(seed)
    if process is None:
        spread = float(rows.var(0).mean().sqrt())
        if not spread > 0.0:
            raise InvalidInputError("all rows of the data are equal, so there is no score to check.")
        process = VariancePreserving(stationary_std=spread, mean=rows.mean(0))
    if not isinstance(process, LinearProcess):
        raise UnsupportedError(
            f"transitions of a {type(process).__name__} have no closed form, so there is no exact score to compare "
            "with. Use a linear process."
        )
    rows = thinned(rows, max_rows, seed)
    network = None if score is None else PlainScore(score, process, predicts)
    if network is not None:
        with torch.no_grad():
            network(0.5 * process.horizon, rows[:2])  # refuses at once what does not fit
    return Setting(name, process, Samples(rows), seed, samples, network=network)


def thinned(rows: Tensor, most: int, seed: int) -> Tensor:
    """Returns at most so many rows, drawn at random without replacement."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(derive(seed, "thinning")))[:most]]
