"""Leave-one-time-out: scores of fits by hand, known answers, the command, refusals."""

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.cli import run
from sbridge.errors import InvalidInputError
from sbridge.evaluation.cross_validation import UNFITTED
from sbridge.metrics import HalfEnergyDistance
from sbridge.random import derive

TIMES = (0.0, 1.0, 3.0, 4.0)


def moving(n: int = 400, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Brownian motion with a constant drift, whose bridges between two times are its own paths."""
    draw = torch.Generator().manual_seed(0)
    still = [torch.randn(n, 2, generator=draw) * (0.2 + 0.1 * t) ** 0.5 for t in TIMES]
    return [x.to(dtype) + torch.tensor([2.0 * t, 0.0], dtype=dtype) for x, t in zip(still, TIMES, strict=True)]


def test_scores_are_those_of_fits_without_the_snapshot(dtype):
    data = moving(100, dtype)
    solver = sb.GaussianBridge()
    found = sb.cross_validate(data, TIMES, solvers={"Gaussian": solver}, sigma=0.3, seeds=(3, 5))
    assert found.times == (1.0, 3.0)
    assert tuple(found.scores) == (*UNFITTED, "Gaussian")
    assert found.scores["Gaussian"].shape == (2, 2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(derive(0, "scored", 1)))
    course = sb.fit_course([data[1], data[3]], [1.0, 4.0], sigma=0.3, solver=solver, seed=5)
    predicted = course.interpolate(data[1][order], 1.0, 3.0, seed=derive(5, "predicted", 2))
    expected = HalfEnergyDistance()(predicted, data[2], torch.Generator())
    assert float(found.scores["Gaussian"][1, 1]) == pytest.approx(expected, rel=1e-4)


def test_a_fit_of_the_true_process_is_at_the_floor():
    found = sb.cross_validate(moving(), TIMES, solvers={"Gaussian": sb.GaussianBridge()}, sigma=0.1**0.5)
    means = {name: float(score.mean()) for name, score in found.scores.items()}
    assert means["Gaussian"] <= 1.5 * means["floor (half against half)"]
    assert means["pooled ends"] >= 20 * means["Gaussian"]
    lines = found.text().splitlines()
    assert lines[1].split() == ["t", "=", "1", "t", "=", "3", "mean"]
    assert lines[-1].startswith("Gaussian ")
    assert lines[-1].count("±") == 3
    assert all("±" not in line for line in lines[2:-1])


def test_the_command_prints_the_same_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = moving(60)
    for name, rows in zip("abcd", data, strict=True):
        np.save(f"{name}.npy", rows.numpy())
    files = [f"{name}.npy" for name in "abcd"]
    options = ["--times", "0", "1", "3", "4", "--solvers", "gaussian", "auto", "--sigma", "0.3", "--seeds", "3", "5"]
    assert run(["cross-validate", *files, *options]) == 0
    solvers = {"gaussian": sb.GaussianBridge(), "auto": None}
    known = sb.cross_validate(data, TIMES, solvers=solvers, sigma=0.3, seeds=(3, 5))
    assert known.text() in capsys.readouterr().out
    assert run(["cross-validate", *files[:2], "--times", "0", "1"]) == 2
    assert "at least three are needed" in capsys.readouterr().err
    assert run(["cross-validate", "no.npy", *files[1:], *options[:5], "--max-rows", "1"]) == 2
    told = capsys.readouterr().err
    assert "no.npy does not exist" in told
    assert "--max-rows must be at least 4" in told


def test_refusals():
    data = moving(20)
    with pytest.raises(InvalidInputError, match="2 snapshots given; to leave one out, at least three"):
        sb.cross_validate(data[:2], TIMES[:2])
    with pytest.raises(InvalidInputError, match="seeds is empty"):
        sb.cross_validate(data, TIMES, seeds=())
    with pytest.raises(InvalidInputError, match="max_rows must be at least 4, got 3"):
        sb.cross_validate(data, TIMES, max_rows=3)
    with pytest.raises(InvalidInputError, match="select cells of an AnnData, but cross_validate was given arrays"):
        sb.cross_validate(data, TIMES, time_key="day")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solvers": {"pooled ends": None}}, "solvers has the name pooled ends, a row without a fit"),
        ({"solvers": {}}, "solvers must be a dictionary of solvers by name"),
        ({"seeds": (0, 1, 0)}, "seeds must differ, got 0, 1, 0"),
    ],
)
def test_options_that_would_be_misread(options, message):
    with pytest.raises(InvalidInputError, match=message):
        sb.cross_validate(moving(20), TIMES, **options)


def test_snapshots_in_different_spaces_or_without_equal_weights():
    data = moving(20)
    with pytest.raises(InvalidInputError, match="snapshot 0 has 2 columns, snapshot 2 has 1: a bridge needs both"):
        sb.cross_validate([*data[:2], data[2][:, :1]], TIMES[:3])
    with pytest.raises(InvalidInputError, match="snapshot 1 has 3 rows; at least 4"):
        sb.cross_validate([data[0], data[1][:3], data[2]], TIMES[:3])
    with pytest.raises(InvalidInputError, match="snapshot 1 is Samples with weights; only rows with equal weights"):
        sb.cross_validate([data[0], sb.Samples(data[1], torch.arange(20.0) / 190), data[2]], TIMES[:3])
    with pytest.raises(InvalidInputError, match="snapshot 2 is a Gaussian"):
        sb.cross_validate([*data[:2], sb.Gaussian(torch.zeros(2), torch.eye(2))], TIMES[:3])
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(x.numpy(), columns=["a", "b"]) for x in data[:3]]
    with pytest.raises(InvalidInputError, match="snapshot 2 has the columns b, a, but snapshot 0 has a, b"):
        sb.cross_validate([*frames[:2], frames[2][["b", "a"]]], TIMES[:3])


def test_samples_are_their_rows():
    data, options = moving(20)[:3], {"solvers": {"Gaussian": sb.GaussianBridge()}, "seeds": (0,)}
    known = sb.cross_validate(data, TIMES[:3], **options)
    assert sb.cross_validate([sb.Samples(x) for x in data], TIMES[:3], **options).text() == known.text()


def test_annotated_cells():
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    data = moving(30)
    cells = anndata.AnnData(obs=pandas.DataFrame({"day": np.repeat(TIMES, 30)}, index=[str(i) for i in range(120)]))
    cells.obsm["X_pca"] = torch.cat(data).numpy()
    options = {"solvers": {"Gaussian": sb.GaussianBridge()}, "seeds": (0, 1)}
    found, known = sb.cross_validate(cells, time_key="day", **options), sb.cross_validate(data, TIMES, **options)
    assert found.text() == known.text()
