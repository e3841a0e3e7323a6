"""A simulated accelerator: a second device without hardware, which refuses what CUDA refuses.

Its tensors wrap tensors on the CPU, say that they are on the device ``simulated:0``, and compute on the CPU. Autograd,
networks and optimisers treat them as those of any device. The rules are those of CUDA:

* all tensors of an operation are on one device, but for 0-dimensional tensors and indices on the CPU;
* a generator fills tensors of its own device only;
* a tensor on the device has no memory that numpy could read.

``with simulated_device():`` makes the device known; within, ``torch.device("simulated")`` works wherever a device does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}  # take tensors from one device to another
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
_LISTS = {"aten::cat", "aten::stack"}  # accept no scalar from another device


class DeviceMixError(RuntimeError):
    """An operation that CUDA refuses."""


class Simulated(Tensor):
    """A tensor on the simulated device; ``inner`` holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Simulated":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def numpy(self, *, force=False):
        return self.detach().cpu().numpy() if force else _refuse("numpy()")

    def __array__(self, dtype=None):
        _refuse("numpy.asarray")

    def tolist(self):
        return self.inner.tolist()

    def __format__(self, spec):
        return self.item().__format__(spec) if self.ndim == 0 else object.__format__(self, spec)

    def __repr__(self, *, tensor_contents=None):
        return f"Simulated({self.inner})"


class _Generators(type(torch.Generator)):
    def __instancecheck__(cls, value):
        return isinstance(value, _real_generator)


_real_generator = torch.Generator


class Generator(_real_generator, metaclass=_Generators):
    """A generator that knows its device, simulated or CPU; it draws the same numbers on both."""

    def __new__(cls, device="cpu"):
        made = _real_generator.__new__(cls)
        made.place = torch.device(device)
        return made

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return DEVICE if self.place.type == NAME else self.place


class _Operations(TorchDispatchMode):
    """Sees the operations in which no simulated tensor takes part: those that make one, and draws on the CPU."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # spares the import of the compiler

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Draws(TorchFunctionMode):
    """Knows the generator of a call, which is another object by the time that the operation runs."""

    place: ClassVar[str | None] = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        draw = kwargs.get("generator")
        if draw is None:
            return func(*args, **kwargs)
        before, _Draws.place = _Draws.place, draw.device.type
        try:
            return func(*args, **kwargs)
        finally:
            _Draws.place = before


@contextmanager
def simulated_device() -> Iterator[torch.device]:
    """Makes the device known to torch's factories and generators."""
    torch.Generator = Generator
    try:
        with _Operations(), _Draws():
            yield DEVICE
    finally:
        torch.Generator = _real_generator


def _refuse(what: str) -> None:
    raise DeviceMixError(f"{what} of a tensor on {DEVICE}: copy it to the CPU first.")


def _run(func, args, kwargs):
    """Checks an operation against the rules, and runs it on the tensors inside."""
    leaves = []
    inside, named = _opened(args, leaves), _opened(kwargs, leaves)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    place = any(isinstance(one, Simulated) for one in tensors)
    if place:
        _check(func, args, tensors)
    if named.get("device") is not None:
        place = torch.device(named["device"]).type == NAME
        if place:
            named["device"] = torch.device("cpu")
    if _Draws.place not in (None, NAME if place else "cpu") and any(isinstance(one, _real_generator) for one in leaves):
        raise DeviceMixError(f"{func}: a generator on {_Draws.place} fills a tensor that is not there.")
    found = func(*inside, **named)
    if func._schema.is_mutable and isinstance(found, Tensor):
        for one in tensors:
            if isinstance(one, Simulated) and one.inner is found:
                return one
    return _closed(found) if place else found


def _check(func, args, tensors):
    """Raises DeviceMixError for tensors on two devices, one of them simulated."""
    name = func._schema.name
    if name in _COPIES:
        return
    if name in _INDEXED:
        tensors = [args[0], *args[2:3]]
    foreign = [one for one in tensors if isinstance(one, Tensor) and not isinstance(one, Simulated)]
    written = func._schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], Simulated)
    if written or (name in _LISTS and foreign) or any(one.ndim for one in foreign):
        shapes = [tuple(one.shape) for one in foreign]
        raise DeviceMixError(f"{func}: tensors on {DEVICE} and on the CPU, these of shapes {shapes}.")


def _opened(value, leaves):
    """The value with the tensors inside in place of the simulated ones; what is no container goes into ``leaves``."""
    if isinstance(value, (list, tuple)):
        return [_opened(item, leaves) for item in value]
    if isinstance(value, dict):
        return {key: _opened(item, leaves) for key, item in value.items()}
    leaves.append(value)
    return _inner(value)


def _closed(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_closed, value))
    return Simulated(value) if isinstance(value, Tensor) else value


def _inner(value):
    return value.inner if isinstance(value, Simulated) else value


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Simulated(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _copy_from(source, target, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target


# torch.tensor and torch.as_tensor copy below the mode.
_LIBRARY = torch.library.Library("aten", "IMPL")
_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
_LIBRARY.impl("_local_scalar_dense", lambda value: value.inner.item(), "PrivateUse1")
