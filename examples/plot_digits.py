"""Handwritten digits: a bridge between two classes
================================================

What does a three look like on its way to an eight? A Schrödinger bridge between two classes of 8 × 8 images
(:func:`sbridge.fit`) turns each three into a nearby eight that need not be in the data. A nearest-neighbour rule that
knows the real classes says whether the results count as eights, and distances to the training images say whether they
are copies. The digits are those of scikit-learn if it is installed; otherwise digits drawn by matplotlib's own fonts,
turned, shifted and blurred, stand in for them.
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
solver = sb.IMF(pretraining=1500, stages=2, updates=500) if FAST else sb.IMF(pretraining=3000, stages=2, updates=1500)
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
# σ is chosen from the data. 64 dimensions are many for some hundred images: the network sees noised images between
# pairs of the entropic plan, never the images alone.

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
# A bridge draws ends, so one image has many. Their mean shows what they share.

image = held_out[FROM][7]
ends = bridge.transport(image.repeat(64, 1), seed=2)
pictures = [image, *ends[:6], ends.mean(0)]
names = ["from", *[f"draw {k + 1}" for k in range(6)], "mean of 64"]
fig, panels = plt.subplots(1, 8, figsize=(9, 1.7), layout="constrained")
for ax, one, name in zip(panels, pictures, names, strict=True):
    ax.imshow(one.reshape(8, 8).numpy(), cmap="Greys", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(name, fontsize=9)
fig.suptitle("One image, several ends")

# %%
# Do they count?
# --------------
# Each end gets the class of its nearest image among the training images of both classes. The rule is tried on held-out
# images first. W2 is taken to the held-out images of the target, and its floor from as many training images.


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
print(f"the same, moved by the bridge: {share_of(TO, moved)}")
print(f"held-out {TO}s moved back that count as {FROM}s: {share_of(FROM, back)}")

metric, draws = ExactW2(), torch.Generator().manual_seed(0)
for name, images in (
    (f"other {TO}s (floor)", fit[TO][:40]),
    (f"{FROM}s moved by the bridge", moved),
    (f"{FROM}s left alone", held_out[FROM]),
):
    print(f"W2 to held-out {TO}s, {name}: {metric(images, held_out[TO], draws):.3f}")
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
