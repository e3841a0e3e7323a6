r"""Schrödinger's urn
=================

In 1931 Schrödinger asked this question: particles diffuse, and at the end they are found in a very unlikely
distribution. What is the most probable way in which they got there? For particles in cells this is a question about
counts. If a particle goes from cell ``k`` to cell ``l`` with probability ``g_kl``, a transport that takes ``c_kl`` of
``N`` particles from ``k`` to ``l`` has the probability

.. math:: P(c) = \prod_k N_k! \prod_l \frac{g_{kl}^{c_{kl}}}{c_{kl}!}, \qquad N_k = \sum_l c_{kl}, \qquad
   \log P \approx -N\, \mathrm{KL},

and the most probable transport between the observed occupations is ``f_k g_kl h_l``. This is the entropic plan that
Sinkhorn's scaling computes (:func:`sbridge.transport.sinkhorn`). This page counts transports and compares them with
plans, with Stirling's formula, and with a simulation that waits for the rare event.
"""

# sphinx_gallery_thumbnail_number = 4

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

from sbridge.transport import EntropicProblem, Sinkhorn, log_transport_probability, sinkhorn

FAST = "--fast" in sys.argv
TRIALS = 200_000 if FAST else 2_000_000

# %%
# Two cells
# ---------
# The cells are at 0 and 1. A Brownian particle with unit noise goes from cell k to cell l with probability ``g_kl``.
# Half of the particles start in each cell. At the end three quarters are found in the second cell, which is unlikely.


def kernel_between(places, variance=1.0):
    """``g_kl``: the share of a Brownian particle's weight that each cell receives."""
    exponents = -0.5 * (places[:, None] - places[None, :]) ** 2 / variance
    weights = np.exp(exponents)
    return weights / weights.sum(1, keepdims=True)


def transports(n):
    """All integer transports between these occupations, and the share that stays in the first cell."""
    stay = np.arange(0, n // 4 + 1)
    counts = np.stack([np.stack([stay, n // 2 - stay], -1), np.stack([n // 4 - stay, n // 4 + stay], -1)], -2)
    return counts.astype(float), stay / n


kernel = kernel_between(np.array([0.0, 1.0]))
places = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
plan = sinkhorn(
    EntropicProblem(places, places, 1.0, b=torch.tensor([0.25, 0.75], dtype=torch.float64)), Sinkhorn(tolerance=1e-10)
).plan()
print(f"Sinkhorn's plan: {float(plan[0, 0]):.4f} of all particles stay in the first cell")

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for n, colour in zip((16, 64, 256, 1024), ("#9ecae1", "#6baed6", "#3182bd", "#08519c"), strict=True):
    counts, share = transports(n)
    logs = log_transport_probability(counts, kernel)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    spread = np.sqrt(weights @ (share - weights @ share) ** 2)
    print(f"N = {n:4d}: most probable {share[logs.argmax()]:.4f}, mean {weights @ share:.4f}, s.d. {spread:.4f}")
    ax.plot(share, weights * n, color=colour, marker="." if n < 100 else "", label=f"N = {n}")
ax.axvline(float(plan[0, 0]), color="#D55E00", linestyle="--", label="Sinkhorn's plan")
ax.set(xlabel="share of all particles that stays in the first cell", ylabel="conditional density")
ax.set_title("Given both occupations, transports concentrate at Sinkhorn's plan")
ax.legend(frameon=False)

# %%
# Waiting for the rare event
# --------------------------
# With 16 particles one can wait for it: repeat the experiment, and keep the trials that end in the observed
# occupations.

n = 16
rng = np.random.default_rng(0)
first = rng.binomial(n // 2, kernel[0, 0], TRIALS)  # of the first cell's particles, those that stay
second = rng.binomial(n // 2, kernel[1, 0], TRIALS)
kept = first[first + second == n // 4]
counts, share = transports(n)
logs = log_transport_probability(counts, kernel)
exact = np.exp(logs)
frequency = np.bincount(kept, minlength=len(share)) / len(kept)
error = np.sqrt(frequency * (1 - frequency) / len(kept))
rate = len(kept) / TRIALS
print(
    f"probability of the occupations: {exact.sum():.5f}; "
    f"seen in {rate:.5f} ± {(rate / TRIALS) ** 0.5:.5f} of the trials"
)

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
stay = np.arange(len(share))
ax.bar(stay, exact / exact.sum(), color="#0072B2", alpha=0.35, label="multinomial formula, conditioned")
ax.errorbar(stay, frequency, 2 * error, fmt="o", color="#D55E00", capsize=3, label="trials that ended so (2 s.e.)")
ax.axvline(n * float(plan[0, 0]), color="#333333", linestyle="--", linewidth=1, label="Sinkhorn's plan")
ax.set(xlabel="particles that stay in the first cell", ylabel="conditional probability")
ax.set_title(f"{n} particles: formula and simulation")
ax.legend(frameon=False, fontsize=8)

# %%
# Stirling's formula
# ------------------
# ``log P = −N·KL`` up to ``½Σ log 2πN_k − ½Σ log 2πc_kl``. The remainder after these terms falls like ``1/N``.

cells = 6
line = np.linspace(-2.0, 2.0, cells)
spread_kernel = kernel_between(line)
shape = np.random.default_rng(1).integers(1, 9, (cells, cells))
sizes, leading, left = [], [], []
for factor in (1, 2, 4, 8, 16, 32, 64):
    counts = (factor * shape).astype(float)
    rows = counts.sum(1)
    total = counts.sum()
    divergence = (counts * np.log(counts / rows[:, None] / spread_kernel)).sum()
    roots = 0.5 * np.log(2 * np.pi * rows).sum() - 0.5 * np.log(2 * np.pi * counts).sum()
    remainder = log_transport_probability(counts, spread_kernel) + divergence
    sizes.append(total)
    leading.append(abs(remainder) / total)
    left.append(abs(remainder - roots))
slope = np.polyfit(np.log(sizes), np.log(left), 1)[0]
print(f"the remainder falls like N^{slope:.2f}")

fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
ax.loglog(sizes, leading, "o-", color="#0072B2", label="|log P + N·KL| / N, per particle")
ax.loglog(sizes, left, "s-", color="#D55E00", label="remainder after Stirling's square roots")
ax.loglog(sizes, left[0] * sizes[0] / np.array(sizes), color="#333333", linestyle=":", label="1/N")
ax.set(xlabel="particles N", ylabel="nats", title="log P = −N·KL, with its corrections")
ax.legend(frameon=False, fontsize=8)

# %%
# Many cells
# ----------
# There are forty cells. Particles start in two heaps that overlap, and are found in two heaps further apart. The counts
# can no longer be listed, but Sinkhorn's plan can be computed. It is compared with what the particles do by themselves:
# they stay near the diagonal (dotted), and each heap spreads over both.

line = np.linspace(-4.0, 4.0, 40)
free = kernel_between(line, 0.5)


def occupation(*centres):
    """Heaps of equal height."""
    heaps = sum(np.exp(-0.5 * ((line - c) / 0.6) ** 2) for c in centres)
    return heaps / heaps.sum()


begin, end = occupation(-0.8, 0.9), occupation(-2.2, 1.4)
cells = torch.from_numpy(line)[:, None]
problem = EntropicProblem(cells, cells, 0.5, a=torch.from_numpy(begin), b=torch.from_numpy(end))
plan = sinkhorn(problem, Sinkhorn(tolerance=1e-9)).plan().numpy()
print(f"end marginal of the plan: L1 error {abs(plan.sum(0) - end).sum():.1e}")
divergence = (plan * np.log(np.maximum(plan, 1e-300) / (begin[:, None] * free))).sum()
print(f"the rare event costs {divergence:.3f} nats per particle")

fig, panels = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained", sharex=True, sharey=True)
pictures = {"without the end condition": begin[:, None] * free, "given where they end": plan}
for ax, (name, table) in zip(panels, pictures.items(), strict=True):
    image = ax.pcolormesh(line, line, table.T, cmap="Blues", shading="nearest", vmin=0, vmax=plan.max())
    ax.plot(line, line, color="#333333", linewidth=0.6, linestyle=":")
    ax.set(xlabel="cell at the start", title=name, aspect="equal")
panels[0].set_ylabel("cell at the end")
fig.colorbar(image, ax=panels, label="share of the particles", shrink=0.8)
fig.suptitle("Which cell goes where")

# %%
# With your own data
# -------------------
# ``sinkhorn(EntropicProblem(x, y, epsilon, a=..., b=...))`` takes points ``x`` and ``y`` of any dimension and weights
# ``a`` and ``b`` (equal by default). ``.plan()`` is the most probable transport between them. If you also want the
# paths in between, ``sb.fit(x, y, solver=sb.SinkhornBridge())`` gives the bridge of such a plan.
