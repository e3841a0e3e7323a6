"""The divergence of two processes seen at a few times, which tends to the path KL as times are added."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Law
from sbridge.laws.moments import moments
from sbridge.processes import LinearProcess


def partition_kl(p: LinearProcess, q: LinearProcess, start: Law, times: Tensor) -> float:
    """Computes ``KL`` of the joint distributions of two linear processes at ``times``, from ``start`` at the first.

    By the chain rule it is the sum over intervals of ``E_P KL(p(·|X_s) ‖ q(·|X_s))``, in closed form for Gaussian
    transitions; only mean and covariance of ``X_s`` enter. It grows as times are added, up to ``½ E∫|u|² dt`` (eq.
    (3.18), (A.2)–(A.5)).

    Args:
        p, q: the processes.
        start: the distribution at ``times[0]``, with known moments.
        times: increasing, at least two.

    Raises:
        UnsupportedError: for a process that is not linear, or a start without known moments.
        InvalidInputError: for times that do not increase, or start before 0.

    Source: Premkumar 2023, appendix A.1.

    Examples:
        >>> import torch
        >>> import sbridge as sb
        >>> still, moving = sb.BrownianMotion(1.0), sb.OrnsteinUhlenbeck(rate=1.0, sigma=1.0)
        >>> start = sb.Gaussian(torch.zeros(1), torch.eye(1))
        >>> two, many = (sb.measures.partition_kl(moving, still, start, torch.linspace(0, 1, n)) for n in (2, 65))
        >>> two < many < 0.5 * (0.5 + 0.25 * (1 - 2.718281828**-2))
        True
    """
    for process in (p, q):
        if not isinstance(process, LinearProcess):
            raise UnsupportedError(
                f"transitions of a {type(process).__name__} have no closed form: use path_kl, or linear processes."
            )
    knots = torch.as_tensor(times, dtype=torch.float64, device="cpu").tolist()
    if len(knots) < 2 or not all(before < after for before, after in pairwise([-1e-300, *knots])):
        raise InvalidInputError("times must be at least two, not negative and increasing.")
    dim, total = start.dim, 0.0
    mean, covariance = (one.double() for one in moments(start))
    for s, t in pairwise(knots):
        ours, theirs = p.transition(s, t), q.transition(s, t)
        phi, spread, wanted = (one.expanded(dim) for one in (ours.map, ours.covariance, theirs.covariance))
        moved = ours.mean(mean[None]) - theirs.mean(mean[None])
        apart = phi - theirs.map.expanded(dim)
        second = spread + apart @ covariance @ apart.mT + moved.mT @ moved
        excess = float(torch.linalg.solve(wanted, second).trace()) - dim
        total += 0.5 * (excess + float(torch.linalg.slogdet(wanted)[1] - torch.linalg.slogdet(spread)[1]))
        mean, covariance = ours.mean(mean[None])[0], phi @ covariance @ phi.mT + spread
    return total
