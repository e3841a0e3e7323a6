"""Reading: what comes in is what was written, and whatever cannot be used is refused with its place and a cure."""

import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from sbridge.data import datasets
from sbridge.data.sources import ReadOptions, open_rows
from sbridge.data.tables import read_inputs, read_table, split
from sbridge.data.text import BLOCK_ROWS
from sbridge.errors import FileFormatError, InvalidInputError, ReadingWarning, TimesWarning, UnknownNameError

ROWS = np.array([[1.5, -2.0, 0.25], [3.0, 1e-3, 7.0], [0.0, 4.0, -1.0]], dtype=np.float32)


def write_npy(path, array):
    np.save(path, array, allow_pickle=True)
    return str(path)


def write_text(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def write_h5ad(path, array, **obs):
    anndata = pytest.importorskip("anndata")
    import pandas

    data = anndata.AnnData(X=array[:, :2], obs=pandas.DataFrame(obs, index=[f"c{i}" for i in range(len(array))]))
    data.obsm["X_pca"] = array
    data.write_h5ad(path)
    return str(path)


def written(folder, kind):
    path = folder / f"rows{kind}"
    match kind:
        case ".npy":
            return write_npy(path, ROWS)
        case ".npz":
            np.savez(path, ROWS)
            return str(path)
        case ".csv":
            return write_text(path, "a,b,c\n" + "\n".join(",".join(map(str, row)) for row in ROWS) + "\n")
        case ".tsv":
            return write_text(path, "\n".join("\t".join(map(str, row)) for row in ROWS))
        case _:
            return write_h5ad(path, ROWS)


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", ".tsv", ".h5ad"])
def test_every_kind_of_file_gives_the_rows_that_were_written(tmp_path, kind):
    table = read_table(written(tmp_path, kind))
    assert torch.equal(table.rows, torch.from_numpy(ROWS))
    assert (table.dim, len(table.sha256)) == (3, 64)


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", ".h5ad"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    spec = written(tmp_path, kind)
    path = tmp_path / f"rows{kind}"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - (1 if kind == ".npy" else 3 if kind == ".csv" else len(whole) // 3)])
    if kind == ".csv":  # what is left of the last line has too few cells
        path.write_bytes(whole[: whole.rindex(b",")])
    with pytest.raises(InvalidInputError, match="truncated"):
        read_table(spec)


@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv", ".tsv", ".h5ad"])
def test_a_file_that_is_empty_foreign_or_missing_is_refused(tmp_path, kind):
    if kind == ".h5ad":
        pytest.importorskip("anndata")
    path = tmp_path / f"rows{kind}"
    with pytest.raises(FileFormatError, match="does not exist"):
        read_table(str(path))
    path.write_bytes(b"")
    with pytest.raises(FileFormatError, match="is empty"):
        read_table(str(path))
    path.write_bytes(b"\x00\x01 no such format \xff\xfe" * 20)
    with pytest.raises(FileFormatError, match=rf"{path.name} is (not a readable|not UTF-8)"):
        read_table(str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(FileFormatError, match="is a folder"):
        read_table(str(path))


def test_pickled_objects_are_never_loaded(tmp_path):
    trap = np.array([Trap(), Trap()], dtype=object)
    with pytest.raises(FileFormatError, match="pickled Python objects"):
        read_table(write_npy(tmp_path / "a.npy", trap))
    np.savez(tmp_path / "a.npz", trap, allow_pickle=True)
    with pytest.raises(FileFormatError, match="pickled Python objects"):
        read_table(str(tmp_path / "a.npz"))
    assert not Trap.sprung


class Trap:
    """An object that tells when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(5), r"shape \(5,\); for one column save array\[:, None\]"),
        (np.float64(3.0), r"shape \(\); an array \(rows, columns\) is needed"),
        (np.ones((2, 2, 2)), r"\(rows, columns\) is needed"),
        (np.ones((0, 3)), "has no rows"),
        (np.ones((4, 0)), r"\(rows, columns\) is needed"),
        (np.ones((1, 3)), "has 1 row; at least 2"),
        (np.array([["a", "b"]]), "not real numbers"),
        (np.ones((2, 2), dtype=complex), "complex128, not real numbers"),
        (np.ones((2, 2), dtype=bool), "bool, not real numbers"),
        (np.zeros(3, dtype=[("u", "f4"), ("v", "f4")]), "structured array with fields u, v"),
        (np.array([[0.0, 1.0], [2.0, np.nan]]), "row 1, column 1 .* is nan.*Remove or impute"),
        (np.array([[0.0, np.inf], [2.0, np.nan]]), "row 0, column 1 .* is inf"),
    ],
)
def test_arrays_that_are_no_table_of_numbers_are_refused(tmp_path, array, message):
    with pytest.raises(InvalidInputError, match=message):
        read_table(write_npy(tmp_path / "a.npy", array))


@pytest.mark.parametrize(
    ("stored", "option", "used"),
    [
        (np.float64, "keep", torch.float64),
        (np.float64, "float32", torch.float32),
        (np.float32, "float64", torch.float64),
        (np.float16, "keep", torch.float32),
        (np.int64, "keep", torch.float32),
        (">f4", "keep", torch.float32),
    ],
)
def test_dtypes(tmp_path, stored, option, used):
    array = np.arange(6).reshape(3, 2).astype(stored)
    rows = read_table(write_npy(tmp_path / "a.npy", array), ReadOptions(dtype=option)).rows
    assert rows.dtype == used
    assert torch.equal(rows.double(), torch.arange(6.0, dtype=torch.float64).reshape(3, 2))


FINE = np.random.default_rng(0).normal(size=400)


@pytest.mark.parametrize(
    ("values", "used"),
    [
        (FINE, torch.float32),
        (5.4e6 + FINE, torch.float64),  # northings: float32 would keep 13 values of 400
        (np.round(1.7e9 + 1e4 * FINE), torch.float64),  # seconds since 1970
        (2019 + np.round(FINE), torch.float32),
        (1e-60 * FINE, torch.float64),
        (np.full(400, 5.4e6), torch.float32),
    ],
)
@pytest.mark.parametrize("kind", ["text", "integers"])
def test_text_and_integers_are_float32_only_where_its_digits_are_enough(tmp_path, kind, values, used):
    rows = np.column_stack([FINE[::-1], values])
    if kind == "text":
        spec = write_text(tmp_path / "a.csv", "\n".join(f"{x!r},{y!r}" for x, y in rows.tolist()))
    else:
        rows = np.round(np.column_stack([100 * FINE[::-1], values]))
        spec = write_npy(tmp_path / "a.npy", rows.astype(np.int64))
        used = torch.float32 if abs(values).max() < 1 else used
    if used == torch.float64:
        with pytest.warns(ReadingWarning, match=r"column 1 \(counted from 0\) has magnitude .*read as float64"):
            table = read_table(spec)
        assert np.array_equal(table.rows.numpy(), rows)
    else:
        table = read_table(spec)
    assert table.rows.dtype == used
    assert read_table(spec, ReadOptions(dtype="float32")).rows.dtype == torch.float32
    assert read_table(spec, ReadOptions(inexact="float64")).rows.dtype == torch.float64


def test_snapshots_of_text_get_one_dtype(tmp_path):
    near = write_text(tmp_path / "near.csv", "\n".join(map(repr, FINE.tolist())))
    far = write_text(tmp_path / "far.csv", "\n".join(map(repr, (5.4e6 + FINE).tolist())))
    with pytest.warns(ReadingWarning, match=r"far\.csv: column 0"):
        assert {table.rows.dtype for table in read_inputs([near, far], ()).tables} == {torch.float64}
    double = write_npy(tmp_path / "double.npy", FINE[:, None])
    assert {table.rows.dtype for table in read_inputs([near, double], ()).tables} == {torch.float64}


def test_fortran_order_and_more_than_one_block(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(2 * BLOCK_ROWS + 5, 2)))
    array[-1, 1] = np.nan
    spec = write_npy(tmp_path / "a.npy", array)
    with pytest.raises(InvalidInputError, match=f"row {2 * BLOCK_ROWS + 4}, column 1"):
        read_table(spec)
    array[-1, 1] = 0.5
    spec = write_npy(tmp_path / "a.npy", array)
    assert [len(block) for block in open_rows(spec).blocks()] == [BLOCK_ROWS, BLOCK_ROWS, 5]
    assert np.array_equal(read_table(spec).rows.numpy(), array)


def test_one_of_several_arrays_in_an_archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, first=ROWS, second=2 * ROWS)
    assert torch.equal(read_table(f"{path}:second").rows, torch.from_numpy(2 * ROWS))
    with pytest.raises(InvalidInputError, match=r"holds 2 arrays\. Name one: .*a\.npz:first, .*a\.npz:second"):
        read_table(str(path))
    with pytest.raises(UnknownNameError, match="Did you mean 'second'"):
        read_table(f"{path}:secund")


def test_members_of_an_archive_that_are_no_arrays(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, rows=ROWS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "not an array")
        archive.writestr("bad.npy", b"\x93NUMPY\x01\x00no header at all")
    assert read_table(f"{path}:rows").rows.tolist() == ROWS.tolist()
    with pytest.raises(FileFormatError, match=r"readme\.txt is not an array"):
        read_table(f"{path}:readme.txt")
    with pytest.raises(FileFormatError, match="not a readable"):
        read_table(f"{path}:bad")


@pytest.mark.parametrize("shape", ["(10**13, 2)", "(10000000000000, 2)", "(-1, 2)", "(True, True)", "'ab'", "(2.0, 1)"])
@pytest.mark.parametrize("kind", [".npy", ".npz"])
def test_headers_that_declare_another_shape_than_the_bytes_have(tmp_path, kind, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + ROWS.tobytes()[:4]
    path = tmp_path / f"a{kind}"
    if kind == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.npy", content)
    with pytest.raises(InvalidInputError, match=r"not a readable|has 1 row"):
        read_table(str(path))


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused_unread(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, zeros=np.zeros((2**22, 5), np.float32))
    with pytest.raises(FileFormatError, match=r"from 0\.08\d+ MB to 83\.9 MB, more than 100 times.*numpy\.save"):
        read_table(str(path))


def test_a_sparse_matrix_of_scipy_is_refused_by_name(tmp_path):
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.eye(5, format="csr"))
    with pytest.raises(FileFormatError, match=r"a scipy sparse matrix\. .*toarray\(\)"):
        read_table(str(tmp_path / "a.npz"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", [".npy", ".npz", ".csv"])
def test_pipes(tmp_path, kind):
    content = Path(written(tmp_path, kind)).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as writer:
        writer.submit(pipe.write_bytes, content)
        table = read_table(str(pipe))
        assert (table.rows.tolist(), table.name) == (ROWS.tolist(), str(pipe))
        writer.submit(pipe.write_bytes, b"")
        with pytest.raises(FileFormatError, match="delivered no bytes"):
            read_table(str(pipe))


class TestText:
    @given(
        rows=arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 4)), elements=st.floats(-1e30, 1e30)),
        delimiter=st.sampled_from(",;\t"),
        header=st.booleans(),
        ending=st.sampled_from(["\n", "\r\n"]),
    )
    @settings(max_examples=60)
    def test_round_trip(self, tmp_path_factory, rows, delimiter, header, ending):
        path = tmp_path_factory.mktemp("text") / "a.csv"
        lines = [delimiter.join(repr(float(value)) for value in row) for row in rows]
        if header:
            lines = ["# a comment", "", delimiter.join(f'"name {i}"' for i in range(rows.shape[1])), *lines]
        table = read_table(write_text(path, ending.join(lines)), ReadOptions(dtype="float64"))
        assert np.array_equal(table.rows.numpy(), rows)
        assert table.columns == (tuple(f"name {i}" for i in range(rows.shape[1])) if header else ())

    def test_columns_by_name(self, tmp_path):
        spec = write_text(tmp_path / "a.csv", "cell,x,type,y\nc1,1,B,2\nc2,3,T,4\n")
        table = read_table(spec, ReadOptions(columns=("y", "x")))
        assert table.rows.tolist() == [[2, 1], [4, 3]]
        assert table.columns == ("y", "x")
        with pytest.raises(UnknownNameError, match="Did you mean 'type'"):
            read_table(spec, ReadOptions(columns=("typ",)))

    def test_a_byte_order_mark_is_no_part_of_the_first_name(self, tmp_path):
        assert read_table(write_text(tmp_path / "a.csv", "\ufeffx,y\n1,2\n3,4\n")).columns == ("x", "y")

    @pytest.mark.parametrize("width", [2, 3])
    def test_a_first_line_that_counts_is_data_unless_only_it_has_no_points(self, tmp_path, width):
        first = list(range(width))
        whole = [[5 + i for i in first], [7 + i for i in first]]
        points = [[0.5 + i for i in first], [1e-7 + i for i in first]]

        def spec(*lines):
            return write_text(tmp_path / "a.csv", "\n".join(",".join(map(str, line)) for line in lines))

        with pytest.warns(ReadingWarning, match=r"the first line, 0,1.* is read as a row of data\. .*--header yes"):
            assert read_table(spec(first, *whole)).rows.tolist() == [first, *whole]
        with pytest.warns(ReadingWarning, match="is read as a row of data"):
            assert read_table(spec(first, points[0], whole[0])).rows.tolist() == [first, points[0], whole[0]]
        with pytest.warns(ReadingWarning, match=r"is read as the names of columns, .*points.*--header no"):
            named = read_table(spec(first, *points), ReadOptions(dtype="float64"))
        assert (named.rows.tolist(), named.columns) == (points, tuple(map(str, first)))
        assert read_table(spec(first, *whole), ReadOptions(header="yes")).rows.tolist() == whole
        assert read_table(spec(first, *points), ReadOptions(header="no", dtype="float64")).rows[0].tolist() == first

    def test_a_column_that_counts_the_rows_is_named(self, tmp_path):
        lines = [f"{i},{(7 * i) % 5},{(3 * i) % 11}" for i in range(20)]
        with pytest.warns(ReadingWarning, match=r"column 'id' counts the rows, 0 … 19.*coordinate.*--columns"):
            read_table(write_text(tmp_path / "a.csv", "id,x,y\n" + "\n".join(lines)))
        array = np.column_stack([np.random.default_rng(0).normal(size=20), np.arange(3, 23)])
        with pytest.warns(ReadingWarning, match=r"column 1 \(counted from 0\) counts the rows, 3 … 22"):
            read_table(write_npy(tmp_path / "a.npy", array))

    def test_a_cell_without_end_is_refused(self, tmp_path):
        with pytest.raises(FileFormatError, match="field larger than field limit"):
            read_table(write_text(tmp_path / "a.csv", "x" * 131_073 + ",y\n1,2\n3,4\n"))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x,type,y\n1,B,2\n3,T,4\n", r"column 'type' has 'B' in line 2.*--columns"),
            ("x,y,z\n1,a,b\n3,4,5\n", r"column 'y' has 'a' in line 2; column 'z' has 'b' in line 2"),
            ("1,2\n3,x4\n", "column 2 has 'x4' in line 2"),
            ("x,y\n1,2\n\n3,nan\n", "line 4, column 'y' is nan.*impute"),
            ("x,y\n1,2\n3,inf\n", "line 3, column 'y' is inf"),
            ("x,y\n1,2\n3,\n", "column 'y' is empty in line 3.*missing entries"),
            ("x,y\n1,2\nNA,4\n", "column 'x' has 'NA' in line 3.*missing entries"),
            ("x,y\n1,2\n3,4,5\n", "line 3 has 3 cells, the first line has 2"),
            ("x;y\n1,5;2\n3,1;4\n", "column 'x' has '1,5' in line 2.*a point"),
            (",x,y\n0,1,2\n1,3,4\n", "column 1 has no name.*row labels.*index=False"),
            ("x,x\n1,2\n3,4\n", "two columns are named 'x'"),
            ("x,y\n", "has a header but no rows"),
            ("\n\n# nothing\n", "no lines with data"),
            ("x,y\n1,2\n", "has 1 row"),
            ("x,y\n1,2\n3,1_000\n", "column 'y' has '1_000' in line 3"),
            ("x,y\n1,2\n3,4\n".encode("utf-16"), "not UTF-8 text"),
        ],
    )
    def test_what_is_no_table_of_numbers(self, tmp_path, text, message):
        with pytest.raises(InvalidInputError, match=message):
            read_table(write_text(tmp_path / "a.csv", text))

    def test_numbers_beyond_float32(self, tmp_path):
        spec = write_text(tmp_path / "a.csv", "x,y\n1,2\n3,1e300\n")
        with pytest.raises(InvalidInputError, match=r"line 3, column 'y' is 1e\+300. .*beyond float32.*float64"):
            read_table(spec, ReadOptions(dtype="float32"))
        with pytest.warns(ReadingWarning, match=r"column 'y' has magnitude 1e\+300 .*read as float64"):
            assert read_table(spec).rows[1, 1] == 1e300

    def test_a_fault_after_the_first_block_is_found_in_its_line(self, tmp_path):
        lines = ["x,y"] + ["1,2"] * (BLOCK_ROWS + 3)
        lines[-1] = "1,oops"
        with pytest.raises(InvalidInputError, match=f"'oops' in line {BLOCK_ROWS + 4}"):
            read_table(write_text(tmp_path / "a.csv", "\n".join(lines)))

    def test_columns_need_a_header(self, tmp_path):
        with pytest.raises(InvalidInputError, match="no header line"):
            read_table(write_text(tmp_path / "a.csv", "1,2\n3,4\n"), ReadOptions(columns=("x",)))
        with pytest.raises(InvalidInputError, match="no column names"):
            read_table(write_npy(tmp_path / "a.npy", ROWS), ReadOptions(columns=("x",)))


class TestAnnotated:
    DAYS = (2, 3, 2, 3, 7, 7)

    def course(self, tmp_path, days=DAYS):
        return write_h5ad(tmp_path / "cells.h5ad", np.arange(12, dtype=np.float32).reshape(6, 2), day=list(days))

    def test_the_snapshots_of_one_file(self, tmp_path):
        inputs = read_inputs([self.course(tmp_path)], (), ReadOptions(time_key="day"))
        assert inputs.times == (2, 3, 7)
        assert [table.rows.tolist() for table in inputs.tables] == [
            [[0, 1], [4, 5]],
            [[2, 3], [6, 7]],
            [[8, 9], [10, 11]],
        ]

    def test_some_of_the_snapshots(self, tmp_path):
        inputs = read_inputs([self.course(tmp_path)], (2.0, 7.0), ReadOptions(time_key="day"))
        assert [table.rows[0, 0].item() for table in inputs.tables] == [0, 8]
        with pytest.raises(InvalidInputError, match="has times 2, 3, 7, but no cells at 4"):
            read_inputs([self.course(tmp_path)], (2.0, 4.0), ReadOptions(time_key="day"))

    def test_times_may_be_numbers_written_as_words_but_not_words(self, tmp_path):
        assert read_inputs([self.course(tmp_path, "223377")], (), ReadOptions(time_key="day")).times == (2, 3, 7)
        with pytest.raises(InvalidInputError, match=r"obs\['day'\] holds early, late; times must be numbers.* ordered"):
            read_inputs([self.course(tmp_path, ["early", "late"] * 3)], (), ReadOptions(time_key="day"))

    def test_labels_with_a_number_are_times_and_it_is_said(self, tmp_path):
        spec, options = self.course(tmp_path, ["D10", "D10", "D2", "D2", "D3", "D3"]), ReadOptions(time_key="day")
        with pytest.warns(TimesWarning, match=r"D2 = 2, D3 = 3, D10 = 10\."):
            inputs = read_inputs([spec], (), options)
        assert inputs.times == (2, 3, 10)
        assert [table.rows[0, 0].item() for table in inputs.tables] == [4, 8, 0]
        with pytest.warns(TimesWarning):
            assert read_table(f"{spec}:D3", options).time == 3

    def test_an_ordered_category_gives_times_by_rank(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        stages = pandas.Categorical(["mid", "late", "early"] * 2, ["early", "mid", "late", "never"], ordered=True)
        spec = write_h5ad(tmp_path / "cells.h5ad", np.arange(12, dtype=np.float32).reshape(6, 2), day=stages)
        with pytest.warns(TimesWarning, match="one unit of time apart.*early = 0, mid = 1, late = 2"):
            inputs = read_inputs([spec], (), ReadOptions(time_key="day"))
        assert inputs.times == (0, 1, 2)
        assert [table.rows[0, 0].item() for table in inputs.tables] == [4, 0, 2]

    def test_times_that_differ_by_rounding_are_one(self, tmp_path):
        spec, options = self.course(tmp_path, [0.1 + 0.2, 0.3, 0, 0, 1, 1]), ReadOptions(time_key="day")
        inputs = read_inputs([spec], (), options)
        assert inputs.times == pytest.approx((0, 0.3, 1))
        assert [len(table.rows) for table in inputs.tables] == [2, 2, 2]
        assert read_table(f"{spec}:{0.1 + 0.2!r}", options).rows.tolist() == [[0, 1], [2, 3]]

    def test_candidates_for_the_time_key(self, tmp_path):
        array = np.arange(12, dtype=np.float32).reshape(6, 2)
        more = {"stage": ["E7", "E8"] * 3, "kind": ["T", "B"] * 3, "one": [1] * 6}
        spec = write_h5ad(tmp_path / "cells.h5ad", array, day=list(self.DAYS), **more)
        with pytest.raises(UnknownNameError, match=r"Columns that could hold times: day, stage\.$"):
            read_inputs([spec], (), ReadOptions(time_key="time"))

    def test_several_times_have_to_be_chosen_from(self, tmp_path):
        spec, options = self.course(tmp_path), ReadOptions(time_key="day")
        with pytest.raises(InvalidInputError, match=r"cells of 3 times: obs\['day'\] is 2, 3, 7\. .*cells\.h5ad:2"):
            read_table(spec, options)
        alone = self.course(tmp_path, [4] * 6)
        assert read_table(alone, options).time == 4
        assert read_table(alone, ReadOptions()).time is None

    def test_names_that_are_not_there(self, tmp_path):
        spec = self.course(tmp_path)
        with pytest.raises(UnknownNameError, match="Did you mean 'X_pca'"):
            read_table(spec, ReadOptions(representation="X_pcs"))
        with pytest.raises(UnknownNameError, match="Did you mean 'day'"):
            read_inputs([spec], (), ReadOptions(time_key="dax"))

    def test_the_matrix_itself(self, tmp_path):
        assert read_table(self.course(tmp_path), ReadOptions(representation="X")).rows.shape == (6, 2)

    def test_a_sparse_matrix_is_read_in_blocks(self, tmp_path):
        anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
        dense = np.zeros((BLOCK_ROWS + 10, 3), np.float32)
        dense[::3, 1], dense[5, 2] = 2.0, 1.0
        for kind in (scipy.sparse.csr_matrix, scipy.sparse.csc_matrix):
            obs = pandas.DataFrame({"day": np.arange(len(dense)) % 2}, index=[f"c{i}" for i in range(len(dense))])
            anndata.AnnData(X=kind(dense), obs=obs).write_h5ad(tmp_path / "a.h5ad")
            spec, options = str(tmp_path / "a.h5ad"), ReadOptions(representation="X", time_key="day")
            first, second = read_inputs([spec], (), options).tables
            assert np.array_equal(first.rows.numpy(), dense[::2])
            assert np.array_equal(second.rows.numpy(), dense[1::2])
            blocks = open_rows(spec, ReadOptions(representation="X")).blocks()
            assert [type(block) for block in blocks] == [np.ndarray] * 2

    def test_what_is_missing_is_named_with_its_cells(self, tmp_path):
        anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
        names = [f"c{i}" for i in range(6)]
        days = pandas.array([None, 1, 1, 2, 2, None], dtype="Int64")
        data = anndata.AnnData(obs=pandas.DataFrame({"day": days}, index=names))
        table = pandas.DataFrame(np.arange(12.0).reshape(6, 2), index=names, columns=["a", "b"])
        data.obsm["rows"] = np.where(np.eye(6, 2) > 0, np.nan, 1.0)
        data.obsm["table"] = table
        data.obsm["text"] = table.assign(kind=list("xyxyxy"), flag=True)
        data.obsm["gaps"] = table.assign(b=[1.0, None, 2.0, None, 3.0, 4.0])
        data.write_h5ad(tmp_path / "a.h5ad")
        spec = str(tmp_path / "a.h5ad")
        assert read_table(spec, ReadOptions(representation="table")).rows.tolist() == table.to_numpy().tolist()
        for name, key, message in [
            ("X", None, r"has no matrix X; choose one of the representations in obsm: .*table.*--rep"),
            (
                "text",
                None,
                r"obsm\['text'\] is a data frame .* not numeric: 'kind' \(.*\), 'flag' \(bool\)",
            ),
            ("gaps", None, r"obsm\['gaps'\]: column 'b' is missing for the rows c1, c3\."),
            ("table", "day", r"obs\['day'\] is missing for 2 cells: c0, c5\."),
            ("rows", None, r"row 0 \(c0\), column 0 \(counted from 0\) is nan"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                read_table(spec, ReadOptions(representation=name, time_key=key))

    def test_the_missing_extra_is_named(self, tmp_path, monkeypatch):
        spec = self.course(tmp_path)
        monkeypatch.setitem(sys.modules, "anndata", None)
        with pytest.raises(InvalidInputError, match=r"pip install -c constraints\.txt '\.\[bio\]'"):
            read_table(spec)

    def test_one_snapshot_of_a_file(self, tmp_path):
        spec = self.course(tmp_path)
        options = ReadOptions(time_key="day")
        assert read_table(f"{spec}:3", options).rows.tolist() == [[2, 3], [6, 7]]
        pair = read_inputs([f"{spec}:2", f"{spec}:7"], (), options)
        assert [table.rows[0, 0].item() for table in pair.tables] == [0, 8]
        assert pair.times == (2, 7)
        assert read_inputs([f"{spec}:2", f"{spec}:7"], (0, 1), options).times == (0, 1)
        for part, read, message in [
            ("4", options, "times 2, 3, 7, but no cells at 4"),
            ("soon", options, "'soon' is not a time"),
            ("3", ReadOptions(), "name the column of obs"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                read_table(f"{spec}:{part}", read)

    def test_a_time_key_needs_an_annotated_file(self, tmp_path):
        with pytest.raises(InvalidInputError, match=r"in an \.h5ad file, got .*a\.npy"):
            read_inputs([write_npy(tmp_path / "a.npy", ROWS)], (), ReadOptions(time_key="day"))


class TestSeveral:
    def test_counts_of_files_and_times(self, tmp_path):
        spec = write_npy(tmp_path / "a.npy", ROWS)
        assert read_inputs([spec, spec], ()).times is None
        assert read_inputs([spec, spec, spec], (0, 1, 2.5)).times == (0, 1, 2.5)
        for specs, times, message in [
            ([spec], (), "a bridge needs two"),
            ([spec] * 3, (), "need --times"),
            ([spec] * 3, (1, 2), "3 data sets and 2 times"),
            ([spec] * 2, (2, 1), "times must increase, got 2, 1"),
            ([spec] * 2, (1, 1), "times must increase"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                read_inputs(specs, times)

    def test_columns_must_agree(self, tmp_path):
        wide, narrow = write_npy(tmp_path / "a.npy", ROWS), write_npy(tmp_path / "b.npy", ROWS[:, :2])
        with pytest.raises(InvalidInputError, match=r"a\.npy has 3 columns, .*b\.npy has 2.*project"):
            read_inputs([wide, narrow], ())
        xy, yx = (write_text(tmp_path / f"{names}.csv", f"{names[0]},{names[1]}\n1,2\n3,4\n") for names in ("xy", "yx"))
        with pytest.raises(InvalidInputError, match=r"columns differ: 'x'.*'y'"):
            read_inputs([xy, yx], ())
        double = write_npy(tmp_path / "c.npy", ROWS.astype(np.float64))
        with pytest.raises(InvalidInputError, match=r"float32, .* float64.*--dtype"):
            read_inputs([wide, double], ())


class TestBuiltIn:
    def test_names(self):
        assert read_table("two_moons", ReadOptions(rows=50)).rows.shape == (50, 2)
        with pytest.raises(UnknownNameError, match=r"Did you mean 'two_moons'.*To read a file"):
            read_table("two_mons")
        with pytest.raises(InvalidInputError, match="must be positive"):
            read_table("two_moons", ReadOptions(rows=0))

    def test_a_set_named_twice_is_drawn_twice(self):
        first, second = read_inputs(["gaussian", "gaussian"], (), ReadOptions(rows=20)).tables
        assert not torch.equal(first.rows, second.rows)
        assert first.sha256 != second.sha256
        again = read_inputs(["gaussian", "gaussian"], (), ReadOptions(rows=20)).tables[0]
        assert torch.equal(first.rows, again.rows)

    def test_a_folder_of_the_same_name_does_not_hide_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in datasets.names():
            (tmp_path / name).mkdir()
        assert len(read_table("two_moons", ReadOptions(rows=9)).rows) == 9

    @pytest.mark.parametrize("spec", ["data/cells", "cells.txt", "cells.parquet"])
    def test_what_is_neither_a_known_file_nor_a_name(self, spec):
        with pytest.raises(FileFormatError, match=r"Give a \.npy, \.npz"):
            read_table(spec)


class TestSplit:
    @given(n=st.integers(4, 60), fraction=st.floats(0.0, 0.99), seed=st.integers(0, 2**40))
    def test_every_row_is_on_one_side_in_its_old_order(self, n, fraction, seed):
        rows = torch.arange(float(n))[:, None]
        count = round(fraction * n)
        if fraction > 0 and not 2 <= count <= n - 2:
            with pytest.raises(InvalidInputError, match="each needs at least 2"):
                split(rows, fraction, seed, "a.npy")
            return
        kept, held = split(rows, fraction, seed, "a.npy")
        assert len(held) == count
        assert torch.equal(torch.cat([kept, held]).sort(0).values, rows)
        for side in (kept, held):
            assert bool((side.diff(dim=0) > 0).all())

    @pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
    def test_fractions_outside(self, fraction):
        with pytest.raises(InvalidInputError, match=r"lie in \[0, 1\)"):
            split(torch.zeros(10, 1), fraction, 0, "a.npy")

    def test_each_row_is_as_likely_to_be_held_out(self):
        counts = torch.zeros(10)
        for seed in range(2000):
            counts[split(torch.arange(10.0)[:, None], 0.3, seed, "a")[1].long().flatten()] += 1
        error = (counts - 600) / (2000 * 0.3 * 0.7) ** 0.5
        assert float(error.abs().max()) < 4
