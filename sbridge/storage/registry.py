"""Conversion of objects to JSON and tensors, and back, through a register of classes that files may name.

A file never holds code. It holds the names of classes that were registered with
:func:`register` and the values of their fields: frozen dataclasses field by field, networks
(``nn.Module``) by the arguments they were built from and their ``state_dict``.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from sbridge.errors import FileFormatError, InvalidInputError, UnsupportedError, shown, unknown_name
from sbridge.modes import standard_modes
from sbridge.storage.documents import Json

_CLASSES: dict[str, type] = {}
_HOMES = (
    "sbridge.solutions",
    "sbridge.solvers",
    "sbridge.diffusion",
    "sbridge.exact",
    "sbridge.fitting",
    "sbridge.functionals",
    "sbridge.benchmarks.quadrature",
    "sbridge.evaluation.baselines",
    "sbridge.evaluation.scorer",
    "sbridge.benchmarks.densities",
    "sbridge.benchmarks.control_problems",
)
"""Modules whose import registers every class of this package that a file may name."""
_RENAMED: dict[str, str] = {"Retraced": "ReversalControl"}
"""Class names in files of earlier versions, with their current names."""
_LARGEST_INTEGER = 2**64
NOT_MADE = (TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError, LookupError)
"""Exceptions of constructors given values of the wrong kind."""
_T = TypeVar("_T", bound=type)


def register(cls: _T) -> _T:
    """Class decorator that lets files name ``cls``.

    A frozen dataclass needs nothing more. An ``nn.Module`` keeps the arguments of its constructor in
    an attribute ``arguments`` (a dict of encodable values). An ``Enum`` is stored by member name.

    Raises:
        InvalidInputError: if the name is taken, or the class is none of the three kinds.
    """
    name, plain = cls.__name__, dataclasses.is_dataclass(cls)
    known = _CLASSES.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise InvalidInputError(f"A class named {shown(name)} is registered already; rename yours.")
    if not (plain or issubclass(cls, nn.Module) or issubclass(cls, enum.Enum)):
        raise InvalidInputError(f"{name} must be a dataclass, an nn.Module or an Enum to be registered.")
    _CLASSES[name] = cls
    return cls


def check_kinds(options: object) -> None:
    """Checks the values of a dataclass's fields against their annotations, where possible.

    Raises:
        InvalidInputError: for the first that is not. A dataclass itself, in place of an object of it, is not; other
            classes may be what a protocol asks for, a network by its constructor.
    """
    try:
        hints = get_type_hints(type(options))
    except NameError:  # a name that is known to type checkers alone
        return
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        value, kind = getattr(options, item.name), hints[item.name]
        if not _is_kind(value, kind):
            told = str(kind) if get_origin(kind) is not None else getattr(kind, "__name__", str(kind))
            remedy = ""
            if isinstance(value, type):
                remedy = ": an object of it is needed"
            elif kind in (int, float) and hasattr(value, "item"):
                remedy = f": take {kind.__name__}(…) of it"
            elif get_origin(kind) is tuple and isinstance(value, (list, int)):
                remedy = ": a tuple is needed, (1, 2) or (1,)"
            raise InvalidInputError(
                f"{type(options).__name__}: {item.name} must be of kind {told}, got {shown(value)}{remedy}."
            )


def _is_kind(value: object, kind: Json) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_kind(value, one) for one in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple and isinstance(value, tuple):
        kinds = parts[:1] * len(value) if parts[-1:] == (Ellipsis,) else parts
        return len(kinds) == len(value) and all(map(_is_kind, value, kinds))
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or kind) and not (isinstance(value, type) and dataclasses.is_dataclass(value))
    except TypeError:  # a kind that says nothing about objects, such as Any
        return True


def registered(name: str, module: str | None = None) -> type:
    """Returns the class registered under ``name``, which alone decides; raises UnknownNameError if none is.

    Files outlive the layout of this package, so they say nothing about where its classes live: a name that is not
    registered yet is looked for by importing the modules in ``_HOMES``. Nothing that a file says is imported.

    Args:
        name: as :func:`register` got it, or as it was in an earlier version.
        module: the module of a class of another package, for the error message: its user has to import it.
    """
    name = _RENAMED.get(name, name)
    for home in _HOMES:
        if name in _CLASSES:
            break
        importlib.import_module(home)
    if name not in _CLASSES:
        where = f", {module}" if isinstance(module, str) else ""
        raise unknown_name(f"class in a file (import the module that registers it{where})", name, _CLASSES)
    return _CLASSES[name]


def encode(value: object) -> tuple[Json, dict[str, Tensor]]:
    """Encodes ``value`` as a JSON tree and the tensors that it refers to by name.

    Raises:
        UnsupportedError: if something in it is not registered (a function, a class of your own).
    """
    tensors: dict[str, Tensor] = {}
    return _encode(value, "", tensors), tensors


@standard_modes()
def decode(tree: Json, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - whatever was encoded
    """Decodes the object that :func:`encode` wrote.

    Raises:
        UnknownNameError: if the tree names a class that is not registered.
        FileFormatError: if fields or tensors are missing or foreign.
    """
    try:
        return _decode(tree, tensors)
    except RecursionError as error:
        raise FileFormatError("objects are nested too deeply: the file was not written by this package.") from error


def _decode(tree: Json, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if isinstance(tree, list):
        return tuple(_decode(item, tensors) for item in tree)
    if isinstance(tree, int) and abs(tree) > _LARGEST_INTEGER:
        raise FileFormatError(f"an integer in the file has {len(hex(tree)) // 4} bytes; at most 8 are used.")
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        name = tree["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise FileFormatError(f"tensor {shown(name)} is named but missing: the file is truncated or mixed up.")
        return tensors[name]
    if "number" in tree:
        if tree["number"] not in ("inf", "-inf", "nan"):
            raise FileFormatError(
                f"{shown(tree['number'])} is not a number that JSON has no word for: inf, -inf or nan."
            )
        return float(tree["number"])
    if "mapping" in tree:
        if not isinstance(tree["mapping"], dict):
            raise FileFormatError(f"a mapping must be an object, got a {type(tree['mapping']).__name__}.")
        return {key: _decode(item, tensors) for key, item in tree["mapping"].items()}
    return _decode_object(tree, tensors)


def _encode(value: object, path: str, tensors: dict[str, Tensor]) -> Json:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous()
        return {"tensor": path}
    if isinstance(value, (tuple, list)):
        return [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {"mapping": {str(key): _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise UnsupportedError(
            f"{path.lstrip('.') or 'the object'} is a {name}, which cannot be saved. Decorate your own dataclass or "
            "nn.Module with @sbridge.register; a plain function cannot be saved."
        )
    named = {"class": name}
    if type(value).__module__.split(".")[0] != "sbridge":
        named["module"] = type(value).__module__
    if isinstance(value, enum.Enum):
        return named | {"member": value.name}
    if isinstance(value, nn.Module):
        for key, tensor in value.state_dict().items():
            tensors[f"{path}.state.{key}"] = tensor.detach().contiguous()
        return named | {"fields": _encode_fields(_arguments(value), path, tensors), "state": f"{path}.state."}
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init and not _left_out(value, f)}  # type: ignore[arg-type]
    return named | {"fields": _encode_fields(fields, path, tensors)}


def _left_out(value: object, item: dataclasses.Field[Any]) -> bool:
    """Whether an optional field has its plain default: files without it are those of versions that did not know it."""
    default, held = item.default, getattr(value, item.name)
    plain = default is None or isinstance(default, (bool, int, float, str))
    return item.kw_only and plain and type(held) is type(default) and held == default


def _arguments(module: nn.Module) -> dict[str, object]:
    arguments = getattr(module, "arguments", None)
    if not isinstance(arguments, dict):
        raise UnsupportedError(
            f"{type(module).__name__} does not keep the arguments of its constructor in a dict self.arguments, so it "
            "cannot be restored from a file."
        )
    return arguments


def _encode_fields(fields: dict[str, object], path: str, tensors: dict[str, Tensor]) -> dict[str, Json]:
    return {key: _encode(item, f"{path}.{key}", tensors) for key, item in fields.items()}


def _decode_object(tree: dict[str, Json], tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401
    if not isinstance(tree.get("class"), str):
        raise FileFormatError(f"expected an object with a class name, found keys {sorted(tree)}.")
    cls: Any = registered(tree["class"], tree.get("module"))
    if "member" in tree:
        members, member = getattr(cls, "__members__", {}), tree["member"]
        if not isinstance(member, str) or member not in members:
            raise FileFormatError(f"{tree['class']} has no member {shown(member)}.")
        return members[member]
    if not isinstance(tree.get("fields"), dict):
        raise FileFormatError(f"an object of class {tree['class']} has no fields in the file.")
    fields = {key: _decode(item, tensors) for key, item in tree["fields"].items()}
    prefix = tree.get("state")
    if prefix is not None and not (isinstance(prefix, str) and issubclass(cls, nn.Module)):
        raise FileFormatError(
            f"{tree['class']} is not a network, or the name of its weights is not text: {shown(prefix)}."
        )
    try:
        # Layers draw initial weights from the global state, which is put back as it was.
        with torch.random.fork_rng(devices=[], enabled=prefix is not None):
            made = cls(**fields)
        if dataclasses.is_dataclass(made):
            check_kinds(made)
    except NOT_MADE as error:
        raise FileFormatError(f"{tree['class']} cannot be made from fields {sorted(fields)}: {error}.") from error
    if prefix is not None:
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            made = cast("nn.Module", made)
            for place, dtype in {(one.device, one.dtype) for one in state.values() if one.is_floating_point()}:
                made.to(place, dtype)
            made.load_state_dict(state)
        except RuntimeError as error:
            raise FileFormatError(f"the weights of {tree['class']} do not fit: {error}.") from error
    return made
