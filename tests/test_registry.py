"""Objects come back from JSON and tensors as they were; files can name nothing that was not registered."""

import dataclasses
import enum
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from sbridge.couplings import Coupling, EntropicCoupling
from sbridge.errors import FileFormatError, InvalidInputError, UnknownNameError, UnsupportedError
from sbridge.solvers import IMF, IPF, AdjointBridge, GaussianBridge, MatchedBridge, MixtureBridge, SinkhornBridge
from sbridge.storage import registry
from sbridge.storage.registry import check_kinds, decode, encode, register, registered


@pytest.fixture(autouse=True)
def _classes_of_the_test_only(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Leaf:
    number: float
    colour: Colour = Colour.RED
    made: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    leaves: tuple
    rows: torch.Tensor
    name: str | None = None


class Net(nn.Module):
    def __init__(self, width, leaf):
        super().__init__()
        self.arguments = {"width": width, "leaf": leaf}
        self.layer = nn.Linear(2, width)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.fixture
def _registered():
    for cls in (Colour, Leaf, Tree, Net):
        register(cls)


def through_a_file(value):
    tree, tensors = encode(value)
    return decode(json.loads(json.dumps(tree)), tensors)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_plain_values_come_back_exactly(value):
    assert repr(through_a_file(value)) == repr(value)


def test_a_number_that_json_has_no_word_for():
    tree, _ = encode((math.inf, -math.inf, math.nan))
    json.dumps(tree, allow_nan=False)
    assert repr(decode(tree, {})) == "(inf, -inf, nan)"


@pytest.mark.usefixtures("_registered")
def test_dataclasses_enums_and_tensors(dtype):
    rows = torch.arange(6, dtype=dtype).reshape(3, 2).mT
    found = through_a_file(Tree((Leaf(0.1), Leaf(math.inf, Colour.BLUE)), rows, "t"))
    assert found.leaves == (Leaf(0.1), Leaf(math.inf, Colour.BLUE))
    assert torch.equal(found.rows, rows)
    assert found.rows.dtype == dtype
    assert found.name == "t"


@pytest.mark.usefixtures("_registered")
def test_networks_come_back_with_their_weights_and_buffers(dtype):
    net = Net(3, Leaf(2.0)).to(dtype)
    net.count += 5
    found = through_a_file({"net": net})["net"]
    assert found.arguments == net.arguments
    for one, other in zip(found.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.usefixtures("_registered")
def test_two_networks_in_one_object_keep_their_own_weights():
    one, other = through_a_file((Net(2, None), Net(4, None)))
    assert (one.layer.out_features, other.layer.out_features) == (2, 4)


def test_what_is_not_registered_cannot_be_written_or_named():
    for value in (Leaf(1.0), lambda x: x, object(), {"inner": (Leaf,)}):
        with pytest.raises(UnsupportedError, match=r"@sbridge\.register|cannot"):
            encode(value)
    with pytest.raises(UnknownNameError, match="class in a file"):
        decode({"class": "Leaf", "fields": {"number": 1.0}}, {})
    register(Leaf)
    with pytest.raises(UnknownNameError, match="Did you mean 'Leaf'"):
        registered("Laef")


def test_a_name_can_be_taken_once():
    register(Leaf)
    assert register(Leaf) is Leaf

    @dataclasses.dataclass(frozen=True)
    class Other:
        number: float

    Other.__name__, Other.__module__ = "Leaf", "elsewhere"
    with pytest.raises(InvalidInputError, match="registered already"):
        register(Other)
    with pytest.raises(InvalidInputError, match="must be a dataclass"):
        register(type("Plain", (), {}))


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class": "Leaf", "fields": {"nmber": 1.0}}, "Leaf cannot be made from fields"),
        (
            {"class": "Tree", "fields": {"leaves": [], "rows": {"tensor": "gone"}}},
            "tensor 'gone' is named but missing",
        ),
        ({"fields": {}}, "expected an object with a class name"),
        ({"class": 3}, "expected an object with a class name"),
        ({"class": "Leaf", "fields": {"number": "2"}}, "number must be of kind float, got '2'"),
        ({"class": "Leaf", "fields": {"number": 1.0, "colour": {"class": "Colour", "member": [1]}}}, "no member"),
        ({"class": "Leaf", "fields": {"number": 1.0}, "state": "x"}, "Leaf is not a network"),
        ({"class": "Net", "fields": {"width": -3, "leaf": None}, "state": ".state."}, "Net cannot be made"),
        ({"number": "12"}, "is not a number that JSON has no word for"),
        ({"tensor": ["gone"]}, "is named but missing"),
        ({"mapping": [1]}, "a mapping must be an object"),
        ({"class": "Net", "fields": {"width": 3, "leaf": None}, "state": ".state."}, "weights of Net do not fit"),
    ],
)
def test_damaged_trees_are_refused(tree, message):
    with pytest.raises(FileFormatError, match=message):
        decode(tree, {})


def test_nesting_beyond_all_measure_is_refused():
    tree = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(FileFormatError, match="nested too deeply"):
        decode(tree, {})


def test_a_file_cannot_make_a_class_that_only_looks_known():
    for name in ("Popen", "os.system", "builtins.eval", "__class__"):
        with pytest.raises(UnknownNameError):
            decode({"class": name, "fields": {}}, {})


def test_a_fresh_process_finds_every_class_by_its_name_alone():
    """Files name no modules, so every registered class of the package must be found wherever it lives now."""
    code = """
import importlib, pkgutil, sbridge
from sbridge.storage import registry
try:
    registry.registered("none of this name")
except sbridge.SbridgeError:
    pass
found = set(registry._CLASSES)
for module in pkgutil.walk_packages(sbridge.__path__, "sbridge."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sorted(set(registry._CLASSES) - found), len(found) > 100)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"


def test_a_class_that_was_renamed_is_found_under_its_old_name(monkeypatch):
    register(Leaf)
    monkeypatch.setattr(registry, "_RENAMED", {"OldLeaf": "Leaf"})
    assert decode({"class": "OldLeaf", "module": "sbridge.gone", "fields": {"number": 2.0}}, {}) == Leaf(2.0)


@pytest.mark.usefixtures("_registered")
def test_only_classes_of_other_packages_are_written_with_their_module():
    tree, _ = encode((Leaf(1.0), GaussianBridge()))
    assert [one.get("module") for one in tree] == [Leaf.__module__, None]


@pytest.mark.parametrize(
    "module", ["os", "subprocess", "sbridge.__main__", "sbridge..solvers", "tests.evil", "sbridge.gone"]
)
def test_a_file_cannot_have_another_module_imported(module):
    with pytest.raises(UnknownNameError):
        registered("Popen")  # by now every module that may hold a class of a file is imported
    before = set(sys.modules)
    with pytest.raises(UnknownNameError, match="import the module"):
        decode({"class": "Popen", "module": module, "fields": {}}, {})
    assert set(sys.modules) == before


@dataclasses.dataclass(frozen=True)
class Options:
    """As solvers are, and not checked by the hook of the tests."""

    numbers: tuple[int, ...] = (1, 2)
    share: float = 0.5
    colour: Colour = Colour.RED
    inner: "Colour | None" = None
    recipe: Coupling = dataclasses.field(default_factory=EntropicCoupling)
    pair: tuple[int, str] = (1, "a")
    names: list[str] = dataclasses.field(default_factory=list)
    mode: Literal["a", "b"] = "a"
    anything: Any = None
    function: Callable[[int], int] = abs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"numbers": 5}, "numbers must be of kind tuple"),
        ({"numbers": (2.5,)}, "numbers must be of kind tuple"),
        ({"share": "much"}, "share must be of kind float, got 'much'"),
        ({"share": True}, "share must be of kind float"),
        ({"colour": "red"}, "colour must be of kind Colour, got 'red'"),
        ({"inner": 3}, "inner must be of kind"),
        ({"recipe": "entropic"}, "recipe must be of kind Coupling, got 'entropic'"),
        ({"recipe": EntropicCoupling}, "an object of it is needed"),
        ({"numbers": [1, 2]}, "a tuple is needed"),
        ({"share": np.float32(0.5)}, r"take float\(…\) of it"),
        ({"pair": (1, 2)}, "pair must be of kind tuple"),
        ({"names": "a"}, "names must be of kind list"),
        ({"mode": "c"}, "mode must be of kind"),
    ],
)
def test_options_of_another_kind_are_named(options, said):
    check_kinds(Options())
    check_kinds(Options(share=1, inner=Colour.BLUE, numbers=()))
    with pytest.raises(InvalidInputError, match=said):
        check_kinds(Options(**options))


@pytest.mark.parametrize(
    "solver", [IMF, IPF, MatchedBridge, MixtureBridge, SinkhornBridge, GaussianBridge, AdjointBridge]
)
def test_defaults_of_solvers_are_of_their_kinds(solver):
    check_kinds(solver())
