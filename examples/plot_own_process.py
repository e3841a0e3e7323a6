r"""Your own reference process
==========================

A bridge stays as close as possible to a reference process, and the reference may be any equation that suits your
system. Here it is a swirl with a stable ring: a :class:`sbridge.processes.Process` of a few lines. The page checks it
with :func:`sbridge.processes.check_process`, simulates it, and solves Schrödinger's system for it on a grid with
:func:`sbridge.pde.solve_schroedinger`, which works for any drift. Under Brownian motion straight paths join the two
blobs; under the swirl the bridge follows the ring.

With the reference ``dX = b dt + σ dW``, two potentials solve Schrödinger's system, and one of them gives the control:

.. math::
   \partial_t \varphi + b\cdot\nabla\varphi + \tfrac12\sigma^2 \Delta\varphi &= 0, &
   \partial_t \hat\varphi + \nabla\!\cdot(b \hat\varphi) &= \tfrac12\sigma^2 \Delta\hat\varphi, \\
   p_0 = \varphi\hat\varphi|_{t=0}, \quad p_T &= \varphi\hat\varphi|_{t=T}, & u &= \sigma\nabla\log\varphi .
"""

# sphinx_gallery_thumbnail_number = 2

import sys
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import pde, plotting
from sbridge.linear import LinearMap

FAST = "--fast" in sys.argv
CELLS, KNOTS = (100, 40) if FAST else (160, 100)
PATHS = 1000 if FAST else 4000

# %%
# A process of your own
# ---------------------
# The class defines its horizon, the dimension of its states, its drift and its noise. ``drift`` is called with a time
# (a float, or one per row) and states of shape ``(rows, 2)``.


@dataclass(frozen=True)
class Swirl(sb.processes.Process):
    """``dX = (ω J X + (1 − |X|²) X) dt + σ dW``: a rotation on a ring of radius one."""

    speed: float = 3.0
    sigma: float = 0.6
    horizon: float = 1.0

    @property
    def dim(self):
        """The states have two coordinates."""
        return 2

    def drift(self, t, x):
        """A rotation plus a force towards the ring."""
        turned = torch.stack([-x[:, 1], x[:, 0]], 1)
        return self.speed * turned + (1.0 - x.square().sum(1, keepdim=True)) * x

    def scale(self, t):
        """σ at every time: a number for one time, a row of one number for each of several."""
        shape = (*torch.as_tensor(t).shape, 1)
        return LinearMap(torch.full(shape, self.sigma, dtype=torch.float64))


swirl = Swirl()
sb.processes.check_process(swirl, dim=2, seed=0)
print("the process passes the checks")

# %%
# The reference without a bridge
# ------------------------------

source = sb.Gaussian(torch.tensor([1.0, 0.0]), 0.04 * torch.eye(2))
target = sb.Gaussian(torch.tensor([-0.9, -0.6]), 0.04 * torch.eye(2))
free = sb.PathMeasure(swirl, None, source)
fig, ax = plt.subplots(figsize=(6, 5), layout="compressed")
plotting.trajectories(free.sample(150, seed=1), ax=ax)
ax.set_title("The reference without a bridge")

# %%
# The bridge
# ----------
# The grid solver propagates potentials through the drift. Its control is an ordinary control function, so its bridge is
# a path measure that can be simulated. Its value ``V* = KL(P ‖ R)`` is computed in three ways.

grid = pde.Grid.of([-2.2, -2.2], [2.2, 2.2], CELLS)
brownian = sb.BrownianMotion(sigma=swirl.sigma)
bridges, paths = {}, {}
for name, process in (("swirl", swirl), ("Brownian motion", brownian)):
    solved = sb.pde.solve_schroedinger(
        process, source, target, grid, times=sb.TimeGrid.uniform(KNOTS), options=pde.FortetSinkhorn(tolerance=1e-6)
    )
    measure = sb.PathMeasure(process, solved.control, source)
    found = sb.path_kl(measure, replace(measure, control=None), PATHS, seed=2)
    print(f"{name}: V* {solved.value:.3f} from the plan, {solved.energy:.3f} from the dynamics, simulated {found}")
    bridges[name], paths[name] = solved, measure.sample(PATHS, seed=3)
    ends = paths[name].x[-1]
    bars = (ends.var(0) / PATHS).sqrt()
    print(
        f"  mean of the simulated ends {ends[:, 0].mean():+.3f} ± {bars[0]:.3f}, "
        f"{ends[:, 1].mean():+.3f} ± {bars[1]:.3f}; "
        f"of the target {float(target.mean[0]):+.3f}, {float(target.mean[1]):+.3f}"
    )

# %%
# Differences between the three are errors of the grid. They fall with the square of the cell width, so they are smaller
# without ``--fast``.

fig, panels = plt.subplots(1, 2, figsize=(9, 4.6), layout="compressed")
for ax, (name, one) in zip(panels, paths.items(), strict=True):
    plotting.trajectories(one, ax=ax, most=120)
    ax.set(xlim=(-2, 2), ylim=(-2, 2), title=f"reference: {name}")
    for bar in ax.child_axes if ax is panels[0] else ():
        bar.set_visible(False)
fig.suptitle("One pair of ends, two references")

# %%
# Where the mass is
# -----------------
# Top: the swirl carries the mass around the ring. Bottom: under Brownian motion the mass moves straight, and widens on
# the way. Each panel has its own colour scale, from no density (white) to the largest (dark).

fig, panels = plt.subplots(2, 5, figsize=(11, 4.8), layout="constrained", sharex=True, sharey=True)
times = np.linspace(0, 1, 5)
for row, (name, solved) in zip(panels, bridges.items(), strict=True):
    for ax, t in zip(row, times, strict=True):
        density = solved.density(float(t))
        ax.pcolormesh(*grid.centres, density.T, cmap="Blues", shading="gouraud")
        ax.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=f"{name}, $t$ = {t:g}")
        ax.title.set_fontsize(8)
for ax in panels[-1]:
    ax.set_xlabel("$x_1$")
for ax in panels[:, 0]:
    ax.set_ylabel("$x_2$")
fig.suptitle("Density of the bridge through time")

# %%
# With your own data
# -------------------
# Write your equation as ``drift(t, x)``; ``sb.DriftProcess(drift, sigma)`` makes a process of it without a class. The
# grid needs one or two dimensions and ends with known densities. For data, or more columns, pass the same process to
# ``sb.fit(x0, x1, reference=process)``, which simulates its paths (:doc:`/solvers`). A class as above can also be
# saved, if it is registered (:doc:`/extend`).
