"""Isolation of results from the global switches of torch.

Gradient mode, inference mode, autocast, the default device and the default dtype belong to the caller. A fit must not
depend on them, so what computes runs with them at their defaults, and puts them back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

_AUTOCAST_DEVICES = ("cpu", "cuda")


@contextmanager
def standard_modes(*, gradients: bool | None = None) -> Iterator[None]:
    """Context manager and decorator that sets the switches of torch to their default values.

    Inference mode and autocast are off, new tensors are float32 on the CPU unless stated otherwise. The caller's
    values return at the end. The default dtype is one value for the whole process: while it is replaced, other
    threads see the replacement.

    Args:
        gradients: whether operations are recorded for gradients; ``None``: as the caller has it.
    """
    gradients = torch.is_grad_enabled() if gradients is None else gradients
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":  # entered only where it is needed: the context costs time in every call of torch
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def owned(tensor: Tensor) -> Tensor:
    """Returns a contiguous copy with its own memory, which allows gradients whatever the mode of ``tensor``."""
    with torch.inference_mode(mode=False), torch.set_grad_enabled(torch.is_grad_enabled()):
        return tensor.clone(memory_format=torch.contiguous_format)
