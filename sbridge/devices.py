"""Devices: which there are, where an object is, and the same object on another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch

from sbridge.errors import InvalidInputError, listed, shown
from sbridge.parts import moved, visible_tensors

Device = str | torch.device


class Movable:
    """A base class of objects that can be copied to another device."""

    def to(self, device: Device) -> Self:
        """Returns the same on ``device``, such as ``"cuda"``: its samples, networks and other tensors.

        This object stays as it is; parts that are on the device already are shared by both. Coefficients of processes
        stay on the CPU and are cast to the states, and a plain function stays what it is.

        Raises:
            InvalidInputError: if there is no such device, or it has no float64.
        """
        return moved(self, as_device(device))


def as_device(device: Device) -> torch.device:
    """Returns the device called ``device``.

    Raises:
        InvalidInputError: if it does not exist, has no float64 or stores no numbers; the message names those that do.
    """
    try:
        one = torch.ones((), dtype=torch.float64, device=device if isinstance(device, torch.device) else str(device))
        one.item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        found = ["cpu", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
        raise InvalidInputError(
            f"device {shown(str(device))} is not available; use {listed(found, between=' or ')}. It must have float64."
        ) from error
    return one.device


def device_of(tree: object) -> torch.device | None:
    """Returns the device of the tensors and networks in ``tree``; ``None`` if there are none.

    Raises:
        InvalidInputError: if they are on several.
    """
    return common_device(one.device for one in visible_tensors(tree))


def common_device(places: Iterable[torch.device | None]) -> torch.device | None:
    """Returns the one device among ``places``, ``None`` if there is none; raises InvalidInputError for several."""
    found = {str(place): place for place in places if place is not None}
    if len(found) > 1:
        raise InvalidInputError(
            f"parts of one model are on {listed(sorted(found), between=' and ')}: move the whole with .to(device)."
        )
    return next(iter(found.values()), None)


def check_device(x: torch.Tensor, device: torch.device | None, name: str, model: str) -> None:
    """Raises InvalidInputError for rows on another device than the model; ``None``: a model without numbers."""
    if device is not None and x.device != device:
        raise InvalidInputError(
            f"{name} is on {x.device}, {model} on {device}: move one of them, {name}.to({shown(str(device))}) or "
            f"{model.split()[-1]}.to({shown(str(x.device))})."
        )
