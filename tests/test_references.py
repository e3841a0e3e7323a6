"""Every reference that a solver accepts: its controls are those of the grid, in one dimension.

:class:`~sbridge.solvers.IPF` and :class:`~sbridge.solvers.AdjointBridge` stand against the grid in files of their own.
"""

import pytest
import torch
from families import ON_A_LINE
from torch import Tensor

from sbridge.controls import MLP
from sbridge.couplings import MinibatchCoupling, ReferenceCoupling
from sbridge.fitting import solve
from sbridge.laws import Gaussian, GaussianMixture, Law, Samples
from sbridge.pde import Grid, GridSolution, solve_schroedinger
from sbridge.problems import BridgeProblem
from sbridge.solutions import Bridge
from sbridge.solvers import IMF, GaussianBridge, MatchedBridge, MixtureBridge, SinkhornBridge, Solver
from sbridge.time import TimeGrid
from sbridge.training import Optimisation

ONE: Law = Gaussian(torch.tensor([-0.5]), torch.tensor([[0.4]]))
TWO: Law = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [1.2]]), torch.tensor([[[0.2]], [[0.3]]]))
SHIFTED: Law = Gaussian(torch.tensor([0.7]), torch.tensor([[0.9]]))

_LEARNED = {
    "pairs": 4096,
    "network": MLP(24, 2),
    "optimisation": Optimisation(learning_rate=1e-2, batch=256, warm_up=20, ema_decay=0.98),
    "grid": TimeGrid.cosine(30),
}
SOLVERS: dict[str, tuple[Solver, float, float]] = {
    "MatchedBridge": (MatchedBridge(MinibatchCoupling(256), updates=400, refresh=200, **_LEARNED), 0.12, 0.01),
    "IMF": (IMF(ReferenceCoupling(), pretraining=100, stages=6, updates=150, refresh=50, **_LEARNED), 0.2, 0.01),
    "MixtureBridge": (MixtureBridge(components=(2,)), 0.005, 0.02),
    "SinkhornBridge": (SinkhornBridge(), 0.03, 0.03),
}
"""With the largest mean square error of either control along the bridge, in units of its mean square.

Networks of a short training smooth the forward control, which bends around both modes towards ``t = T``; from pairs of
the reference alone, IMF has the whole way to go. Of 4000 rows the plan is known to about a percent.
"""


def errors(bridge: Bridge, exact: GridSolution) -> list[float]:
    """``Σ_t E|u − u*|² / Σ_t E|u*|²`` of either control under the density of the bridge; no control has 1."""
    horizon, found = bridge.forward.process.horizon, []
    centres = torch.as_tensor(exact.grid.centres[0])[:, None]
    pairs = ((bridge.forward.control, exact.control), (bridge.backward.control, exact.backward_control))
    for ours, true in pairs:
        assert ours is not None
        error, square = 0.0, 0.0
        for fraction in (0.05, 0.25, 0.5, 0.75, 0.9):
            t = fraction * horizon
            density: Tensor = torch.as_tensor(exact.density(t))[:, None]
            u, weight = true(t, centres), density * (density > 1e-6 * density.max())
            error += float((weight * (ours(t, centres) - u).square()).sum())
            square += float((weight * u.square()).sum())
        found.append(error / square)
    return found


_SLOW = {("IMF", name) for name in ON_A_LINE if name not in ("OU, expanding", "VP")}


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        pytest.param(solver, name, marks=[pytest.mark.slow] if (solver, name) in _SLOW else [])
        for solver in SOLVERS
        for name in ON_A_LINE
    ],
)
def test_controls_are_those_of_the_grid(solver, name):
    method, *most = SOLVERS[solver]
    exact = solve_schroedinger(ON_A_LINE[name], ONE, TWO, Grid.of(-8.0, 8.0, 160))
    ends = (ONE, TWO)
    if isinstance(method, (MixtureBridge, SinkhornBridge)):
        draws = torch.Generator().manual_seed(0)
        ends = tuple(Samples(law.sample(4000, draws).double()) for law in ends)
    found = errors(solve(BridgeProblem(*ends, ON_A_LINE[name]), method, seed=1), exact)
    assert found[0] < most[0], found
    assert found[1] < most[1], found


@pytest.mark.parametrize("name", ON_A_LINE)
def test_the_closed_form_is_that_of_the_grid(name):
    exact = solve_schroedinger(ON_A_LINE[name], ONE, SHIFTED, Grid.of(-8.0, 8.0, 320))
    assert max(errors(solve(BridgeProblem(ONE, SHIFTED, ON_A_LINE[name]), GaussianBridge(), seed=0), exact)) < 1e-6
