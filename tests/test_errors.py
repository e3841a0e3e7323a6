"""Messages stay short whatever a user gives."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.errors import SbridgeError, listed, shown

ROOT = Path(__file__).parents[1]
LONG = "x" * 100_000


class Wordy:
    """An object of a user whose repr is long."""

    def __repr__(self) -> str:
        return "<an object\n" + LONG + " of a user>"


def test_what_is_short_is_shown_as_it_is():
    assert [shown(value) for value in (3, "a'b", [1.0, 2.0])] == ["3", '"a\'b"', "[1.0, 2.0]"]
    assert shown(torch.tensor([1.0, -2.0])) == "tensor([ 1., -2.])"


def test_what_is_long_is_cut_to_one_line():
    assert shown(Wordy()).startswith("<an object xxx")
    assert shown(Wordy()).endswith("xx of a user>")
    assert len(shown(Wordy())) <= 120
    assert shown(np.zeros((50, 60))) == "ndarray of float64 and shape (50, 60)"
    assert shown(torch.zeros(300, 2)) == "Tensor of torch.float32 and shape (300, 2)"


WRONG = """
import numpy as np, torch, sbridge as sb
class Wordy:
    def __repr__(self):
        return "<an object" + 100_000 * "x"
x = torch.randn(9, 2)
for value in (Wordy(), "x" * 100_000, np.full((300, 70), np.nan), [float("nan")] * 10_000):
    for wrong in (
        sb.TimeGrid.uniform,
        sb.BrownianMotion,
        lambda value: sb.BrownianMotion(1.0, horizon=value),
        lambda value: sb.OrnsteinUhlenbeck(value, 1.0),
        sb.VariancePreserving,
        lambda value: sb.DriftProcess(value, 1.0),
        lambda value: sb.VarianceExploding(value, 1.0),
        lambda value: sb.fit(x, x, solver=value, seed=0),
        lambda value: sb.fit(x, x, reference=value, seed=0),
        lambda value: sb.fit(x, x, seed=value),
        lambda value: sb.SinkhornBridge(max_rows=value),
        lambda value: sb.PathMeasure(sb.BrownianMotion(1.0), value, sb.Samples(x), grid=sb.TimeGrid.uniform(3)),
    ):
        try:
            wrong(value)
        except sb.SbridgeError as error:
            assert len(str(error)) < 500, str(error)[:2000]
            print("refused")
"""


def test_messages_stay_short():
    """In a process of its own: here, the type checks of the tests would refuse these values first."""
    done = subprocess.run([sys.executable, "-c", WRONG], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 4 * 12


def test_weights_of_a_large_mixture_are_listed():
    many = torch.full((5000,), 1.0)
    with pytest.raises(SbridgeError, match=r"5000 in all") as caught:
        sb.GaussianMixture(many, torch.zeros(5000, 1), torch.ones(5000, 1, 1))
    assert len(str(caught.value)) < 400
    assert listed(many.tolist()) in str(caught.value)


def test_messages_cut_what_they_show():
    """No message shows the bare repr of an expression, but constants, words that are cut already, and code to copy."""
    allowed = re.compile(r"[A-Z_]+|cell\[:30\]|text\[:30\]|str\(.+\)|__name__")
    code = {
        "__init__.py": {"name"},
        "_names.py": {"name", "package"},
        "sources.py": {"name"},
        "specs.py": {"path.suffix"},
        "outputs.py": {"path.suffix"},
    }
    for path in sorted((ROOT / "sbridge").rglob("*.py")):
        found = set(re.findall(r"\{([^{}]*?)!r\}", path.read_text(encoding="utf-8"))) - code.get(path.name, set())
        bare = [one for one in found if not allowed.fullmatch(one)]
        assert not bare or path.name == "conformance.py", f"{path}: {bare}: use sbridge.errors.shown"
