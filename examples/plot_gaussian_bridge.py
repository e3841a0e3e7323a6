r"""A Gaussian bridge against its closed form
=========================================

The Schrödinger bridge between two Gaussian distributions is known in closed form: marginals, plan, control and value.
That makes it the first test of any solver. :class:`sbridge.GaussianBridge` evaluates the formula
(:class:`sbridge.exact.gaussian.GaussianCoupling`), and :class:`sbridge.IMF` learns from samples alone. This page
compares the two: covariances through time, the plan, single controls, and the value ``V* = KL(P ‖ R)``.

For ``N(a, A)`` and ``N(b, B)`` under Brownian motion with ``ε = σ²T`` the covariance of the two ends is

.. math:: \mathrm{Cov}(X_0, X_T) = A^{1/2} \Big( \big(A^{1/2} B A^{1/2} + \tfrac{\varepsilon^2}{4} I\big)^{1/2}
   - \tfrac{\varepsilon}{2} I \Big) A^{-1/2},

and everything else follows from it, since a path given its ends is a pinned Brownian motion.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Ellipse

import sbridge as sb
from sbridge import plotting
from sbridge.exact.gaussian import GaussianCoupling

FAST = "--fast" in sys.argv
ROWS = 10_000 if FAST else 20_000
PATHS = 4000 if FAST else 20_000
solver = sb.IMF(pretraining=600, stages=2, updates=400) if FAST else sb.IMF()

# %%
# The formula
# -----------
# Two Gaussians in the plane under Brownian motion.

reference = sb.BrownianMotion(sigma=1.0)
source = sb.Gaussian(torch.tensor([-2.0, 0.0]), torch.tensor([[0.3, 0.0], [0.0, 1.5]]))
target = sb.Gaussian(torch.tensor([2.0, 0.5]), torch.tensor([[1.2, 0.7], [0.7, 0.6]]))
truth = GaussianCoupling(source.mean, source.covariance, target.mean, target.covariance, reference)
closed = sb.fit(source, target, reference=reference, solver=sb.GaussianBridge())
print(f"V* = {truth.value:.4f} nats")

# %%
# Learned from samples
# --------------------

draws = torch.Generator().manual_seed(0)
learned = sb.fit(source.sample(ROWS, draws), target.sample(ROWS, draws), reference=reference, solver=solver, seed=1)

times = [0.0, 0.25, 0.5, 0.75, 1.0]
states = learned.forward.marginals(times, PATHS, seed=2).double()
fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
for t, x in zip(times, states, strict=True):
    colour = plt.get_cmap("viridis")(0.9 * t)
    ax.scatter(*x[:1200].T, s=2, color=colour, alpha=0.4, linewidths=0)
    mean, covariance = truth.marginal(t)
    size, axes = torch.linalg.eigh(covariance)
    angle = float(torch.rad2deg(torch.atan2(axes[1, 1], axes[0, 1])))
    width, height = (4 * size.flip(0).sqrt()).tolist()
    ax.add_patch(Ellipse(mean.tolist(), width, height, angle=angle, fill=False, color=colour, linewidth=1.8))
    ax.annotate(f"{t:g}", (1.15 * float(mean[0]), 3.1), ha="center", fontsize=10, color=colour)
ax.annotate("$t$ =", (-3.4, 3.1), ha="center", fontsize=10)
ax.set(xlim=(-5, 5), ylim=(-3.6, 3.6), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
ax.set_title("States of the learned bridge; ellipses: two standard deviations of the closed form", fontsize=10)

# %%
# Through time
# ------------
# Entries of the covariance. Lines are the formula; dots are the learned bridge with two standard errors.

clock = np.linspace(0, 1, 101)
exact = torch.stack([truth.marginal(float(t))[1] for t in clock])
dots = np.linspace(0, 1, 11)
moved = learned.forward.marginals(dots.tolist(), PATHS, seed=3).double()
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for (i, j), colour in zip(((0, 0), (1, 1), (0, 1)), ("#0072B2", "#D55E00", "#009E73"), strict=True):
    found = torch.stack([torch.cov(x.T)[i, j] for x in moved])
    here = torch.stack([truth.marginal(float(t))[1] for t in dots])
    error = ((here[:, i, i] * here[:, j, j] + here[:, i, j] ** 2) / PATHS).sqrt()
    ax.plot(clock, exact[:, i, j], color=colour, label=f"$\\Sigma_{{{i + 1}{j + 1}}}$")
    ax.errorbar(dots, found, 2 * error, fmt="o", color=colour, markersize=4, capsize=2)
ax.set(xlabel="time $t$", ylabel="covariance", title="Covariance through time: formula (lines), learned (dots)")
ax.legend(frameon=False)

# %%
# The plan, the control, the value
# --------------------------------
# ``Cov(X_0, X_T)`` shows which ends belong together. The energy ``½E∫|u|²dt`` of the simulated closed-form bridge is
# ``V*``. The energy of a learned bridge can be higher or lower, since its end distribution is not exactly the target. A
# sampled plan has a random error, whose size is printed below.

starts = closed.forward.starts(PATHS, seed=4)
for name, bridge in (("closed form, simulated", closed), ("learned", learned)):
    ends = bridge.transport(starts, seed=5)
    plan = (starts.double() - starts.double().mean(0)).T @ (ends.double() - ends.double().mean(0)) / PATHS
    spread = float((plan - truth.coupling).norm() / truth.coupling.norm())
    free = sb.PathMeasure(reference, None, bridge.forward.start, grid=bridge.forward.grid)
    energy = sb.path_kl(bridge.forward, free, PATHS, seed=6)
    print(f"{name}: Cov(X_0, X_T) off by {spread:.1%} of its norm")
    print(f"{'':{len(name)}}  energy {energy.value:.3f} ± {energy.standard_error:.3f} (s.e.); V* = {truth.value:.3f}")
error = ((truth.A.diagonal()[:, None] * truth.B.diagonal() + truth.coupling**2) / PATHS).sqrt()
print(f"{PATHS} exact draws would be off by about {float(error.norm() / truth.coupling.norm()):.1%}")

t = 0.5
x = closed.forward.marginals([t], 2000, seed=7)[0]
gap = (learned.forward.control(t, x) - closed.forward.control(t, x)).square().sum(1).mean()
size = closed.forward.control(t, x).square().sum(1).mean()
print(f"control at t = {t:g}: relative error {float((gap / size).sqrt()):.3f}")

fig, panels = plt.subplots(1, 2, figsize=(9.6, 4.2))
for ax, (name, bridge) in zip(panels, (("Closed form", closed), ("Learned", learned)), strict=True):
    plotting.drift_field(bridge, t, seed=8, ax=ax)
    ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.8))
    ax.set_title(f"{name}: {ax.get_title()}", fontsize=9)
fig.suptitle("Drift half way")

# %%
# Without a closed form
# ---------------------
# If no closed form is known, :func:`sbridge.certify` bounds these numbers. It needs only held-out samples. Compare its
# lower bound with ``V*`` and the gap with zero (:doc:`/trust`).

rows = torch.Generator().manual_seed(1)
print(sb.certify(learned, source.sample(2000, rows).float(), target.sample(2000, rows).float(), seed=9).text())
print(f"V* = {truth.value:.2f} nats")

# %%
# With your own data
# -------------------
# If both of your ends are Gaussian, or if you know only means and covariances, no learning is needed:
# ``sb.fit(sb.Gaussian(a, A), sb.Gaussian(b, B), reference=...)`` chooses the closed form. To test a solver of your own,
# pass it as ``solver`` (:doc:`/extend`), and try more columns and less noise: both make the problem harder.
