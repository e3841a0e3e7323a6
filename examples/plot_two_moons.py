"""Two moons to eight Gaussians
============================

A bridge between two built-in sets: fit, transport, predict half way, and judge against rows that were held out.
"""

import sbridge as sb
from sbridge import datasets, plotting

x0 = datasets.make("two_moons", 5000, seed=0)
x1 = datasets.make("eight_gaussians", 5000, seed=1)
bridge = sb.fit(x0[:4000], x1[:4000], seed=0)

print(sb.evaluate(bridge, x0[4000:], x1[4000:], seed=1).text())

axes = plotting.trajectories(bridge.forward.sample(200, seed=2))
axes.figure.savefig("two_moons.png", dpi=150)
