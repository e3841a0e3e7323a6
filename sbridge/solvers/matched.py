"""Simulation-free bridge matching: one regression of either control on a coupling of the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sbridge.controls import NetworkRecipe, ScaledMLP
from sbridge.couplings import Coupling, MinibatchCoupling
from sbridge.errors import check_at_least
from sbridge.problems import BridgeProblem
from sbridge.solvers.control.starts import WarmStart
from sbridge.solvers.learners import DIRECTIONS
from sbridge.solvers.matching import MATCHING, Matcher, MatchingSolver, MatchingState, mean_loss
from sbridge.storage.registry import register
from sbridge.time import TimeGrid
from sbridge.training import Info, Optimisation


@register
@dataclass(frozen=True)
class MatchedBridge(MatchingSolver):
    """One regression of either control on pinned bridges between pairs of a coupling, without simulation.

    With ``(X_0, X_T)`` from the static Schrödinger plan and ``X_t`` from the reference's pinned bridge::

        u*(t, x) = E[σᵀ ∇_x log R(X_T | X_t) | X_t = x]        û*(t, x) = E[σᵀ ∇_x log R(X_t | X_0) | X_t = x]

    (Tong et al. 2024, arXiv:2307.03672, §3.2, with the drift of the bridge itself in place of flow and score.) Both
    controls are then those of the bridge, up to the error of the regression and the bias of a plan of finitely many
    samples, which this solver does not remove: see the coupling. :class:`~sbridge.solvers.imf.IMF` starts in the same
    way, and its stages remove that bias at several times the cost. If the coupling is not the plan, the result is its
    Markovian projection: its ends are those of the coupling, but it is not a Schrödinger bridge.

    Args:
        coupling: the pairs.
        updates: number of updates of each network.
        refresh: number of updates between two draws of pairs.
        pairs: number of pairs per draw, which are reused until the next draw.
        start: the known control to which the networks are added. ``None``: ``GaussianStart()`` if the moments of
            both ends are known, otherwise ``ZeroStart()``.
        network: recipe of either network.
        optimisation: how networks are trained.
        grid: time grid on which solutions are simulated; finer towards both ends by default.

    Works with any linear reference and any ends that can be sampled.

    Raises:
        InvalidInputError: for an option of another kind or out of its range.
        UnsupportedError: by ``solve`` and ``fit``, with what :meth:`refusal` says.
    """

    coupling: Coupling = field(default_factory=MinibatchCoupling)
    updates: int = 6000
    refresh: int = 500
    pairs: int = 8192
    start: WarmStart | None = None
    network: NetworkRecipe = field(default_factory=ScaledMLP)
    optimisation: Optimisation = field(default_factory=lambda: MATCHING)
    grid: TimeGrid = field(default_factory=lambda: TimeGrid.cosine(50))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "updates", "refresh", "pairs")

    def max_steps(self, problem: BridgeProblem) -> int:
        """The updates of either network."""
        return self.updates

    def step(self, problem: BridgeProblem, state: MatchingState) -> tuple[MatchingState, Info]:
        """One update of both networks."""
        if state.step % self.refresh == 0:
            state.pairs = state.draw(self.pairs, state.generator)
        losses = [state.learn(direction) for direction in DIRECTIONS]
        state.step += 1
        return state, {"loss": mean_loss(losses)}

    @property
    def matcher(self) -> Matcher:
        """The training."""
        updates = dict.fromkeys(DIRECTIONS, self.updates)
        return Matcher(self.coupling, self.start, self.network, self.optimisation, self.grid, updates)
