"""A network under training."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from sbridge import distributed
from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError, shown
from sbridge.training.calls import compute_in_bfloat16, share_rows
from sbridge.training.entries import StateDict, below, copied, take
from sbridge.training.optimisation import Optimisation

_SCHEDULED = ("lr", "params")


class Learner:
    """A network, its averaged copy and its optimiser.

    Args:
        module: the network that is trained.
        options: how it is trained.
        length: the number of updates in the schedule of the learning rate.

    Raises:
        InvalidInputError: if the optimiser that the options make cannot be used, or autocast cannot.
    """

    def __init__(self, module: nn.Module, options: Optimisation, length: int) -> None:
        if options.accumulate > length:
            raise InvalidInputError(
                f"accumulate = {options.accumulate} gradients are more than the {length} updates of the network, which "
                "would not take a step: accumulate fewer, or train for longer."
            )
        options.prepare(module)
        self.module = module
        self.options = options
        self.length = length
        self.updates = 0
        self.average = options.average(module)
        self.parameters = list(module.parameters())
        self.optimiser = _checked(options.optimiser(self.parameters), options)
        groups = self.optimiser.param_groups
        self._shares = [group["lr"] / options.learning_rate for group in groups]
        self._made = [{key: copied(value) for key, value in group.items() if key != "params"} for group in groups]
        if options.autocast:
            compute_in_bfloat16(module)
        for one in (module, self.averaged):
            share_rows(one)

    def update(self, loss: Tensor) -> Tensor:
        """One step down the gradient of ``loss``, or a part of it if gradients are accumulated; returns the loss.

        The loss stays a tensor: to read it as a number is to wait for the device.
        """
        parts = self.options.accumulate
        if self.updates % parts == 0:
            self.optimiser.zero_grad(set_to_none=True)
        (loss if parts == 1 else loss / parts).backward()
        if distributed.size() > 1:
            distributed.average([one.grad for one in self.parameters if one.grad is not None])
        if (self.updates + 1) % parts == 0:
            rate = _checked_rate(self.options.rate(self.updates, self.length), self.updates)
            for group, share in zip(self.optimiser.param_groups, self._shares, strict=True):
                group["lr"] = rate * share
            self.options.clip_gradients(self.parameters)
            self.optimiser.step()
            self.average.update_parameters(self.module)
        self.updates += 1
        return loss.detach()

    @property
    def averaged(self) -> nn.Module:
        """The network with averaged weights, which training changes."""
        return self.average.module

    def solution(self) -> nn.Module:
        """A copy of the network with averaged weights, which further training leaves alone."""
        return frozen_copy(self.averaged)

    def state_dict(self) -> StateDict:
        """Copies of the weights, the averaged weights, what the optimiser keeps, and gradients that it has not used.

        Raises:
            UnsupportedError: if the optimiser keeps something else than tensors and numbers.
        """
        found: StateDict = {"updates": self.updates}
        for name, module in (("average", self.average), ("module", self.module)):
            found |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
        for index, kept in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{index}.{key}": self._entry(key, value) for key, value in _present(kept)}
        for index, (group, made) in enumerate(zip(self.optimiser.param_groups, self._made, strict=True)):
            own = {key: value for key, value in group.items() if key not in _SCHEDULED and not _same(value, made[key])}
            found |= {f"group.{index}.{key}": self._entry(key, value) for key, value in own.items()}
        if self.updates % self.options.accumulate:
            gradients = ((index, one.grad) for index, one in enumerate(self.parameters))
            found |= {f"gradient.{index}": grad.clone() for index, grad in gradients if grad is not None}
        return found

    def load_state_dict(self, saved: StateDict) -> None:
        """Sets everything from what :meth:`state_dict` returned, which stays as it is.

        Raises:
            FileFormatError: if something is missing, or the weights are those of another network.
        """
        left = dict(saved)
        self.updates = take(int, left, "updates")
        weights = {name: below(left, name) for name in ("average", "module")}
        kept = below(left, "adam") | below(left, "optimiser")  # adam: in checkpoints of version 0.1.0
        groups = self.optimiser.state_dict()["param_groups"]
        try:
            for index, own in _nested(below(left, "group")).items():
                groups[index] |= own
            self.average.load_state_dict(weights["average"])
            self.module.load_state_dict(weights["module"])
            self.optimiser.load_state_dict({"state": _nested(kept), "param_groups": groups})
            self._keep_dtypes(_nested(kept))
            for index, gradient in below(left, "gradient").items():
                one = self.parameters[int(index)]
                one.grad = copied(gradient).to(one)
        except (RuntimeError, ValueError, LookupError) as error:
            raise FileFormatError(f"the weights in the state are those of another network: {error}.") from error

    def _keep_dtypes(self, kept: dict[int, dict[str, Any]]) -> None:
        """Undoes that optimisers load in the dtype of the weights: NAdam counts in float32 beside float64 weights."""
        ordered = [one for group in self.optimiser.param_groups for one in group["params"]]
        for index, own in kept.items():
            state = self.optimiser.state[ordered[index]]
            state |= {
                key: value.to(state[key].device)
                for key, value in own.items()
                if isinstance(value, Tensor) and value.dtype != state[key].dtype
            }

    def _entry(self, key: str, value: object) -> Tensor | int | float | str:
        if isinstance(value, (Tensor, int, float, str)):
            return copied(value)
        raise UnsupportedError(
            f"{type(self.optimiser).__name__} keeps {shown(key)} as a {type(value).__name__}, and a checkpoint holds "
            "tensors, numbers and text alone. Train without checkpoints, or with another optimiser."
        )


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights need no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(requires_grad=False)


def _present(kept: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in kept.items() if value is not None]


def _nested(flat: StateDict) -> dict[int, dict[str, Any]]:
    """``{"0.name": …}`` as ``{0: {"name": …}}``, with tensors of its own: optimisers change theirs in place."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        found.setdefault(int(index), {})[name] = copied(value)
    return found


def _same(value: object, made: object) -> bool:
    if isinstance(value, Tensor) or isinstance(made, Tensor):
        return False
    return value == made


def _checked(optimiser: torch.optim.Optimizer, options: Optimisation) -> torch.optim.Optimizer:
    """Returns the optimiser; raises InvalidInputError if updates cannot use it."""
    maker = f"{type(options).__name__}.optimiser"
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise InvalidInputError(
            f"{maker} must return a torch.optim.Optimizer of the parameters that it is given, got {shown(optimiser)}."
        )
    closure = inspect.signature(optimiser.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InvalidInputError(
            f"{maker} returned {type(optimiser).__name__}, whose step evaluates the loss again by a closure; every "
            "update here has its own random batch. Take an optimiser of one gradient, such as AdamW or SGD."
        )
    if not all(isinstance(group.get("lr"), (int, float)) for group in optimiser.param_groups):
        raise InvalidInputError(
            f"{maker} returned {type(optimiser).__name__} without a number lr in every group, which rate() sets: give "
            "lr=self.learning_rate."
        )
    return optimiser


def _checked_rate(rate: float, update: int) -> float:
    if not (isinstance(rate, (int, float)) and 0.0 <= rate < math.inf):
        raise InvalidInputError(f"the learning rate of update {update} must be a number ≥ 0, got {shown(rate)}.")
    return rate
