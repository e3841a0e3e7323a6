r"""Optimal control of a double well
================================

A particle sits on the barrier between two wells and is to be in one of them at the end, at the least effort. By
symmetry half of the optimal paths go either way: solvers that follow the first path they find get this wrong. The page
states the problem (:class:`sbridge.ControlProblem`), learns a control (:class:`sbridge.LogVariance`), and holds it
against the Hamilton–Jacobi–Bellman equation on a grid (:func:`sbridge.pde.hamilton_jacobi_bellman`), which in one
dimension is the truth. :func:`sbridge.evaluate_control` gives the numbers; the first two need no truth.

The control ``u`` is to make the mean of effort and terminal cost ``g`` as small as it can be:

.. math:: \min_u \; \mathbb E\Big[ \int_0^T \tfrac12 |u(t, X_t)|^2\, dt + g(X_T) \Big], \qquad
   dX = \big(-\Psi'(X) + u\big)\, dt + dW .
"""

# sphinx_gallery_thumbnail_number = 2

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

import sbridge as sb
from sbridge import pde, plotting

FAST = "--fast" in sys.argv
UPDATES = 250 if FAST else 1500
PATHS = 4096 if FAST else 16_384

# %%
# The problem
# -----------
# ``dX = (−Ψ' + u) dt + dW`` with ``Ψ = ½(x² − 1)²``, from ``x = 0``; terminal cost ``5(x² − 1)²``, and ``½u²`` per unit
# time.


def drift(t, x):
    """``−Ψ'``."""
    return -2.0 * x * (x.square() - 1.0)


def terminal_cost(x):
    """Zero in the wells."""
    return 5.0 * (x.square() - 1.0).square().sum(1)


process = sb.DriftProcess(drift, sigma=1.0, dimension=1)
problem = sb.ControlProblem(process, sb.Point(torch.zeros(1)), terminal_cost=terminal_cost)

# %%
# The truth, on a grid
# --------------------
# ``J(t, x)``, the least cost from there on, solves ``∂J/∂t − Ψ'∂J/∂x + ½∂²J/∂x² = ½(∂J/∂x)²`` with ``J(T, x) = g(x)``,
# and the control is ``u* = −∂J/∂x``.

grid = pde.Grid.of(-2.5, 2.5, 400)
times = sb.TimeGrid.uniform(400)
value = pde.hamilton_jacobi_bellman(process, grid, terminal_cost, times)
best = -np.stack([grid.difference(J, 0) for J in value])
interpolated = RegularGridInterpolator(
    (np.linspace(0, 1, 401), grid.centres[0]), best, bounds_error=False, fill_value=None
)


def known(t, x):
    """``u*`` as a control."""
    moments = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
    found = interpolated(np.stack([moments.numpy(), x[:, 0].double().numpy()], -1))
    return torch.from_numpy(found).to(x).unsqueeze(1)


least = float(np.interp(0.0, grid.centres[0], value[0]))
print(f"least cost from the barrier, by the equation: {least:.4f}")

# %%
# A learned control
# -----------------
# The log-variance loss compares path weights and needs no gradient of drift or cost. That suits a start on a barrier,
# where gradients through the unstable drift grow fast along a path. Features ``sin jx, cos jx`` let the network bend
# within the range of the data.

history = []
solver = sb.LogVariance(updates=UPDATES, network=sb.FourierMLP(width=64), grid=sb.TimeGrid.uniform(60))
solution = sb.solve(
    problem, solver, seed=0, callbacks=[lambda state, info: history.append({"step": state.step, **info})]
)
report = sb.evaluate_control(solution, n=PATHS, seed=1, known=known)
print(f"cost of the learned control: {report.objective}")
print(f"least cost estimated from its path weights: {report.value}")
print(f"squared error of the control, relative: {report.control_error}")

# %%
# The objective of a chain of Euler steps is not exactly that of continuous time, so objective and least cost differ a
# little even at the optimum.

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
plotting.history(history, ax=ax)
ax.set(ylabel="variance of the log weights", title="The loss falls towards zero")

# %%
# Paths, with and without
# -----------------------

zero = sb.ControlSolution(problem, sb.PathMeasure(process, None, problem.start))
ways = {"no control": zero, "learned control": solution}
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
for ax, (name, way) in zip(panels, ways.items(), strict=True):
    paths = way.sample(PATHS, seed=2)
    ends = paths.x[-1, :, 0]
    effort = 0.5 * (paths.v.square().sum(2) * paths.t.diff().to(paths.v)[:, None]).sum(0)
    cost = effort + terminal_cost(paths.x[-1])
    bar = float(cost.std() / PATHS**0.5)
    left = float((ends < 0).float().mean())
    error = 0.5 / PATHS**0.5
    near = float((abs(abs(ends) - 1) < 0.3).float().mean())
    print(
        f"{name}: cost {cost.mean():.3f} ± {bar:.3f}; {left:.3f} ± {error:.3f} end on the left; "
        f"{near:.3f} end within 0.3 of a well"
    )
    plotting.trajectories(paths, ax=ax, most=80)
    ax.set(ylim=(-1.9, 1.9), ylabel="", title=f"{name}: cost {cost.mean():.2f}, {left:.0%} to the left")
panels[0].set_ylabel("$x$")
fig.suptitle("From the barrier into the wells")

# %%
# The control as a function
# -------------------------
# On the barrier it is zero: it waits for the noise to decide, then helps. Where paths never come, a network says
# nothing of value; the map is drawn where the optimal process has mass.

line = grid.centres[0]
states = torch.from_numpy(line)[:, None].float()
clock = np.linspace(0, 0.99, 60)
with torch.no_grad():
    learned = np.stack([solution.control(float(t), states)[:, 0].numpy() for t in clock])
exact = np.stack([known(float(t), states)[:, 0].numpy() for t in clock])
visited = solution.measure.marginals(clock.tolist(), PATHS, seed=4)[..., 0].numpy()
low, high = np.quantile(visited, [0.001, 0.999], axis=1)
seen = (line >= low[:, None]) & (line <= high[:, None])
top = np.quantile(abs(exact[seen]), 0.99)
fig, panels = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained", sharey=True)
for ax, (name, control) in zip(panels, (("exact", exact), ("learned", learned)), strict=True):
    shown = np.where(seen, control, np.nan)
    image = ax.pcolormesh(clock, line, shown.T, cmap="RdBu_r", vmin=-top, vmax=top, shading="nearest")
    ax.set(ylim=(-1.9, 1.9), xlabel="time $t$", title=f"{name} control")
panels[0].set_ylabel("$x$")
fig.colorbar(image, ax=panels, label="$u(t, x)$")
fig.suptitle("Which way the control pushes")

# %%
# With your own data
# -------------------
# A problem is a process, a start and two functions of batches: ``running_cost(t, x)`` and ``terminal_cost(x)``, each
# one number a row. Smooth costs: try :class:`sbridge.AdjointMatching` first. Costs that jump, or that cannot be
# differentiated: :class:`sbridge.LogVariance`, as here. Where there is no truth, compare ``objective`` with ``value``
# in what :func:`sbridge.evaluate_control` prints: they meet at the optimum. A file with a variable ``problem`` can be
# solved from the command line: ``sbridge control FILE.py``.
