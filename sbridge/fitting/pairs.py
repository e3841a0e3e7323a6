"""Processes between rows that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sbridge.couplings import GivenPairs
from sbridge.fitting.fit import fit
from sbridge.fitting.selection import End
from sbridge.laws.scaling import ScalingRecipe
from sbridge.processes import LinearProcess
from sbridge.random import Seed
from sbridge.solutions import Bridge
from sbridge.solvers.matched import MatchedBridge
from sbridge.training import Callback


def fit_pairs(
    x0: End,
    x1: End,
    *,
    reference: LinearProcess | None = None,
    solver: MatchedBridge | None = None,
    scaling: ScalingRecipe | None = None,
    seed: Seed = 0,
    callbacks: Sequence[Callback] = (),
) -> Bridge:
    """Fits a process to rows that belong together: row ``x0[i]`` became row ``x1[i]``, as in tracked cells.

    Pairs are joined by pinned bridges of the reference, and one regression makes the process Markov
    (:class:`~sbridge.couplings.GivenPairs`). Its marginals are those of the joined pairs at all times. It keeps the
    pairs only as far as a Markov process can: where paths of different pairs cross, they mix.

    Args:
        x0, x1: samples as in :func:`fit`, as many of either, in the same order.
        reference: linear; otherwise as in :func:`fit`.
        solver: its ``coupling`` is replaced; ``None``: :class:`~sbridge.solvers.MatchedBridge` with its defaults.
        scaling, seed, callbacks: as in :func:`fit`.

    Returns:
        The process in both directions, in units of the data. It is a Schrödinger bridge only if the pairs follow the
        plan of one.

    Raises:
        InvalidInputError: for different numbers of rows or weights, and what :func:`fit` refuses.
        UnsupportedError: for ends that are not samples, or a reference without transitions in closed form.

    Examples:
        >>> import torch
        >>> import sbridge as sb
        >>> x0 = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> turned = x0 @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]])  # every row is followed, by a quarter turn
        >>> solver = sb.MatchedBridge(updates=20)
        >>> sb.fit_pairs(x0, turned, reference=sb.BrownianMotion(0.1), solver=solver).horizon
        1.0
    """
    paired = replace(solver or MatchedBridge(), coupling=GivenPairs())
    return fit(x0, x1, reference=reference, solver=paired, scaling=scaling, seed=seed, callbacks=callbacks)
