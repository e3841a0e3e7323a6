"""What surrounds every call of a network under training, by hooks: the network itself stays what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sbridge import distributed
from sbridge.controls.base import Control, Time
from sbridge.errors import InvalidInputError

_LEAST_SHARE = 8
"""Rows per process; fewer are not worth the message."""


def compute_in_bfloat16(module: nn.Module) -> None:
    """Calls of ``module``, and of modules in it, run under autocast; their results return in the dtype of their input.

    bfloat16 has the exponents of float32, so that losses need no scaling. Only the calls are under autocast: costs,
    losses, Sinkhorn iterations and the backward pass are not.

    Raises:
        InvalidInputError: for weights in float64, which autocast leaves as they are.
    """
    weights = list(module.parameters())
    if any(one.dtype == torch.float64 for one in weights):
        raise InvalidInputError(
            "autocast=True is for networks in float32, and this one is in float64, as the data are: give float32 data, "
            "or leave autocast out."
        )
    _Bfloat16(weights[0].device.type).surround(module)


def share_rows(module: nn.Module) -> None:
    """In each call of ``module``, or of a module in it, every process computes its share of the rows and gets all.

    A module must treat each row alone. The rows of a call are the length of its last tensor; arguments of another
    length, such as one time for all rows, belong to every row. Too few rows are computed by every process.
    """
    if distributed.size() > 1:
        _SharedCall().surround(module)


def shared(control: Control) -> Control:
    """``control`` whose calls are shared out as those of a network are, parts that are not networks included."""
    if not distributed.sharing():
        return control

    def share(t: Time, x: Tensor) -> Tensor:
        rows, (own_t, own_x) = _own_rows((t, x))
        if not rows:
            return control(t, x)
        with distributed.apart():
            found = control(own_t, own_x)
        return distributed.whole(found, rows, 1)

    return share


class _Surrounding(ABC):
    """What is done before and after the outermost call. Copies of the network have left training and do without."""

    def __init__(self) -> None:
        self._depth = 0

    def surround(self, module: nn.Module) -> None:
        for inner in module.modules():
            inner.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
            inner.register_forward_hook(_Hook(self._after), always_call=True)

    @abstractmethod
    def enter(self, args: tuple[object, ...], *, named: bool) -> tuple[object, ...]:
        """The arguments that the network is called with; ``named``: whether there are others, given by name."""

    @abstractmethod
    def leave(self, result: object) -> object:
        """The result that the caller gets; ``None`` if the call failed."""

    def _before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self._depth += 1
        return (self.enter(args, named=bool(kwargs)), kwargs) if self._depth == 1 else None

    def _after(self, module: nn.Module, args: tuple[object, ...], result: object) -> object:
        self._depth -= 1
        return self.leave(result) if self._depth == 0 else None


class _Hook:
    """A hook that copies of a module do not take with them."""

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __deepcopy__(self, memo: dict[int, object]) -> Callable[..., None]:
        return _nothing


def _nothing(*args: object) -> None:
    """The hook of a copy."""


class _Bfloat16(_Surrounding):
    def __init__(self, device: str) -> None:
        super().__init__()
        self._device, self._context, self._dtype = device, torch.autocast(device, torch.bfloat16), torch.float32

    def enter(self, args: tuple[object, ...], *, named: bool) -> tuple[object, ...]:
        self._dtype = next((one.dtype for one in reversed(args) if isinstance(one, Tensor)), torch.float32)
        self._context.__enter__()
        return args

    def leave(self, result: object) -> object:
        self._context.__exit__(None, None, None)
        return result.to(self._dtype) if isinstance(result, Tensor) else result


class _SharedCall(_Surrounding):
    def __init__(self) -> None:
        super().__init__()
        self._rows = 0
        self._alone = ExitStack()

    def enter(self, args: tuple[object, ...], *, named: bool) -> tuple[object, ...]:
        self._rows, args = (0, args) if named else _own_rows(args)
        if self._rows:
            self._alone.enter_context(distributed.apart())
        return args

    def leave(self, result: object) -> object:
        self._alone.close()
        return distributed.whole(result, self._rows, 1) if self._rows and isinstance(result, Tensor) else result


def _own_rows(args: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
    """The number of rows of a call that is shared, 0 if it is not, and the arguments for this process."""
    rows = next((len(one) for one in reversed(args) if isinstance(one, Tensor) and one.ndim), 0)
    if not distributed.sharing() or rows < _LEAST_SHARE * distributed.size():
        return 0, args
    return rows, tuple(distributed.Share.apply(one, 1) if _length(one) == rows else one for one in args)


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, Tensor) and value.ndim else None
