"""The end of a controlled process and its running cost, by a scheme whose gradient needs no stored path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbridge.controls import Control
from sbridge.errors import InvalidInputError, NonFiniteError
from sbridge.parts import visible_tensors
from sbridge.processes.base import Process, Time
from sbridge.simulation.engine import (
    Noise,
    check_control,
    is_finite,
    noise_of_step,
    require_finite,
    reversible_heun,
    reversible_heun_adjoint,
)
from sbridge.simulation.options import Detached, GradientMethod, ReversibleAdjoint

RunningCost = Callable[[Time, Tensor, Tensor], Tensor]
"""A cost ``(t, x, u) →`` per unit time, shape ``(batch,)``."""


def endpoint(
    process: Process,
    control: Control | None,
    x0: Tensor,
    times: Tensor,
    noise: Noise,
    gradient: GradientMethod = ReversibleAdjoint(),
    running_cost: RunningCost | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes ``X_T`` ``(batch, dim)`` and ``∫ cost(t, X, u) dt`` ``(batch,)`` by the reversible Heun scheme.

    In index time the drift at node ``k`` is ``½(Δ_{k−1} + Δ_k)(b + σu)(t_k, x)``, at the ends ``Δ_0`` and
    ``Δ_{N−1}``, and the noise over ``[k, k + 1]`` is ``√Δ_k σ(t_{k+½}) ξ_k``: trapezoids on any grid, so the
    weak order is 2. The cost is an additional coordinate without noise. Control and cost are evaluated at
    the last knot too. These are not the steps of a chain: Girsanov sums do not apply to them.

    Args:
        process: the reference, of any kind, run forward.
        control: ``u``, or ``None`` for zero; called with ``t`` as a float.
        x0: states at ``times[0]``, shape ``(batch, dim)``.
        times: rising knots, shape ``(N + 1,)``.
        noise: standard normal, ``N`` steps.
        gradient: :class:`ReversibleAdjoint` (memory does not grow with ``N``, the noise apart if it is stored),
            :class:`Backprop` through the same scheme, or :class:`Detached`.
        running_cost: ``None`` returns zeros.

    Raises:
        InvalidInputError: if shapes do not fit, or parameters are hidden from the adjoint.
        NonFiniteError: if the state, the control, the drift or the cost stops being finite.
    """
    steps = len(times) - 1
    if times.ndim != 1 or steps < 1 or not bool((times.diff() > 0).all()):
        raise InvalidInputError(f"times must increase and have shape (steps + 1,), got shape {tuple(times.shape)}.")
    xi = noise_of_step(noise, steps, x0)
    times = times.double().cpu()
    equation = _NodeEquation(process, control, running_cost, times, x0)
    # √Δ_k σ(t_{k+½}): the midpoint value has the weak order 2 of the trapezoids for the drift
    roots = (process.scale(0.5 * (times[1:] + times[:-1])) * times.diff().sqrt()).to(x0)

    def increment(k: int) -> Tensor:
        return nn.functional.pad(roots.at(k)(xi(k)), (0, 1))

    with torch.set_grad_enabled(not isinstance(gradient, Detached)):
        start = nn.functional.pad(x0, (0, 1))
        if isinstance(gradient, ReversibleAdjoint):
            parameters = _parameters((control, process, running_cost, gradient.parameters))
            _check_all_seen(equation, start, parameters, steps)
            end = reversible_heun_adjoint(equation, start, increment, steps, parameters)
        else:
            end = reversible_heun(equation, start, increment, steps)
        last, cost = end[:, :-1], end[:, -1]
    if not is_finite(end):
        with torch.no_grad():
            reversible_heun(dataclasses.replace(equation, strict=True), start, increment, steps)
        raise NonFiniteError(f"the state is NaN or infinite after the last step (t = {float(times[-1]):g}).")
    return last, cost


@dataclass
class _NodeEquation:
    """Weighted drift and running cost at the nodes, for states with one more channel for the cost."""

    process: Process
    control: Control | None
    running_cost: RunningCost | None
    times: Tensor
    like: Tensor
    strict: bool = False

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def __post_init__(self) -> None:
        spans = self.times.diff()
        # The scheme averages f(k) and f(k + 1) (Kidger et al. 2021, Alg. 1). With these weights a step from k to k + 1
        # moves by ¼(Δ_{k−1} + Δ_k) f_k + ¼(Δ_k + Δ_{k+1}) f_{k+1}, so that all steps together are the trapezoidal sum.
        weights = torch.cat([spans[:1], 0.5 * (spans[1:] + spans[:-1]), spans[-1:]])
        self._nodes, self._weights = self.times.tolist(), weights.tolist()
        self._scales = (self.process.scale(self.times) * weights).to(self.like)

    def f(self, index: Tensor, y: Tensor) -> Tensor:
        k = int(index)
        t, weight, x = self._nodes[k], self._weights[k], y[:, :-1]
        move = weight * self.process.drift(t, x)
        if self.control is None:
            u = torch.zeros_like(x)
        else:
            u = self.control(t, x)
            check_control(u, x)
            move = self._scales.at(k).add(move, u.to(x.dtype))
        cost = x.new_zeros(len(x)) if self.running_cost is None else self.running_cost(t, x, u)
        if cost.shape != x.shape[:1]:
            raise InvalidInputError(f"the running cost must return shape ({len(x)},), got {tuple(cost.shape)}.")
        if self.strict:
            for value, name in ((x, "state"), (u, "control"), (move, "drift"), (cost, "running cost")):
                require_finite(value, f"the {name}", k, t)
        return torch.cat([move, weight * cost.unsqueeze(1)], 1)

    def g(self, index: Tensor, y: Tensor) -> Tensor:
        return y.new_ones(()).expand_as(y)


def _parameters(value: object) -> tuple[Tensor, ...]:
    """Returns the visible tensors in ``value`` that require a gradient, each once."""
    found = {id(tensor): tensor for tensor in visible_tensors(value) if tensor.requires_grad}
    return tuple(found.values())


def _check_all_seen(equation: _NodeEquation, start: Tensor, parameters: tuple[Tensor, ...], steps: int) -> None:
    """Raises InvalidInputError if the equation depends, at either end of time, on a leaf not in ``parameters``.

    The adjoint computes gradients only for the given tensors, without a warning for others.
    """
    known = {id(tensor) for tensor in parameters}
    seen = {tensor.grad_fn for tensor in parameters}
    pending = [equation.f(torch.tensor(k, device="cpu"), start.detach()).grad_fn for k in (0, steps)]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise InvalidInputError(
                f"the control or cost depends on a parameter of shape {tuple(leaf.shape)} that the adjoint cannot "
                "see. Make it an nn.Module or a dataclass of modules, or name its parameters: "
                "ReversibleAdjoint(parameters=tuple(net.parameters()))."
            )
        pending.extend(parent for parent, _ in node.next_functions)
