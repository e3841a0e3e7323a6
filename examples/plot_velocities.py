r"""Current and osmotic velocity of a bridge
========================================

The paths of a bridge have two mean velocities: ``b + σu`` given the past, and ``b − σû`` given the future. Half their
sum is the current velocity ``v``, which carries the density. Half their difference is the osmotic velocity ``w``, which
points to where the density is high (Nelson 1966):

.. math:: v = b + \tfrac12 \sigma (u - \hat u), \qquad
   w = \tfrac12 \sigma (u + \hat u) = \tfrac12 \sigma\sigma^\top \nabla \log p_t .

:meth:`sbridge.Bridge.current_velocity` and :meth:`sbridge.Bridge.osmotic_velocity` compute them for every bridge, and
:meth:`sbridge.Bridge.score` gives ``∇log p_t``. The page draws both fields and checks how the energy of a bridge splits
between them.
"""

import math
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

import sbridge as sb
from sbridge import functionals

FAST = "--fast" in sys.argv
PATHS = 4000 if FAST else 40_000
STEPS = 50 if FAST else 200

# %%
# Two fields of one bridge
# ------------------------
# Two moons move to a ring of eight spots. The bridge between samples is exact for these samples.

x0, x1 = sb.datasets.make("two_moons", 400, seed=0), sb.datasets.make("eight_gaussians", 400, seed=1)
bridge = sb.fit(x0, x1, solver=sb.SinkhornBridge(), seed=0)
t = 0.6 * bridge.horizon
states = bridge.interpolate(x0, t, seed=2)
low, high = states.min(0).values, states.max(0).values
side = [torch.linspace(float(a), float(b), 18) for a, b in zip(low, high, strict=True)]
places = torch.cartesian_prod(*side)
near = torch.cdist(places, states).min(1).values < 0.12 * float((high - low).max())
places = places[near]
fields = {
    "current velocity": bridge.current_velocity(t, places),
    "osmotic velocity": bridge.osmotic_velocity(t, places),
}
fig, panels = plt.subplots(1, 2, figsize=(9.4, 4.4), layout="constrained", sharex=True, sharey=True)
for ax, (name, field) in zip(panels, fields.items(), strict=True):
    ax.scatter(*states.T, s=4, color="#BBBBBB", linewidths=0)
    ax.quiver(*places.T, *field.T, color="#0072B2", width=0.004)
    ax.set(aspect="equal", title=f"{name} at 0.6 T", xlabel="$x_1$")
panels[0].set_ylabel("$x_2$")

# %%
# How the energy splits
# ---------------------
# For Brownian motion the energy of the bridge is that of both velocities, minus what the growth of the entropy gives:
#
# .. math:: \tfrac12 \mathbb E \int |\sigma u|^2 dt = \tfrac12 \mathbb E \int |v|^2 + |w|^2 dt
#    - \tfrac12 \sigma^2 \big(H(p_T) - H(p_0)\big) .
#
# Between Gaussian ends all terms are known. The same paths give the entropy production ``E∫ 2|v|²/σ² dt``.

sigma, narrow, wide = 0.8, 0.5, 2.0
ends = [
    sb.Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64))
    for mean, variance in ((0.0, narrow), (1.5, wide))
]
problem = sb.BridgeProblem(*ends, sb.BrownianMotion(sigma))
line = sb.solve(problem, sb.GaussianBridge(sb.time.TimeGrid.uniform(STEPS)), seed=0)
paths = line.forward.sample(PATHS, seed=1)


def energy(field):
    """``½∫ |field|² dt`` along each path."""
    return functionals.integrate(paths, lambda t, x: 0.5 * field(t, x).square().sum(1))


whole = energy(lambda t, x: sigma * line.forward.control(t, x))
current, osmotic = energy(line.current_velocity), energy(line.osmotic_velocity)
growth = 0.5 * math.log(wide / narrow)
print(f"energy {whole.estimate}, current {current.estimate}, osmotic {osmotic.estimate}")
print(f"current + osmotic − energy: {(current + osmotic - whole).estimate}; closed form {0.5 * sigma**2 * growth:.4f}")


def log_density(t, x):
    """The log density of the two ends."""
    return ends[round(float(t))].log_density(x)


made = functionals.entropy_production(paths, line.forward.control, log_density)
print(f"entropy production: {made}; from the current velocity: {current * (4 / sigma**2)}")

clock = np.linspace(0.02, 0.98, 25)
sizes = np.empty((2, 25))
for k, time in enumerate(clock):
    rows = line.forward.marginals([float(time)], PATHS, seed=3)[0]
    sizes[:, k] = [
        float(field(float(time), rows).square().mean()) for field in (line.current_velocity, line.osmotic_velocity)
    ]
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, size in zip(("current", "osmotic"), sizes, strict=True):
    ax.plot(clock, size, label=name)
ax.set(xlabel="time $t$", ylabel="mean square", title="Mean squares of the two velocities", ylim=(0, None))
ax.legend(frameon=False)
