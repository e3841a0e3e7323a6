"""Images: ``python -m docs.benchmarks.digits`` turns zeros into ones to nines, and generates digits, 8 × 8 pixels.

The digits of scikit-learn, pixels divided by 16, four fifths to fit and one fifth to score, three seeds. Rows: the
energy distance of images made from held-out zeros to held-out digits, its floor (fitted digits in place of made ones),
zeros as they are, and pictures of the fit drawn at random; then the mean distance of an image to its nearest picture of
the fit, as a share of that of held-out digits: much less than 1 would be memorised pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from sklearn.datasets import load_digits
from torch import Tensor

import sbridge as sb
from sbridge.benchmarks.output import row
from sbridge.benchmarks.tables import timed
from sbridge.metrics import EnergyDistance
from sbridge.random import generator

SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Settings:
    """Options of this benchmark.

    Args:
        seeds: of split and fit.
        width: of the U-Net.
        updates: of a stage of ``IMF``.
        score_updates: of the score.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 32
    updates: int = 150
    score_updates: int = 3000


def split(images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Returns four fifths to fit and one fifth to score."""
    order = torch.randperm(len(images), generator=generator(seed))
    return images[order[len(images) // 5 :]], images[order[: len(images) // 5]]


def nearest(images: Tensor, fitted: Tensor) -> float:
    """Returns the mean distance of an image to the nearest one of the fit."""
    return float(torch.cdist(images.flatten(1), fitted.flatten(1)).amin(1).mean())


def scores(made: Tensor, fitted: Tensor, held: Tensor) -> dict[str, str]:
    """Returns the two scores of images."""
    distance = EnergyDistance()(made.flatten(1), held.flatten(1), generator(0))
    return {"energy": f"{distance:.4f}", "nearest": f"{nearest(made, fitted) / nearest(held, fitted):.2f}"}


def main(settings: Settings) -> None:
    """Prints a line for each model and seed."""
    digits: Any = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    unet, plain = sb.networks.UNet(SHAPE, settings.width), sb.networks.ScaledMLP()
    for seed in settings.seeds:
        (x0, x0_held), (x1, x1_held) = split(images[labels == 0], seed), split(images[labels != 0], seed)
        row(f"seed {seed}: fitted digits, the floor", **scores(x1[: len(x1_held)], x1, x1_held))
        row(f"seed {seed}: zeros as they are", **scores(x0_held, x1, x1_held))
        for name, network in (("U-Net", unet), ("MLP", plain)):
            solver = sb.IMF(network=network, pretraining=1000, stages=4, updates=settings.updates)
            bridge, seconds = timed(partial(sb.fit, x0, x1, solver=solver, seed=seed))
            starts = x0_held.repeat(-(-len(x1_held) // len(x0_held)), 1, 1, 1)[: len(x1_held)]
            made = bridge.transport(starts, seed=seed)
            row(f"seed {seed}: IMF, {name}", **scores(made, x1, x1_held), s=f"{seconds:.0f}")
        everything, held = split(images, seed)
        row(f"seed {seed}: generation, the floor", **scores(everything[: len(held)], everything, held))
        for name, network in (("U-Net", unet), ("MLP", plain)):
            score = sb.ScoreMatching(updates=settings.score_updates, network=network)
            model, seconds = timed(partial(sb.diffuse, everything, solver=score, seed=seed))
            made = sb.generate(model, len(held), seed=seed)
            row(f"seed {seed}: generation, {name}", **scores(made, everything, held), s=f"{seconds:.0f}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
