"""Seeds, generators, and standard normal noise that can be stored or drawn again.

Nothing in sbridge touches the global random state: every draw comes from a
``torch.Generator`` made here from an explicit seed. Child seeds are hashes of a parent seed
and a counter, so any block of noise can be drawn again without drawing what comes before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, shown

T = TypeVar("T")
Seed = int | np.integer | torch.Generator

_SEED_LIMIT = 2**63
ROW_BLOCK = 1024
"""Number of rows that share one stream of noise; chunks of a batch are cut at its multiples."""
_STEP_BLOCK = 32


def as_seed(seed: Seed) -> int:
    """Returns an integer seed in ``[0, 2⁶³)``, also for numpy integers; a generator gives one draw, and so advances.

    Raises:
        InvalidInputError: for an integer out of range, or anything that is no seed at all.
    """
    if isinstance(seed, torch.Generator):
        drawn = torch.randint(_SEED_LIMIT - 1, (1,), generator=seed, device=seed.device)
        return int(drawn)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < _SEED_LIMIT:
        raise InvalidInputError(f"seed must be an integer in [0, 2**63) or a torch.Generator, got {shown(seed)}.")
    return int(seed)


def derive(seed: int, *keys: int | str) -> int:
    """Derives a child seed from ``seed`` and ``keys``: equal arguments give equal, different ones independent seeds."""
    text = "/".join([str(seed), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % _SEED_LIMIT


def generator(seed: Seed, device: torch.device | str = "cpu") -> torch.Generator:
    """Makes a new generator on ``device``; a ``torch.Generator`` is used through one draw from it."""
    return torch.Generator(device=device).manual_seed(as_seed(seed))


def seeded(make: Callable[[], T], seed: Seed) -> T:
    """Returns ``make()``, a new network whose initial weights follow from ``seed``.

    PyTorch's layers draw their initial weights from the global state only. It is set for ``make`` and then restored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(as_seed(seed))
        return make()


@dataclass(frozen=True, eq=False)
class NormalNoise:
    """Standard normal noise ``ξ`` of shape ``(steps, batch, dim)``, addressed by step.

    The numbers are drawn in blocks of steps × rows, each from its own child seed. Hence they are
    the same whether they are kept (:meth:`stored`) or drawn when asked for (:meth:`step`), and
    the same for a row whether the batch is simulated whole or in :meth:`rows` chunk by chunk.
    Memory when not stored: 32 steps of the batch.

    Args:
        seed: integer seed.
        steps, batch, dim: shape.
        dtype, device: of the tensors returned.
        first_row: index of the first row, a multiple of ``ROW_BLOCK``.
    """

    seed: int
    steps: int
    batch: int
    dim: int
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    first_row: int = 0
    _cache: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def step(self, k: int) -> Tensor:
        """Returns ``ξ_k`` for every row, shape ``(batch, dim)``."""
        if not 0 <= k < self.steps:
            raise InvalidInputError(f"noise has steps 0 … {self.steps - 1}, got step {k}.")
        block = k // _STEP_BLOCK
        if block not in self._cache:
            self._cache.clear()
            self._cache[block] = self._draw(block)
        return self._cache[block][k - block * _STEP_BLOCK]

    def stored(self) -> Tensor:
        """Returns all of the noise, shape ``(steps, batch, dim)``."""
        noise = torch.empty(self.steps, self.batch, self.dim, dtype=self.dtype, device=self.device)
        for first in range(0, self.steps, _STEP_BLOCK):
            self._draw(first // _STEP_BLOCK, out=noise[first : first + _STEP_BLOCK])
        return noise

    def rows(self, start: int, stop: int) -> NormalNoise:
        """Returns the noise of rows ``start … stop − 1``, cut at multiples of ``ROW_BLOCK`` or at the end of the batch.

        Raises:
            InvalidInputError: for another cut: the numbers of a block depend on how many rows it has.
        """
        whole = start % ROW_BLOCK == 0 and (stop % ROW_BLOCK == 0 or stop == self.batch)
        if not whole or not 0 <= start < stop <= self.batch:
            raise InvalidInputError(
                f"rows {start}:{stop} of {self.batch} are not a valid chunk: cut at multiples of {ROW_BLOCK} or at the "
                "end."
            )
        return replace(self, batch=stop - start, first_row=self.first_row + start, _cache={})

    def _draw(self, block: int, out: Tensor | None = None) -> Tensor:
        if out is None:
            steps = min(_STEP_BLOCK, self.steps - block * _STEP_BLOCK)
            out = torch.empty(steps, self.batch, self.dim, dtype=self.dtype, device=self.device)
        for start in range(0, self.batch, ROW_BLOCK):
            part = out[:, start : start + ROW_BLOCK]
            # torch fills a strided tensor by another routine, with other numbers.
            drawn = part if part.is_contiguous() else torch.empty_like(part, memory_format=torch.contiguous_format)
            seed = derive(self.seed, block, (self.first_row + start) // ROW_BLOCK)
            drawn.normal_(generator=generator(seed, self.device))
            if drawn is not part:
                part.copy_(drawn)
        return out
