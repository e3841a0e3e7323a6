"""Several processes that fit together: who they are, and what they tell each other.

torch.distributed is the engine. The environment alone decides: where a process group exists, or torchrun has set its
variables, the processes of that group work on one fit. In every other process all functions here return at once.
"""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from sbridge.errors import DistributedError, InvalidInputError, SbridgeError, listed
from sbridge.launched import launched

_left = False  # whether this process has left the group that torchrun made it join
_sharing = False  # whether all processes make the same calls now, so that each may do a part of the work
T = TypeVar("T")


def size() -> int:
    """Returns the number of processes of this fit; joins them if torchrun started this one."""
    if not distributed.is_available():
        return 1
    if distributed.is_initialized():
        return distributed.get_world_size()
    if _left or launched()[1] == 1:
        return 1
    with _told():
        distributed.init_process_group("gloo")
    atexit.register(_destroy)
    return distributed.get_world_size()


def rank() -> int:
    """Returns the index of this process; number 0 writes files and shows progress."""
    return distributed.get_rank() if size() > 1 else 0


def leave() -> None:
    """Leaves the other processes for good, at the end of a command: what follows is the work of one process."""
    global _left
    if size() > 1:
        _destroy()
        _left = True


def _destroy() -> None:
    """Ends the threads of the group: an interpreter that exits while they run may be aborted (SIGABRT)."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def sharing() -> bool:
    """Returns whether the work of a call is to be shared out: all processes are known to make it."""
    return _sharing


@contextmanager
def together() -> Iterator[None]:
    """Context of code that all processes of a fit run in step, if there are several."""
    with _set_sharing(size() > 1):
        yield


@contextmanager
def apart() -> Iterator[None]:
    """Context of code that one process may run alone."""
    with _set_sharing(False):  # noqa: FBT003
        yield


def share_of(rows: int, block: int) -> slice:
    """Returns the rows that this process computes: whole blocks, or all rows if there are too few or nobody shares."""
    if not _sharing or rows < block * size():
        return slice(0, rows)
    length = _length(rows, block)
    return slice(min(rank() * length, rows), min((rank() + 1) * length, rows))


def whole(share: Tensor, rows: int, block: int) -> Tensor:
    """Returns all ``rows`` from the shares of :func:`share_of`, one from each process."""
    return share if len(share) == rows else Gather.apply(share, rows, block)


@contextmanager
def own_rows() -> Iterator[None]:
    """Context of the work on the rows of this process alone: if it fails in one process, all of them fail there.

    Raises:
        DistributedError: if it failed in another process, whose own error says why.
    """
    try:
        with apart():
            yield
    except SbridgeError:
        largest(1)
        raise
    if largest(0):
        raise DistributedError("another process of this fit could not compute its rows; its own message says why.")


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, by one reduction of all of them per dtype and device."""
    count = size()
    if count == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for one in tensors:
        kinds.setdefault((one.dtype, one.device), []).append(one)
    for group in kinds.values():
        flat = torch.cat([one.reshape(-1) for one in group])
        with _told():
            distributed.all_reduce(flat)
        for one, mean in zip(group, (flat / count).split([one.numel() for one in group]), strict=True):
            one.copy_(mean.view_as(one))


def largest(number: int) -> int:
    """Returns the largest of the numbers that the processes give."""
    if size() == 1:
        return number
    found = torch.tensor(number, device="cpu")
    with _told():
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def first_reason(reason: str | None) -> str | None:
    """Returns a reason that one of the processes gives, the same one in all of them; ``None`` if none does."""
    if size() == 1 or not largest(int(reason is not None)):
        return reason
    return next(one for one in _gathered(reason) if one is not None)


def from_first(make: Callable[[], T]) -> T:
    """Returns what ``make`` returns in process 0, where alone it is called."""
    if size() == 1:
        return make()
    found = [make() if rank() == 0 else None]
    with _told():
        distributed.broadcast_object_list(found)
    return found[0]  # type: ignore[return-value]


def check_equal(described: Callable[[], Mapping[str, str]]) -> None:
    """Raises InvalidInputError, naming the difference, unless ``described()`` is the same in all processes."""
    if size() == 1:
        return
    everyone = _gathered(dict(described()))
    for number, other in enumerate(everyone):
        names = [name for name in {**everyone[0], **other} if everyone[0].get(name) != other.get(name)]
        if names:
            told = [f"{name} is {everyone[0].get(name)} in process 0, {other.get(name)} in {number}" for name in names]
            raise InvalidInputError(
                f"the processes of one fit need the same data and settings: {listed(told, 4, between='; ')}. To run "
                "separate fits, start them without torchrun."
            )


def describe(value: object, name: str) -> dict[str, str]:
    """Describes a value by its parts: numbers as they are, tensors by shape and checksum, functions by name."""
    return dict(_parts(value, name, set()))


class Gather(torch.autograd.Function):
    """Rows of all processes from those of each. Gradients of a share count for all processes: they are averaged."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, rows: int, block: int) -> Tensor:  # noqa: ANN401
        """Puts the shares, padded to one length, after each other and cuts them at ``rows``."""
        ctx.block = block
        length = _length(rows, block)
        sent = share.contiguous()
        if len(share) < length:
            sent = torch.cat([sent, sent.new_zeros(length - len(share), *share.shape[1:])])
        whole = sent.new_empty(size() * length, *share.shape[1:])
        with _told():
            distributed.all_gather(list(whole.split(length)), sent)
        return whole[:rows]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """``size`` times the rows of this process: the mean over the processes is then the sum of all shares."""
        return size() * Share.apply(*grad_outputs, ctx.block), None, None


class Share(torch.autograd.Function):
    """The rows of this process; the opposite of :class:`Gather`, so that gradients to any order are those of all."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, block: int) -> Tensor:  # noqa: ANN401
        """Cuts the rows out; the last processes may get fewer, or none."""
        ctx.rows, ctx.block = len(whole), block
        length = _length(len(whole), block)
        return whole[rank() * length : (rank() + 1) * length].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """The gradients of all processes, which carry the factor ``size``."""
        return Gather.apply(*grad_outputs, ctx.rows, ctx.block) / size(), None


def _length(rows: int, block: int) -> int:
    """The rows of each process but the last ones: whole blocks."""
    return -(-rows // (block * size())) * block


@contextmanager
def _set_sharing(now: bool) -> Iterator[None]:  # noqa: FBT001
    global _sharing
    before, _sharing = _sharing, now
    try:
        yield
    finally:
        _sharing = before


def _gathered(value: T) -> list[T]:
    found: list[Any] = [None] * size()
    with _told():
        distributed.all_gather_object(found, value)
    return found


@contextmanager
def _told() -> Iterator[None]:
    """Tells of a lost process in the package's own words."""
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            f"another process of this fit has ended or cannot be reached ({str(error).splitlines()[0]}). Its own "
            "message says why; a fit of the command line goes on from its checkpoint with --resume."
        ) from error


def _parts(value: object, name: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Generator):
        value = value.get_state()
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        sha256 = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        yield name, f"{str(plain.dtype).removeprefix('torch.')} {tuple(plain.shape)} {sha256[:8]}"
    elif isinstance(value, (bool, int, float, str)) or value is None:
        yield name, str(value)
    elif id(value) not in seen:
        seen.add(id(value))
        yield name, getattr(value, "__qualname__", type(value).__qualname__)
        for key, item in _inside(value).items():
            yield from _parts(item, f"{name}.{key}", seen)


def _inside(value: object) -> Mapping[Any, object]:
    """The parts of a container, a network or an object; a function has none that could be compared."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if isinstance(value, torch.nn.Module):
        return value.state_dict()
    return {} if callable(value) and not is_dataclass(value) else getattr(value, "__dict__", {})
