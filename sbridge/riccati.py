"""Linear–quadratic control in closed form: the Riccati equation, and its recursion for a chain.

For a linear process ``dX = (A X + c + σu) dt + σ dW`` and quadratic costs the value is quadratic, the optimal control
affine: ``V(t, x) = zᵀ F(t) z + κ(t)`` with ``z = (x, 1)``. With ``a = σσᵀ``, everything written for ``z``::

    −Ḟ = AᵀF + FA − 2FaF + P,    −κ̇ = tr(aF),    F(T) = Q,    u* = −2σᵀFz

Its continuous and its discrete form are two problems with two answers: a control learned on a grid approaches the
second.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sbridge.errors import InvalidInputError, NonFiniteError, NotConvergedError, UnsupportedError
from sbridge.processes import Direction, EulerMaruyama, LinearProcess, StepRule
from sbridge.processes.base import Time, check_time, spread
from sbridge.registry import register
from sbridge.time import TimeGrid

_TOLERANCE = 1e-11  # relative, of the value function between two step sizes
_MOST_STEPS = 2**14
_GROWTH = 4.0


@register
@dataclass(frozen=True, eq=False)
class Quadratic:
    """The cost ``q(x) = xᵀ M x + vᵀ x + c``, without a factor ½.

    A terminal cost is ``q`` itself, a running cost ``q.running``.

    Args:
        matrix: ``M``, symmetric, shape ``(dim, dim)``.
        vector: ``v``, shape ``(dim,)``; zero if ``None``.
        constant: ``c``.

    Raises:
        InvalidInputError: for other shapes, values that are not finite, or a matrix that is not symmetric.
    """

    matrix: Tensor
    vector: Tensor | None = None
    constant: float = 0.0

    def __post_init__(self) -> None:
        size = self.matrix.shape[0] if self.matrix.ndim == 2 else -1
        vector = self.matrix.new_zeros(max(size, 0)) if self.vector is None else self.vector
        if self.matrix.shape != (size, size) or vector.shape != (size,):
            raise InvalidInputError(
                f"a quadratic cost needs a matrix (dim, dim) and a vector (dim,), got {tuple(self.matrix.shape)} and "
                f"{tuple(vector.shape)}."
            )
        if not bool(torch.isfinite(self.matrix).all() and torch.isfinite(vector).all()):
            raise InvalidInputError("the coefficients of a quadratic cost must be finite.")
        if not torch.allclose(self.matrix, self.matrix.mT, rtol=1e-6):
            raise InvalidInputError(
                "the matrix of a quadratic cost must be symmetric: take ½(M + Mᵀ), the cost is the same."
            )

    @classmethod
    def isotropic(cls, factor: float, dim: int) -> Quadratic:
        """``factor · |x|²``."""
        return cls(factor * torch.eye(dim, dtype=torch.float64))

    @classmethod
    def linear(cls, vector: Tensor) -> Quadratic:
        """``vᵀ x``."""
        return cls(vector.new_zeros(len(vector), len(vector)), vector)

    @property
    def dim(self) -> int:
        """The dimension of ``x``."""
        return self.matrix.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """``q(x)``, shape ``(batch,)``."""
        value = ((x @ self.matrix.to(x)) * x).sum(1) + self.constant
        return value if self.vector is None else value + x @ self.vector.to(x)

    def running(self, t: Time, x: Tensor) -> Tensor:
        """``q(x)`` at any time."""
        return self(x)

    def expectation(self, mean: Tensor, covariance: Tensor) -> float:
        """``E q(X)`` for mean ``(dim,)`` and covariance ``(dim, dim)`` of ``X``."""
        spread_out = (self.matrix.double() * covariance.double()).sum()
        return float(self.__call__(mean.double().unsqueeze(0)) + spread_out)

    @property
    def homogeneous(self) -> Tensor:
        """The matrix of ``q`` in ``z = (x, 1)``, float64, shape ``(dim + 1, dim + 1)``."""
        whole = torch.zeros(self.dim + 1, self.dim + 1, dtype=torch.float64)
        whole[:-1, :-1] = self.matrix.detach().double().cpu()
        if self.vector is not None:
            whole[:-1, -1] = whole[-1, :-1] = 0.5 * self.vector.detach().double().cpu()
        whole[-1, -1] = self.constant
        return whole

    @classmethod
    def of(cls, homogeneous: Tensor, constant: Tensor) -> Quadratic:
        """The inverse of :attr:`homogeneous`, with a further constant."""
        inner = homogeneous[:-1, :-1]
        rest = float(homogeneous[-1, -1] + constant)
        return cls(0.5 * (inner + inner.mT).detach(), (2.0 * homogeneous[:-1, -1]).detach(), rest)


@dataclass(frozen=True, eq=False)
class _LinearQuadratic(ABC):
    """What both forms share.

    Args:
        process: the uncontrolled process.
        running: ``f``, per unit time.
        terminal: ``g``.
    """

    process: LinearProcess
    running: Quadratic
    terminal: Quadratic

    def __post_init__(self) -> None:
        if not isinstance(self.process, LinearProcess):
            raise UnsupportedError(
                f"a Riccati equation needs a linear process, got {type(self.process).__name__}; linearise it first."
            )
        dims = {self.running.dim, self.terminal.dim, self.process.dim or self.running.dim}
        if len(dims) > 1:
            raise InvalidInputError(
                f"running cost, terminal cost and process have dimensions {self.running.dim}, {self.terminal.dim} and "
                f"{self.process.dim}; they must agree."
            )

    @property
    def dim(self) -> int:
        """The dimension of the state."""
        return self.running.dim

    @abstractmethod
    def gain(self, t: Time) -> Tensor:
        """``G`` with ``u* = G z`` at one time or at times ``(batch,)``, float64, shape ``(..., dim, dim + 1)``."""

    @abstractmethod
    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        """``F(0)`` and ``κ(0)`` for costs in homogeneous form, differentiable in them."""

    @cached_property
    def value_function(self) -> Quadratic:
        """The optimal objective as a function of the start, ``V(0, ·)``."""
        return Quadratic.of(*self._solve(self.running.homogeneous, self.terminal.homogeneous))

    @cached_property
    def energy_function(self) -> Quadratic:
        """``E Σ Δ|u*|²`` (in the limit ``E∫|u*|² dt``) as a function of the start.

        With costs ``λf`` and ``λg`` the derivative of the value at ``λ = 1`` is the part of the value that is not
        control energy (envelope theorem); hence ``2 (V − ∂_λ V)``.
        """

        def scaled(factor: Tensor) -> tuple[Tensor, Tensor]:
            return self._solve(factor * self.running.homogeneous, factor * self.terminal.homogeneous)

        one = torch.ones((), dtype=torch.float64)
        (f, k), (df, dk) = torch.autograd.functional.jvp(scaled, one, one)
        return Quadratic.of(2.0 * (f - df), 2.0 * (k - dk))

    @property
    def control(self) -> RiccatiControl:
        """The optimal control."""
        return RiccatiControl(self)


@register
@dataclass(frozen=True, eq=False)
class RiccatiControl:
    """``u*(t, x)`` of a :class:`Riccati` or :class:`ChainRiccati` problem."""

    solution: _LinearQuadratic

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        """``G(t) (x, 1)``, shape ``(batch, dim)``."""
        gain = self.solution.gain(t).to(x)
        matrix, offset = gain[..., :-1], gain[..., -1]
        if matrix.ndim == 2:
            return x @ matrix.mT + offset
        return (matrix @ x.unsqueeze(-1)).squeeze(-1) + spread(offset, len(x))


@register
@dataclass(frozen=True, eq=False)
class Riccati(_LinearQuadratic):
    """The linear–quadratic problem in continuous time.

    ``F = W U⁻¹`` with ``(U, W)`` the flow of the Hamiltonian matrix ``[[A, −2a], [−P, −Aᵀ]]`` (Davison & Maki 1973),
    exponentiated exactly if the coefficients are constant, by Magnus' series of sixth order (Blanes, Casas & Ros 2000)
    if they are not; ``∫tr(aF) = ½(∫tr A + log det U)`` over a step. It never multiplies an error by more than the flow
    itself does, so stiff problems are no trouble. Steps are halved until the value stands to 11 digits.

    Raises:
        NonFiniteError: if the value is infinite: a cost that is not bounded below wins against the control's own cost.
        NotConvergedError: if coefficients vary too fast in time.
    """

    _gains: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    def gain(self, t: Time) -> Tensor:
        """``−2 σᵀ F(t)``."""
        times = torch.as_tensor(check_time(t, self.process.horizon), dtype=torch.float64)
        if times.ndim == 0:
            return self._gain_at(float(times))
        moments, index = times.unique(return_inverse=True)
        return torch.stack([self._gain_at(float(moment)) for moment in moments])[index.cpu()]

    def value_at(self, t: float) -> Quadratic:
        """``V(t, ·)``."""
        return Quadratic.of(*self._value_at(t))

    def _gain_at(self, t: float) -> Tensor:
        if t not in self._gains:
            sigma = self.process.scale(t).expanded(self.dim)
            self._gains[t] = -2.0 * sigma.mT @ self._value_at(t)[0][:-1]
        return self._gains[t]

    def _value_at(self, t: float) -> tuple[Tensor, Tensor]:
        """``F`` and ``κ`` at any time: one step from the next knot."""
        knots, values, constants = self._table
        k = min(int(torch.searchsorted(knots, t, right=True)), len(knots) - 1)
        here = torch.tensor([t, float(knots[k])], dtype=torch.float64)
        flow, trace = self._flow(here, self.running.homogeneous)
        value, gained = _pull_back(flow[0], trace[0], values[k])
        return value, constants[k] + gained

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Knots with ``F`` and ``κ`` at each."""
        running, terminal = self.running.homogeneous, self.terminal.homogeneous
        steps, before = self._first_steps, None
        while steps <= _MOST_STEPS:
            table = self._integrate(steps, running, terminal)
            first = torch.cat([table[1][0].reshape(-1), table[2][:1]])
            if before is not None and bool((first - before).abs().max() <= _TOLERANCE * first.abs().max()):
                return table
            steps, before = 2 * steps, first
        raise NotConvergedError(
            f"the Riccati equation did not settle with {_MOST_STEPS} steps: its coefficients vary too fast in time."
        )

    @property
    def _first_steps(self) -> int:
        """So many that the flow over a step grows by no more than about ``e^4``: then ``U`` is well conditioned."""
        times = torch.linspace(0.0, self.process.horizon, 33, dtype=torch.float64)
        size = torch.linalg.matrix_norm(self._hamiltonian(times, self.running.homogeneous)).max()
        return 2 ** max(3, math.ceil(math.log2(1.0 + float(size) * self.process.horizon / _GROWTH)))

    @cached_property
    def _unit(self) -> float:
        """The unit of ``W`` in which both off-diagonal blocks of the Hamiltonian matrix are of one size."""
        sigma = self.process.scale(0.5 * self.process.horizon).expanded(self.dim)
        cost = float(torch.linalg.matrix_norm(self.running.homogeneous))
        return math.sqrt(cost / (2.0 * float(torch.linalg.matrix_norm(sigma @ sigma.mT)))) if cost > 0 else 1.0

    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        _, values, constants = self._integrate(len(self._table[0]) - 1, running, terminal)
        return values[0], constants[0]

    def _integrate(self, steps: int, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = torch.linspace(0.0, self.process.horizon, steps + 1, dtype=torch.float64)
        flows, traces = self._flow(knots, running)
        values, constants = [terminal], [terminal.new_zeros(())]
        for flow, trace in zip(reversed(flows.unbind(0)), reversed(traces.unbind(0)), strict=True):
            value, gained = _pull_back(flow, trace, values[-1])
            values.append(value)
            constants.append(constants[-1] + gained)
        return knots, torch.stack(values[::-1]), torch.stack(constants[::-1])

    def _flow(self, knots: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
        """The Hamiltonian flow back over every interval, and ``∫tr A``."""
        left, span = knots[:-1], knots.diff()
        nodes = [left + span * (0.5 + shift * math.sqrt(0.15)) for shift in (-1.0, 0.0, 1.0)]
        one, two, three = (self._hamiltonian(node, running) for node in nodes)
        h = span.reshape(-1, 1, 1)
        # Blanes et al. 2000, eqs. (20)–(22), on the three Gauss–Legendre nodes
        first, slope, bend = (
            h * two,
            h * (three - one) * (math.sqrt(15.0) / 3.0),
            h * (three - 2.0 * two + one) * (10 / 3),
        )
        c1 = _commutator(first, slope)
        c2 = -_commutator(first, 2.0 * bend + c1) / 60.0
        exponent = first + bend / 12.0 + _commutator(-20.0 * first - bend + c1, slope + c2) / 240.0
        size = self.dim + 1
        traces = [m[:, :size, :size].diagonal(dim1=1, dim2=2).sum(1) for m in (one, two, three)]
        flow = torch.linalg.matrix_exp(-exponent)
        unit = torch.cat([torch.ones(size, dtype=torch.float64), torch.full((size,), self._unit, dtype=torch.float64)])
        return flow * unit.unsqueeze(1) / unit, span * (5.0 * traces[0] + 8.0 * traces[1] + 5.0 * traces[2]) / 18.0

    def _hamiltonian(self, times: Tensor, running: Tensor) -> Tensor:
        """``[[A, −2a], [−P, −Aᵀ]]`` with ``W`` in its unit, shape ``(n, 2 dim + 2, 2 dim + 2)``."""
        n, dim = len(times), self.dim
        a = torch.zeros(n, dim + 1, dim + 1, dtype=torch.float64)
        a[:, :-1, :-1] = self.process.linear(times).expanded(dim)
        a[:, :-1, -1] = self.process.offset(times).expand(n, dim)
        sigma = self.process.scale(times).expanded(dim)
        noise = torch.zeros_like(a)
        noise[:, :-1, :-1] = sigma @ sigma.mT
        upper = torch.cat([a, -2.0 * self._unit * noise], 2)
        lower = torch.cat([-running.expand_as(a) / self._unit, -a.mT], 2)
        return torch.cat([upper, lower], 1)


@register
@dataclass(frozen=True, eq=False)
class ChainRiccati(_LinearQuadratic):
    """The linear–quadratic problem for a chain ``z' = M z + L(√Δ u + ξ)``, with cost ``Σ Δ(½|u|² + f) + g``.

    Exact at any step size. With ``F = F_{k+1}``::

        F_k = ΔP + MᵀFM − 2 MᵀFL (I + 2LᵀFL)⁻¹ LᵀFM        √Δ u_k = −2 (I + 2LᵀFL)⁻¹ LᵀFM z
        κ_k = κ_{k+1} + tr(LᵀFL)            optimum over feedback controls, :attr:`value_function`
        κ_k = κ_{k+1} + ½ log det(I + 2LᵀFL)      −log E e^{−ΣΔf − g}, :attr:`tilted_value_function`, which is smaller

    The control is constant between knots.

    Args:
        process, running, terminal: as for :class:`Riccati`.
        grid: the knots.
        rule: how the process becomes a chain.
    """

    grid: TimeGrid = field(default_factory=lambda: TimeGrid.uniform(100))
    rule: StepRule = field(default_factory=EulerMaruyama)

    def gain(self, t: Time) -> Tensor:
        """The gain of the last knot at or before ``t``, to rounding of a float32."""
        times = torch.as_tensor(check_time(t, self.process.horizon), dtype=torch.float64).cpu()
        knots = self.grid.times(self.process.horizon)[:-1]
        index = torch.searchsorted(knots, times * (1.0 + 1e-6) + 1e-12, right=True) - 1
        return self._gains[index.clamp_min(0)]

    @cached_property
    def tilted_value_function(self) -> Quadratic:
        """``−log E[e^{−ΣΔf − g} | X_0 = ·]`` over the uncontrolled chain."""
        value, _, tilted, _ = self._recurse(self.running.homogeneous, self.terminal.homogeneous)
        return Quadratic.of(value, tilted)

    @cached_property
    def _gains(self) -> Tensor:
        return self._recurse(self.running.homogeneous, self.terminal.homogeneous)[3]

    def _solve(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor]:
        value, optimum, _, _ = self._recurse(running, terminal)
        return value, optimum

    @cached_property
    def _steps(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``Δ_k``, ``M_k`` and ``L_k`` in homogeneous form."""
        dim, times = self.dim, self.grid.times(self.process.horizon)
        basis = torch.cat([torch.eye(dim, dtype=torch.float64), torch.zeros(1, dim, dtype=torch.float64)])
        steps = self.rule.steps(self.process, times, Direction.FORWARD, basis)
        maps, roots = [], []
        for k in range(self.grid.steps):
            moved = basis + steps.move(k, basis)
            whole = torch.eye(dim + 1, dtype=torch.float64)
            whole[:-1, :-1], whole[:-1, -1] = (moved[:-1] - moved[-1]).mT, moved[-1]
            maps.append(whole)
            root = torch.zeros(dim + 1, dim, dtype=torch.float64)
            root[:-1] = steps.roots.at(k).expanded(dim)
            roots.append(root)
        return times.diff(), maps, roots

    def _recurse(self, running: Tensor, terminal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``F_0``, both ``κ_0``, and all gains."""
        spans, maps, roots = self._steps
        f, optimum, tilted, gains = terminal, terminal.new_zeros(()), terminal.new_zeros(()), []
        for span, m, root in zip(spans.flip(0), maps[::-1], roots[::-1], strict=True):
            inner = root.mT @ f @ root
            precision = torch.eye(self.dim, dtype=torch.float64) + 2.0 * inner
            chol, failed = torch.linalg.cholesky_ex(0.5 * (precision + precision.mT))
            if bool(failed):
                raise _unbounded()
            pull = root.mT @ f @ m
            shift = -2.0 * torch.cholesky_solve(pull, chol)
            gains.append(shift / span.sqrt())
            optimum = optimum + inner.trace()
            tilted = tilted + chol.diagonal().log().sum()
            f = span * running + m.mT @ f @ m + pull.mT @ shift
            f = 0.5 * (f + f.mT)
        return f, optimum, tilted, torch.stack(gains[::-1]).detach()


def _pull_back(flow: Tensor, trace: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """``F`` one step earlier, and what ``κ`` gains."""
    size = len(value)
    u = flow[:size, :size] + flow[:size, size:] @ value
    w = flow[size:, :size] + flow[size:, size:] @ value
    sign, volume = torch.linalg.slogdet(u)
    if not bool(sign > 0):
        raise _unbounded()
    earlier = torch.linalg.solve(u.mT, w.mT)
    return 0.5 * (earlier + earlier.mT), 0.5 * (trace + volume)


def _commutator(a: Tensor, b: Tensor) -> Tensor:
    return a @ b - b @ a


def _unbounded() -> NonFiniteError:
    return NonFiniteError(
        "the value of this linear–quadratic problem is infinite: a cost falls so fast that no finite control energy "
        "holds the state. Make the costs bounded below, or the horizon shorter."
    )
