"""Rows on disk: the same rows, the same fits, and clear errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import sbridge as sb
from sbridge.couplings import MinibatchCoupling
from sbridge.data.outputs import write_rows
from sbridge.errors import FileFormatError, InvalidInputError, MarginalWarning, UnsupportedError
from sbridge.evaluation import EvaluationBudget, evaluate
from sbridge.laws import moments
from sbridge.laws.scaling import AffineScaling, CommonScale
from sbridge.random import generator
from sbridge.time import TimeGrid

ROWS = torch.randn(900, 3, generator=generator(3)) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([5.0, -1.0, 0.0])
SMALL = sb.IMF(
    coupling=MinibatchCoupling(rows=64),
    pretraining=8,
    stages=1,
    updates=4,
    refresh=4,
    pairs=64,
    grid=TimeGrid.uniform(8),
)
OTHERS = 1.5 * torch.randn(800, 3, generator=generator(4)) + 2.0


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    return tmp_path / "rows.npy"


@pytest.fixture
def other(tmp_path):
    np.save(tmp_path / "others.npy", OTHERS.numpy())
    return tmp_path / "others.npy"


def sources(path):
    """Yields the same rows behind every kind of access."""
    import h5py
    import scipy.sparse as sparse
    import zarr
    from anndata import AnnData

    yield "path", {"source": path}
    yield "memory map", {"source": np.load(path, mmap_mode="r")}
    zarr.save_array(str(path.with_suffix(".zarr")), ROWS.numpy())
    yield "zarr", {"source": path.with_suffix(".zarr")}
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["group/rows"] = ROWS.numpy()
    yield "h5", {"source": path.with_suffix(".h5"), "key": "group/rows"}
    AnnData(sparse.csr_matrix(ROWS.numpy()), obsm={"X_pca": ROWS.numpy()}).write_h5ad(path.with_suffix(".h5ad"))
    yield "obsm", {"source": path.with_suffix(".h5ad"), "key": "obsm/X_pca"}
    yield "sparse X", {"source": path.with_suffix(".h5ad"), "key": "X"}
    yield "data set of tuples", {"source": TensorDataset(ROWS, torch.arange(len(ROWS)))}


def test_every_access_reads_the_same_rows(path):
    index = torch.tensor([7, 3, 3, 899, 0])
    for name, options in sources(path):
        stored = sb.StoredRows(**options)
        assert (len(stored), stored.dim) == (900, 3), name
        assert torch.equal(stored.take(index), ROWS[index]), name
        assert torch.equal(stored.sample(50, generator(1)), sb.Samples(ROWS).sample(50, generator(1))), name
        mean, covariance = moments(stored)
        assert torch.allclose(mean, ROWS.double().mean(0).float()), name
        assert torch.allclose(covariance, ROWS.double().mT.cov(correction=0).float(), atol=1e-6), name


def test_moments_of_many_blocks_and_of_scaled_rows(path, monkeypatch):
    monkeypatch.setattr("sbridge.laws.stored.BLOCK_ROWS", 128)
    scaling = AffineScaling(torch.tensor([5.0, 0.0, 1.0]).double(), torch.tensor([2.0, 1.0, 0.5]).double())
    for stored in (sb.StoredRows(path).rescaled(scaling), sb.StoredRows(path, scaling=scaling)):
        wanted = scaling.to_model(ROWS)
        assert torch.equal(stored.take(torch.arange(900)), wanted)
        mean, covariance = stored.moments
        assert torch.allclose(mean, wanted.double().mean(0), atol=1e-6)
        assert torch.allclose(covariance, wanted.double().mT.cov(correction=0), atol=1e-6)


def test_parts_are_of_different_rows(path):
    stored = sb.StoredRows(path)
    kept, held = stored.split(0.1, seed=1)
    assert (len(kept), len(held)) == (810, 90)
    together = torch.cat([kept.part(1000, 0), held.part(1000, 0)])
    assert torch.equal(together.sort(0).values, ROWS.sort(0).values)
    assert torch.equal(stored.part(1000, 0), ROWS)
    drawn = kept.part(300, 2)
    assert len(drawn.unique(dim=0)) == 300
    assert torch.equal(kept.selected(np.arange(len(kept)) % 2 == 0).part(1000, 0), kept.part(1000, 0)[::2])


@pytest.mark.parametrize("solver", [None, sb.GaussianBridge(), SMALL])
def test_a_fit_is_that_of_rows_in_memory(path, other, solver):
    grid = torch.linspace(-2.0, 4.0, 30).reshape(10, 3)
    found, wanted = (
        sb.fit(x0, x1, solver=solver, seed=0).transport(grid, seed=1)
        for x0, x1 in ((sb.StoredRows(path), sb.StoredRows(other)), (ROWS, OTHERS))
    )
    # The moments of IMF's known control are summed in blocks here, and at once there.
    assert torch.allclose(found, wanted, rtol=0.0, atol=5e-6 if isinstance(solver, sb.IMF) else 0.0)


def test_diffusion_draws_from_stored_rows(path):
    solver = sb.ScoreMatching(updates=3, grid=TimeGrid.uniform(8))
    with pytest.warns(MarginalWarning):
        found = [
            sb.diffuse(x, solver=solver, seed=0).backward.control(0.5, ROWS[:4]) for x in (sb.StoredRows(path), ROWS)
        ]
    assert torch.allclose(*found, atol=1e-4)


def test_evaluation_reads_the_rows_that_it_scores(path, other, monkeypatch):
    bridge, limits = sb.fit(ROWS, OTHERS, solver=sb.GaussianBridge(), seed=0), EvaluationBudget(rows=100, fit_rows=60)
    read = []
    take = sb.StoredRows.take
    monkeypatch.setattr(sb.StoredRows, "take", lambda self, index: (read.append(len(index)), take(self, index))[1])
    report = evaluate(bridge, sb.StoredRows(path), sb.StoredRows(other), seed=0, limits=limits, baselines=())
    assert sum(read) == 200
    assert report.seen == (200, 200)  # which are all rows of the fit
    assert "up to you" not in report.text()
    stored = sb.fit(sb.StoredRows(path), sb.StoredRows(other), solver=sb.GaussianBridge(), seed=0)
    assert "up to you" in evaluate(stored, ROWS, OTHERS, seed=0, limits=limits, baselines=()).text()


def test_a_saved_bridge_finds_its_rows(path, other, tmp_path):
    kept, _ = sb.StoredRows(path).split(0.2, seed=0)
    bridge = sb.fit(kept, sb.StoredRows(other), solver=sb.GaussianBridge(), seed=0)
    bridge.save(tmp_path / "bridge")
    loaded = sb.load(tmp_path / "bridge")
    assert torch.equal(loaded.forward.sample(20, seed=1).x, bridge.forward.sample(20, seed=1).x)
    np.save(path, ROWS[:500].numpy())
    with pytest.raises(InvalidInputError, match=r"has shape \(500, 3\) now, and had \(900, 3\) before"):
        sb.load(tmp_path / "bridge").forward.sample(20, seed=1)
    path.unlink()
    gone = sb.load(tmp_path / "bridge")
    assert gone.transport(ROWS[:5], seed=0).shape == (5, 3)
    with pytest.raises(FileFormatError, match=r"does not exist. Rows are read from it when they are drawn"):
        gone.forward.sample(20, seed=1)


def test_rows_that_are_not_kept(tmp_path):
    bridge = sb.fit(ROWS, OTHERS, solver=SMALL, seed=0)
    bridge.save(tmp_path / "open", keep_rows=False)
    assert '"contains_training_rows": false' in (tmp_path / "open.json").read_text()
    loaded = sb.load(tmp_path / "open")
    assert torch.equal(loaded.transport(ROWS[:5], seed=0), bridge.transport(ROWS[:5], seed=0))
    with pytest.raises(UnsupportedError, match="saved without its rows"):
        loaded.forward.sample(5, seed=0)
    report = evaluate(loaded, ROWS[:50], OTHERS[:50], seed=0, baselines=())
    assert report.seen == (0, 100)
    assert "whether those were held out is up to you" in report.text()
    with pytest.raises(UnsupportedError, match="made of rows of the data"):
        sb.fit(ROWS, OTHERS, solver=sb.SinkhornBridge(), seed=0).save(tmp_path / "plan", keep_rows=False)


class Counted(Dataset):
    """A data set whose third row is not finite."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.full((2,), float("nan") if index == 3 else float(index))


def test_bad_rows_are_told(tmp_path, path):
    def saved(array):
        np.save(tmp_path / "bad.npy", array)
        return tmp_path / "bad.npy"

    holed = ROWS.numpy().copy()
    holed[17, 1] = np.nan
    for array, told in (
        (holed, r"row 17 \(counted from 0\) has NaN"),
        (ROWS[:1].numpy(), "1 row"),
        (ROWS[:, 0].numpy(), r"has shape \(900,\)"),
        (ROWS.numpy().astype(int), "choose dtype='float32' or 'float64'"),
        (ROWS.numpy() + 1j, "choose dtype"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            sb.StoredRows(saved(array))
    with pytest.raises(InvalidInputError, match="no real numbers"):
        sb.StoredRows(saved(ROWS.numpy() + 1j), dtype="float32")
    assert sb.StoredRows(saved(ROWS.numpy().astype(int)), dtype="float64").like.dtype == torch.float64
    with pytest.raises(InvalidInputError, match="row 3"):
        sb.StoredRows(Counted()).sample(50, generator(0))
    with pytest.raises(FileFormatError, match="does not exist"):
        sb.StoredRows(tmp_path / "none.npy")
    (tmp_path / "cut.npy").write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileFormatError, match="not readable"):
        sb.StoredRows(tmp_path / "cut.npy")
    with pytest.raises(InvalidInputError, match=r"no \.npy, \.zarr"):
        sb.StoredRows(__file__)
    with pytest.raises(InvalidInputError, match="write_rows"):
        sb.StoredRows(iter([ROWS]))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="rows 0 to 899"):
        sb.StoredRows(path).selected([0, 900])
    with pytest.raises(InvalidInputError, match="fewer than two rows"):
        sb.StoredRows(path).split(0.0, seed=0)
    with pytest.raises(UnsupportedError, match=r"StoredRows\.part"):
        sb.fit(sb.StoredRows(path), sb.StoredRows(path), solver=sb.SinkhornBridge(), seed=0)


def test_masks_and_numbers_are_checked(path):
    stored, odd = sb.StoredRows(path), torch.arange(900) % 2 == 1
    assert torch.equal(sb.StoredRows(path, index=odd).part(900, 0), ROWS[odd])
    for index in (odd.int(), odd.to(torch.uint8), odd.numpy().astype(int)):
        with pytest.raises(InvalidInputError, match="looks like a mask of numbers 0 and 1"):
            stored.selected(index)
    for index, told in ((odd[:5], "a mask of 900 entries"), (torch.tensor([-1, 3]), "rows 0 to 899")):
        with pytest.raises(InvalidInputError, match=told):
            sb.StoredRows(path, index=index)


def test_other_rows_in_the_same_place_are_noticed(path, other, tmp_path):
    stored = sb.StoredRows(path)
    assert len(pickle.dumps(stored)) < 2000
    copied = copy.deepcopy(stored.rescaled(CommonScale()(ROWS, ROWS)))
    assert torch.equal(copied.take(torch.arange(9)), CommonScale()(ROWS, ROWS).to_model(ROWS[:9]))
    sb.fit(stored, sb.StoredRows(other), solver=sb.GaussianBridge(), seed=0).save(tmp_path / "bridge")
    np.save(path, 2.0 * ROWS.numpy())
    with pytest.raises(InvalidInputError, match="has changed since it was opened"):
        stored.take(torch.tensor([0]))
    with pytest.raises(InvalidInputError, match="has other rows now than before"):
        sb.load(tmp_path / "bridge").forward.sample(3, seed=0)


def test_a_group_is_told_with_what_it_holds(path):
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["first"] = ROWS.numpy()
        file["second"] = ROWS.numpy()
    with pytest.raises(InvalidInputError, match="It holds first, second: choose one with key="):
        sb.StoredRows(path.with_suffix(".h5"))
    with pytest.raises(InvalidInputError, match="holds nothing at 'third'"):
        sb.StoredRows(path.with_suffix(".h5"), key="third")


def test_blocks_make_a_file(tmp_path):
    made = write_rows((ROWS[i : i + 100] for i in range(0, 900, 100)), tmp_path / "made.npy")
    assert torch.equal(sb.StoredRows(made).part(1000, 0), ROWS)
    with pytest.raises(InvalidInputError, match="exists"):
        write_rows([ROWS], made)
    with pytest.raises(InvalidInputError, match="gave no block"):
        write_rows([], tmp_path / "empty.npy")
    with pytest.raises(InvalidInputError, match="block 1 has 2 columns"):
        write_rows([ROWS, ROWS[:, :2]], tmp_path / "uneven.npy")
    assert not (tmp_path / "uneven.npy").exists()


def test_the_command_line_reads_on_disk(path, other, tmp_path, capfd):
    from sbridge.cli.main import run

    plain = ["--solver", "gaussian", "--quiet", "--no-evaluation", "--no-figures"]
    for name, more in (("memory", []), ("disk", ["--on-disk"])):
        assert run(["fit", str(path), str(other), "--out", str(tmp_path / name), *plain, *more]) == 0
    first, second = (sb.load(tmp_path / name) for name in ("memory", "disk"))
    assert torch.equal(first.transport(ROWS[:9], seed=0), second.transport(ROWS[:9], seed=0))
    assert run(["evaluate", str(tmp_path / "disk"), str(path), str(other), "--on-disk", "--max-rows", "60"]) == 0
    assert run(["fit", "two_moons", str(other), "--out", str(tmp_path / "none"), "--on-disk"]) == 2
    assert "rows are read from .npy files" in capfd.readouterr().err
