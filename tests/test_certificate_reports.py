"""Where the certificate is told: the command, the run report, the figure."""

import json

import numpy as np
import pytest

from sbridge.benchmarks.pairs import GaussianPair
from sbridge.cli import run
from sbridge.display import value_and_error
from sbridge.evaluation import (
    Certificate,
    EvaluationBudget,
    certificate_json,
    certificate_or_reason,
    certificate_text,
    certify,
)
from sbridge.fitting import fit
from sbridge.plotting import certificate, save_certificate
from sbridge.processes import BrownianMotion
from sbridge.solvers.gaussian import GaussianBridge
from sbridge.solvers.mixture import MixtureBridge
from sbridge.time import TimeGrid

PAIR = GaussianPair(BrownianMotion(1.0), 2)


@pytest.fixture(scope="module")
def bridge():
    solver = GaussianBridge(TimeGrid.uniform(20))
    return fit(*PAIR.sample(1000, seed=1), reference=PAIR.reference, solver=solver, seed=0)


@pytest.fixture(scope="module")
def found(bridge):
    rows = PAIR.sample(400, seed=2)
    return certify(bridge, *rows, seed=0, solver=MixtureBridge((1,)), limits=EvaluationBudget(rows=150, paths=64))


def test_a_reason_stands_where_no_certificate_can(bridge):
    x, y = PAIR.sample(100, seed=2)
    reason = certificate_or_reason(bridge, x[:40], y, seed=0)
    assert "at least 64 held-out rows" in reason
    assert certificate_json(reason) == {"reason": reason}
    assert certificate_text(reason).startswith("no certificate: ")


def test_the_figure_shows_every_number_on_one_axis_and_says_what_follows(found, tmp_path):
    axes = certificate(found)
    assert axes.child_axes == []
    estimates = [found.lower_bound, found.energy, found.gap]
    names = [label.get_text() for label in axes.get_yticklabels()]
    shown = [float(container[0].get_xdata()[0]) for container in axes.containers]
    assert shown == [estimate.value for estimate in estimates] + [found.jeffreys.value]
    for estimate, name in zip(estimates, names, strict=False):
        assert value_and_error(estimate.value, estimate.standard_error) in name
    low, high = axes.get_xlim()
    for estimate in estimates:
        assert low < estimate.value - 2 * estimate.standard_error
        assert estimate.value + 2 * estimate.standard_error < high
    assert axes.get_title(loc="left").replace("\n", " ") == str(found.verdict)
    path = save_certificate(found, tmp_path / "bounds.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_evaluate_and_fit_tell_the_certificate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("train", 1), ("test", 2)):
        for end, rows in zip("ab", PAIR.sample(300, seed=seed), strict=True):
            np.save(f"{name}_{end}.npy", rows.numpy())
    fitted = ["fit", "train_a.npy", "train_b.npy", "--out", "run", "--solver", "gaussian", "--sigma", "1.0"]
    assert run([*fitted, "--held-out", "0.3"]) == 0
    assert (tmp_path / "run" / "figures" / "certificate.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "lower bound D(g)" in text
    assert "suboptimality gap" in text
    (leg,) = json.loads((tmp_path / "run" / "report.json").read_text())["legs"]
    told = leg["certificate"]
    assert abs(told["lower_bound"]["value"] - PAIR.coupling.value) < 0.5
    scored = ["evaluate", "run", "test_a.npy", "test_b.npy", "--out", "scores.json", "--figure", "bounds.png"]
    assert run(scored) == 0
    text = capsys.readouterr().out
    for words in ("lower bound D(g)", "energy of the forward", "Jeffreys", "end distribution, forward", "floor"):
        assert words in text
    document = json.loads((tmp_path / "scores.json").read_text())["certificate"]
    assert document["gap"]["standard_error"] > 0
    assert (tmp_path / "bounds.png").read_bytes().startswith(b"\x89PNG")
    assert run(scored) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*scored[:4], "--figure", "bounds.gif"]) == 2
    assert "writes a .png" in capsys.readouterr().err
    np.save("few.npy", PAIR.sample(50, seed=3)[0].numpy())
    assert run(["evaluate", "run", "few.npy", "test_b.npy", "--figure", "none.png"]) == 2
    printed = capsys.readouterr()
    assert "at least 64 held-out rows" in printed.out
    assert "none.png was not written" in printed.err
    assert run(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Energy of the forward process next to the lower bound" in page
    assert f"Certificate: {told['verdict']['word']}" in page
    drawn = sorted(path.name for path in (tmp_path / "run" / "figures").iterdir())
    assert "certificate.png" in drawn
    assert run(["plot", "run", "--out", "again", "--rows", "50"]) == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == drawn


def test_a_certificate_is_told_whole(found):
    assert isinstance(found, Certificate)
    assert certificate_text(found) == found.table() + "\n"
    assert found.text().startswith(found.table())
    assert certificate_json(found)["energy"]["value"] == found.energy.value
