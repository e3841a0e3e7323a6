"""What an object consists of: a walk over dataclasses, tuples, lists and dicts down to tensors and networks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")


def parts_of(tree: object, kind: type[_T]) -> Iterator[_T]:
    """Yields all objects of a kind in ``tree``; not what is inside of them."""
    if isinstance(tree, kind):
        yield tree
        return
    for _, part in _parts(tree):
        yield from parts_of(part, kind)


def visible_tensors(tree: object) -> Iterator[Tensor]:
    """Yields the tensors visible in ``tree``: itself, those of its parts, and the parameters of networks."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, nn.Module):
        yield from tree.parameters()
    for _, part in _parts(tree):
        yield from visible_tensors(part)


def moved(tree: _T, device: torch.device) -> _T:
    """Returns ``tree`` with its tensors and networks on ``device``; what is there already, or is a function, stays.

    Objects are made anew by their constructors, which may keep numbers on the CPU, as processes do. One that has its
    numbers elsewhere than in tensors has a method ``moved_to``. A part that occurs twice does so afterwards.
    """
    return _moved(tree, device, {})


def _moved(tree: Any, device: torch.device, known: dict[int, Any]) -> Any:  # noqa: ANN401
    if id(tree) in known:
        return known[id(tree)]
    made, own = tree, getattr(type(tree), "moved_to", None)
    if own is not None:
        made = own(tree, device)
    elif isinstance(tree, Tensor):
        made = tree.to(device)
    elif isinstance(tree, nn.Module):
        if any(one.device != device for one in (*tree.parameters(), *tree.buffers())):
            made = copy.deepcopy(tree).to(device)
    else:
        parts = dict(_parts(tree))
        new = {key: _moved(part, device, known) for key, part in parts.items()}
        if any(new[key] is not parts[key] for key in parts):
            made = _like(tree, new)
    known[id(tree)] = made
    return made


def _parts(tree: object) -> Iterator[tuple[Any, object]]:
    """Yields the parts of a container, or of an object of a dataclass, with their keys."""
    if isinstance(tree, (tuple, list)):
        yield from enumerate(tree)
    elif isinstance(tree, dict):
        yield from tree.items()
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        yield from ((item.name, getattr(tree, item.name)) for item in dataclasses.fields(tree) if item.init)


def _like(tree: Any, parts: dict[Any, object]) -> object:  # noqa: ANN401
    """Returns a container or an object of the kind of ``tree`` with other parts."""
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(tree, **parts)  # type: ignore[arg-type]
    return parts if isinstance(tree, dict) else type(tree)(parts.values())
