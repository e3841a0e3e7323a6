"""Settings of the whole test suite."""

import dataclasses
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FunctionType

import hypothesis
import jaxtyping
import matplotlib
import ot  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import torch
import torchsde  # noqa: F401
import tyro  # noqa: F401

matplotlib.use("Agg")

# In tests every annotation of the package is checked at run time, shapes included. The hook has to stand
# before the package's first import; a module imported earlier would stay unchecked without a word. What a
# checked module imports for the first time is compiled anew, so the large packages are imported above.
if any(name.split(".")[0] == "sbridge" for name in sys.modules):
    raise RuntimeError("sbridge was imported before tests/conftest.py could switch on its type checks")
# An int will do where a float is asked for; `Self` is left to the type checker, which sees the class.
_CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, "
    "hint_overrides=beartype.FrozenDict({beartype.typing.Self: beartype.typing.Any})))"
)
# A check costs more than a small step of a solver, and to write it more than to import the function; training repeats
# the same call thousands of times and defines inner functions anew. So in each file of tests the calls of a function
# are checked whose number is a power of two. The check is written at the first of them.
_calls: Counter[int] = Counter()  # by the code of a function, which its definitions share
_check_all = jaxtyping.jaxtyped


def _check_some(*, typechecker: Callable) -> Callable:
    def decorate(fn: Callable) -> Callable:
        if dataclasses.is_dataclass(fn) and isinstance(init := vars(fn).get("__init__"), FunctionType):
            fn.__init__ = init if hasattr(init, "__wrapped__") else decorate(init)
            return fn
        if not isinstance(fn, FunctionType):
            return _check_all(fn, typechecker=typechecker)
        code, checked = id(fn.__code__), None

        @functools.wraps(fn)
        def call(*args: object, **kwargs: object) -> object:
            __tracebackhide__ = True
            nonlocal checked
            _calls[code] = number = _calls[code] + 1
            if number & (number - 1):
                return fn(*args, **kwargs)
            checked = checked or _check_all(fn, typechecker=typechecker)
            return checked(*args, **kwargs)

        return call

    return decorate


# A second run for the sake of other numerics need not repeat them: SBRIDGE_TYPE_CHECKS=0.
if os.environ.get("SBRIDGE_TYPE_CHECKS") != "0":
    jaxtyping.jaxtyped = _check_some
    jaxtyping.install_import_hook("sbridge", _CHECKER)


@pytest.fixture(autouse=True, scope="module")
def _checks_start_anew() -> Iterator[None]:
    yield
    _calls.clear()


# The same examples at every run, no time limit on a shared machine, nothing written to disk. A fixture
# shared by all examples of a test is what we want of `dtype`.
hypothesis.settings.register_profile(
    "sbridge",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("sbridge")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both floating types that the package promises to handle."""
    return request.param
