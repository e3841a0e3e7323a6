r"""Handwritten digits: a bridge between two classes
================================================

What does a three look like on its way to an eight? A Schrödinger bridge between two classes of 8 × 8 images
(:func:`sbridge.fit`) turns each three into a nearby eight that need not be in the data. A nearest-neighbour rule that
knows the real classes shows whether the results count as eights. Distances to the training images show whether they are
copies. The digits are those of scikit-learn if it is installed. Otherwise the page uses digits in the fonts of
matplotlib, rotated, shifted and blurred.

An image is a row of 64 numbers, and the bridge is fitted as for any other samples. A path follows

.. math:: dX = \sigma\, u(t, X)\, dt + \sigma\, dW

with a learned control ``u``, in noise units.
"""

import sys
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath

import sbridge as sb
from sbridge import plotting
from sbridge.metrics import ExactW2

FAST = "--fast" in sys.argv
solver = sb.IMF(pretraining=1000, stages=2, updates=300) if FAST else sb.IMF(pretraining=3000, stages=2, updates=1500)
FROM, TO = 3, 8

# %%
# Images as rows
# --------------

FONTS = [
    {"family": family, "weight": weight, "style": style}
    for family, weight, style in product(
        ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"), ("normal", "bold"), ("normal", "italic")
    )
]


def drawn(digit, count, rng):
    """``count`` images of a digit in random fonts, each turned, shifted, scaled and blurred a little."""
    axis = (np.arange(32) + 0.5) / 32
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) - 0.5
    outlines = [TextPath((0, 0), str(digit), size=1, prop=FontProperties(**font)) for font in FONTS]
    images = []
    for _ in range(count):
        outline = outlines[rng.integers(len(outlines))]
        box = outline.get_extents()
        centred = (outline.vertices - (box.min + box.max) / 2) / box.height * rng.uniform(0.75, 0.9)
        angle, shift = rng.normal(0, 0.12), rng.normal(0, 0.03, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        inside = Path(centred @ turn.T + shift, outline.codes).contains_points(points)
        image = inside.reshape(8, 4, 8, 4).mean((1, 3))[::-1]
        images.append(np.clip(image * rng.uniform(0.8, 1.0) + rng.normal(0, 0.03, (8, 8)), 0, 1))
    return np.stack(images).reshape(count, 64)


try:
    from sklearn.datasets import load_digits
except ImportError:
    rng = np.random.default_rng(0)
    classes = {digit: drawn(digit, 180, rng) for digit in (FROM, TO)}
    print(f"scikit-learn is not installed: digits drawn by {len(FONTS)} fonts")
else:
    digits = load_digits()
    classes = {digit: digits.data[digits.target == digit] / 16.0 for digit in (FROM, TO)}
    print("handwritten digits of scikit-learn")
rows = {digit: torch.from_numpy(images).float() for digit, images in classes.items()}
fit = {digit: one[:-40] for digit, one in rows.items()}
held_out = {digit: one[-40:] for digit, one in rows.items()}
print({digit: len(one) for digit, one in rows.items()}, "images, 40 of each held out")

# %%
# The bridge
# ----------
# σ is chosen from the data. 64 dimensions are many for a few hundred images. The network is trained on noised images
# between pairs of the entropic plan, never on the images alone.

bridge = sb.fit(fit[FROM], fit[TO], solver=solver, seed=0)
print(sb.choose_sigma(fit[FROM], fit[TO]))

times = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
few = held_out[FROM][:6]
paths = bridge.forward.simulate(few, seed=1)
steps = [int((paths.t - t).abs().argmin()) for t in times]
fig, panels = plt.subplots(len(few), len(times), figsize=(7, 7), layout="constrained")
for i, row in enumerate(panels):
    for ax, t, k in zip(row, times, steps, strict=True):
        ax.imshow(paths.x[k, i].reshape(8, 8).numpy(), cmap="Greys", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        if i == 0:
            ax.set_title(f"$t$ = {t:g}", fontsize=10)
fig.suptitle(f"Held-out {FROM}s on their way to {TO}s")

# %%
# Many ends of one image
# ----------------------
# A bridge is random, so one image has many ends. With as little noise as here they are variations of one eight. The
# second row shows how each differs from the mean, on a separate colour scale.

image = held_out[FROM][7]
ends = bridge.transport(image.repeat(64, 1), seed=2)
pictures = [image, ends.mean(0), *ends[:6]]
names = ["from", "mean of 64", *[f"draw {k + 1}" for k in range(6)]]
fig, panels = plt.subplots(2, 8, figsize=(9, 2.9), layout="constrained")
for above, below, one, name in zip(*panels, pictures, names, strict=True):
    above.imshow(one.reshape(8, 8).numpy(), cmap="Greys", vmin=0, vmax=1)
    above.set_title(name, fontsize=9)
    if name.startswith("draw"):
        difference = (one - ends.mean(0)).reshape(8, 8).numpy()
        shown = below.imshow(difference, cmap="RdBu_r", vmin=-0.2, vmax=0.2)
    else:
        below.set_axis_off()
    for ax in (above, below):
        ax.set(xticks=[], yticks=[])
fig.colorbar(shown, ax=panels[1], label="draw − mean", shrink=0.9)
fig.suptitle("One image, several ends")

# %%
# Do they count as eights?
# ------------------------
# Each end gets the class of its nearest image among the training images of both classes. The rule is first tested on
# held-out images. W2 is computed to the held-out images of the target, and its floor with equally many other real
# images; means and standard deviations are over eight draws. The transported images are not copies: the smallest
# distance to a training image is not small. They are nearer to training images than new real images are, since with
# little noise the eights are typical ones.


def share_of(digit, images):
    """The share of images whose nearest training image is of this class, with its standard error."""
    nearest = {d: torch.cdist(images.double(), one.double()).amin(1) for d, one in fit.items()}
    (other,) = (d for d in fit if d != digit)
    share = float((nearest[digit] < nearest[other]).double().mean())
    return f"{share:.3f} ± {(share * (1 - share) / len(images)) ** 0.5:.3f}"


moved = bridge.transport(held_out[FROM], seed=3)
back = bridge.reversed().transport(held_out[TO], seed=4)
print(f"held-out {TO}s that count as {TO}s: {share_of(TO, held_out[TO])}")
print(f"held-out {FROM}s that count as {TO}s: {share_of(TO, held_out[FROM])}")
print(f"the same, transported by the bridge: {share_of(TO, moved)}")
print(f"held-out {TO}s transported back that count as {FROM}s: {share_of(FROM, back)}")

metric, draws = ExactW2(), torch.Generator().manual_seed(0)
sets = {
    f"other {TO}s (floor)": [fit[TO][torch.randperm(len(fit[TO]), generator=draws)[:40]] for _ in range(8)],
    f"{FROM}s moved by the bridge": [bridge.transport(held_out[FROM], seed=10 + k) for k in range(8)],
    f"{FROM}s left alone": [held_out[FROM]],
}
for name, clouds in sets.items():
    values = torch.tensor([metric(images, held_out[TO], draws) for images in clouds])
    spread = f" (s.d. {values.std():.3f})" if len(values) > 1 else ""
    print(f"W2 to held-out {TO}s, {name}: {values.mean():.3f}{spread}")
gaps = {
    name: torch.cdist(x.double(), fit[TO].double()).amin(1) for name, x in (("moved", moved), ("real", held_out[TO]))
}
for name, one in gaps.items():
    print(f"{name} images: median distance to the nearest training {TO} {one.median():.3f}, smallest {one.min():.3f}")

# %%
# In the plane of principal components
# ------------------------------------

fig, ax = plt.subplots(figsize=(6, 4.4), layout="compressed")
plotting.coupling(held_out[FROM], moved, ax=ax, projection=plotting.Projection.fit(fit[FROM], fit[TO]))
fig.suptitle(f"Held-out {FROM}s and the {TO}s they become")

# %%
# With your own data
# -------------------
# Flatten your images to rows, ``images.reshape(len(images), -1)``, with values of order one, and use your two classes
# as ``fit``. Some hundred numbers per row are fine. Encode larger images first, and fit the bridge between their codes.
# If all draws look alike and you want more variety, use a reference with more noise: ``sb.fit(...,
# reference=sb.BrownianMotion(sigma))`` (:doc:`/sigma`).
