"""Settings of the whole test suite."""

import sys

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
jaxtyping.install_import_hook("sbridge", _CHECKER)

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
