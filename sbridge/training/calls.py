"""What surrounds every call of a network under training, by hooks: the network itself stays what it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbridge.errors import InvalidInputError


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
    contexts: list[torch.autocast] = []

    def enter(module: nn.Module, args: tuple[object, ...]) -> None:
        contexts.append(torch.autocast(weights[0].device.type, torch.bfloat16))
        contexts[-1].__enter__()

    def leave(module: nn.Module, args: tuple[object, ...], result: object) -> object:
        contexts.pop().__exit__(None, None, None)
        like = next((one for one in reversed(args) if isinstance(one, Tensor)), None)
        outermost = not contexts and isinstance(result, Tensor) and like is not None
        return result.to(like.dtype) if outermost else result  # type: ignore[union-attr]

    for inner in module.modules():
        inner.register_forward_pre_hook(enter)
        inner.register_forward_hook(leave, always_call=True)
