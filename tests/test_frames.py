"""Data frames and ``AnnData``, in and out: the numbers of arrays, with names; annotations; refusals."""

import numpy as np
import pytest
import torch

import sbridge as sb
from sbridge.errors import InvalidInputError, TimesWarning, UnknownNameError

pandas = pytest.importorskip("pandas")
NAMES = ["gene a", "gene b"]
FAST = {"solver": sb.SinkhornBridge(), "seed": 3}


def rows(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, 2)).astype(np.float32)


def frame(n: int, seed: int, shift: float = 0.0) -> "pandas.DataFrame":
    return pandas.DataFrame(rows(n, seed, shift), columns=NAMES, index=[f"c{seed}-{i}" for i in range(n)])


X0, X1, X2 = frame(60, 0), frame(70, 1, 1.0), frame(50, 2, 2.0)
ALL = pandas.concat([X0, X1, X2])
DAYS = np.repeat([2.0, 4.0, 7.0], [60, 70, 50])


@pytest.fixture(scope="module")
def bridge() -> sb.Bridge:
    return sb.fit(X0, X1, **FAST)


@pytest.fixture(scope="module")
def course() -> sb.Course:
    return sb.fit_course([X0.to_numpy(), X1.to_numpy(), X2.to_numpy()], [2, 4, 7], **FAST)


# --- data frames


def test_a_fit_of_frames_is_that_of_arrays(bridge, tmp_path):
    plain = sb.fit(X0.to_numpy(), X1.to_numpy(), **FAST)
    assert bridge.columns == tuple(NAMES)
    assert plain.columns is None
    found = bridge.transport(X0, seed=1)
    pandas.testing.assert_frame_equal(
        found, pandas.DataFrame(plain.transport(X0.to_numpy(), seed=1).numpy(), columns=NAMES, index=X0.index)
    )
    bridge.save(tmp_path / "b")
    assert sb.load(tmp_path / "b").columns == tuple(NAMES)
    assert bridge.reversed().columns == tuple(NAMES)


def test_a_frame_gives_a_frame(bridge):
    for found in (bridge.interpolate(X0, 0.5, seed=1), bridge.conditional_mean(X0, seed=1)):
        assert found.index.equals(X0.index)
        assert list(found.columns) == NAMES
        assert set(found.dtypes) == {np.dtype("float32")}
    assert isinstance(bridge.interpolate(X0, [0.2, 0.5], seed=1), torch.Tensor)
    assert isinstance(bridge.transport(X0.to_numpy(), seed=1), torch.Tensor)


def test_courses_of_frames(course):
    order = np.random.default_rng(0).permutation(len(ALL))
    for found in (
        sb.fit_course([X0, X1, X2], [2, 4, 7], **FAST),
        sb.fit_course(ALL, DAYS, **FAST),
    ):
        assert [bridge.columns for bridge in found.bridges] == [tuple(NAMES)] * 2
        moved = found.interpolate(X0, 2.0, 5.0, seed=0)
        assert moved.index.equals(X0.index)
        np.testing.assert_array_equal(moved.to_numpy(), course.interpolate(X0.to_numpy(), 2, 5, seed=0).numpy())
    mixed = sb.fit_course(ALL.iloc[order], DAYS[order], **FAST)
    assert sorted(mixed.bridges[0].forward.start.rows.tolist()) == sorted(X0.to_numpy().tolist())


def test_frames_that_do_not_fit(bridge):
    with pytest.raises(
        InvalidInputError, match=r"x1 has the columns gene b, gene a, but x0 has gene a, gene b\. Choose"
    ):
        sb.fit(X0, X1[NAMES[::-1]])
    with pytest.raises(
        InvalidInputError, match=r"x0 has the columns u, v, but the bridge was fitted on gene a, gene b"
    ):
        bridge.transport(X0.rename(columns=dict(zip(NAMES, "uv", strict=True))), seed=0)
    with pytest.raises(InvalidInputError, match=r"columns that are not numeric: 'kind' \(.*Drop or convert"):
        sb.fit(X0.assign(kind="x"), X1.assign(kind="y"))
    with pytest.raises(InvalidInputError, match="x0 has dtype int64"):
        sb.fit((10 * X0).astype(int), X1)
    gap = X0.copy()
    gap.iloc[4, 1] = np.nan
    with pytest.raises(InvalidInputError, match="x0: column 'gene b' is missing for the rows c0-4"):
        sb.fit(gap, X1)


# --- AnnData


def annotated(**more):
    anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    obs = pandas.DataFrame({"day": DAYS.astype(int), "stage": [f"day{d:g}" for d in DAYS], **more}, index=ALL.index)
    obs["type"] = pandas.Categorical(np.where(ALL["gene a"] > ALL["gene b"], "b", "a"))
    data = anndata.AnnData(X=sparse.csr_matrix(np.eye(len(ALL), 5)), obs=obs)
    data.obsm["X_pca"] = ALL.to_numpy()
    data.obsm["X_frame"] = ALL
    data.obsm["X_wide"] = np.ones((len(ALL), 3), np.float32)
    return data


def test_fits_of_anndata_are_those_of_its_snapshots(course):
    data = annotated()
    for found in (
        sb.fit_course(data, time_key="day", **FAST),
        sb.fit_course(data, [2, 4, 7], time_key="day", rep="X_frame", **FAST),
    ):
        assert found.times == (2.0, 4.0, 7.0)
        torch.testing.assert_close(
            found.interpolate(X0.to_numpy(), 2, 7, seed=0),
            course.interpolate(X0.to_numpy(), 2, 7, seed=0),
            rtol=0,
            atol=0,
        )
    one = sb.fit(data, time_key="day", times=(2, 7), **FAST)
    two = sb.fit(X0.to_numpy(), X2.to_numpy(), **FAST)
    assert torch.equal(one.transport(X0.to_numpy(), seed=0), two.transport(X0.to_numpy(), seed=0))
    with pytest.warns(TimesWarning, match="day2 = 2, day4 = 4, day7 = 7"):
        assert sb.fit_course(data, times=(4, 7), time_key="stage", **FAST).times == (4.0, 7.0)
    sparse = sb.fit_course(data, (2, 4), time_key="day", rep="X", sigma=1.0, **FAST)
    assert sparse.bridges[0].dim == 5


def test_ends_are_chosen_by_labels():
    data, fast = annotated(), {"solver": sb.GaussianBridge()}
    with pytest.warns(TimesWarning, match="day2 = 2, day7 = 7"):
        found = sb.fit(data, time_key="day", times=("day2", "day7"), **fast)
    known = sb.fit(X0.to_numpy(), X2.to_numpy(), **fast)
    torch.testing.assert_close(*(one.conditional_mean(X0.to_numpy(), seed=0) for one in (found, known)))


def test_selections_that_cannot_be_made():
    data = annotated()
    with pytest.raises(InvalidInputError, match=r"an AnnData needs time_key.*It has day, stage, type"):
        sb.fit_course(data)
    with pytest.raises(UnknownNameError, match=r"'days'.*Did you mean 'day'.*could hold times: day, stage"):
        sb.fit_course(data, time_key="days")
    with pytest.raises(TypeError, match=r"^fit\(\) got an unexpected keyword argument 'foo'"):
        sb.fit(data, time_key="day", foo=1)
    with pytest.raises(UnknownNameError, match=r"'X_pc'.*Did you mean 'X_pca'.*X, X_frame, X_pca, X_wide"):
        sb.fit(data, time_key="day", rep="X_pc", times=(2, 4))
    with pytest.raises(InvalidInputError, match=r"has the times 2, 4, 7\. Choose two, times=\(t0, t1\)"):
        sb.fit(data, time_key="day")
    with pytest.raises(InvalidInputError, match=r"has times 2, 4, 7, but no cells at 3"):
        sb.fit(data, time_key="day", times=(2, 3))
    with pytest.raises(InvalidInputError, match="times must increase, got 4, 2"):
        sb.fit(data, time_key="day", times=(4, 2))
    with pytest.raises(InvalidInputError, match=r"an AnnData holds both ends"):
        sb.fit(data, X1, time_key="day")
    with pytest.raises(InvalidInputError, match="time_key select cells of an AnnData, but fit was given arrays"):
        sb.fit(X0, X1, time_key="day")
    with pytest.raises(InvalidInputError, match="x1 is missing"):
        sb.fit(X0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        sb.fit(X0, X1, sede=1)


def test_annotations(course):
    data = annotated()
    before = data.copy()
    sb.annotate(data, course, time_key="day", groups="type", draws=40, seed=5)
    assert data.obs_names.equals(before.obs_names)
    assert (data.X != before.X).nnz == 0
    assert type(data.X) is type(before.X)
    pandas.testing.assert_frame_equal(data.obs, before.obs)
    for key in before.obsm:
        assert data.obsm[key].dtype == before.obsm[key].dtype if key != "X_frame" else True
    velocity, fates = data.obsm["sbridge_velocity"], data.obsm["sbridge_fates"]
    assert velocity.dtype == np.float32
    # under Brownian motion paths leave a cell towards the mean of its ends
    for day, bridge in zip((2, 4), course.bridges, strict=True):
        x = torch.from_numpy(data.obsm["X_pca"][day == DAYS])
        expected = (bridge.conditional_mean(x, seed=0) - x) / bridge.horizon
        torch.testing.assert_close(torch.from_numpy(velocity[day == DAYS]), expected, rtol=1e-4, atol=1e-4)
    assert np.isnan(velocity[DAYS == 7]).all()
    assert list(fates.columns) == ["a", "b"]
    assert fates.index.equals(data.obs_names)
    np.testing.assert_allclose(fates.sum(axis=1), 1.0, atol=1e-6)
    labels = data.obs["type"].to_numpy()
    assert (fates.to_numpy()[DAYS == 7] == np.stack([labels == "a", labels == "b"], 1)[DAYS == 7]).all()
    found = sb.fates(course, labels[DAYS == 7], draws=2000, seed=1).probabilities.numpy()
    early = DAYS == 2
    low, high = data.obsm["sbridge_fates_lower"].to_numpy()[early], data.obsm["sbridge_fates_upper"].to_numpy()[early]
    assert ((low - 0.02 <= found) & (found <= high + 0.02)).mean() >= 0.93
    assert "sbridge_growth" not in data.obs
    assert data.uns["sbridge"]["groups"] == "type"


def test_a_bridge_is_annotated_at_the_times_of_its_ends():
    """The clock of a bridge says nothing about days; velocities are per unit of the time axis of the cells."""
    data = annotated()
    bridge = sb.fit(X0.to_numpy(), X1.to_numpy(), reference=sb.BrownianMotion(0.5), solver=sb.GaussianBridge())
    with pytest.raises(InvalidInputError, match=r"a bridge does not know the times of its ends.*Course\(\(t0, t1\)"):
        sb.annotate(data, bridge, time_key="day")
    data.obs["day"] = np.where(np.arange(len(ALL)) < 30, 3, DAYS)  # some cells between the ends, at half the clock
    sb.annotate(data, sb.Course((2.0, 4.0), (bridge,)), time_key="day")
    x, found = torch.from_numpy(X0.to_numpy()), torch.from_numpy(data.obsm["sbridge_velocity"])
    torch.testing.assert_close(found[:30], 0.25 * bridge.forward.control(0.5, x[:30]))
    torch.testing.assert_close(found[30:60], (bridge.conditional_mean(x[30:], seed=0) - x[30:]) / 2, rtol=0, atol=1e-5)
    assert found[60:].isnan().all()


def test_annotations_of_an_earlier_call_are_replaced(course):
    data, columns = annotated(), set(annotated().obs)
    data.obs["sbridge_growth"], data.obsm["sbridge_other"] = 1.0, data.obsm["X_pca"]
    sb.annotate(data, course, time_key="day", groups="type", draws=2)
    assert {"sbridge_velocity", "sbridge_fates", "sbridge_fates_lower", "sbridge_fates_upper"} <= set(data.obsm)
    sb.annotate(data, course, time_key="day")
    assert {key for key in data.obsm if key.startswith("sbridge")} == {"sbridge_velocity", "sbridge_other"}
    assert set(data.obs) == columns


def test_fates_know_the_columns_of_the_fit(bridge):
    labels = np.where(X1["gene a"] > X1["gene b"], "b", "a")
    found = sb.fates(bridge, labels, X0, labelled=X1, draws=5, seed=0).probabilities
    assert torch.equal(found, sb.fates(bridge, labels, draws=5, seed=0).probabilities)
    for given in ({"rows": X0[NAMES[::-1]]}, {"labelled": X1[NAMES[::-1]]}):
        (name,) = given
        with pytest.raises(InvalidInputError, match=f"{name} has the columns gene b, gene a, but the bridge was"):
            sb.fates(bridge, labels, seed=0, **given)
    plain = sb.fit(X0.to_numpy(), X1.to_numpy(), solver=sb.GaussianBridge())
    with pytest.raises(InvalidInputError, match="labelled has the columns gene b, gene a, but rows has gene a"):
        sb.ancestors(plain, labels, X0, labelled=X1[NAMES[::-1]], seed=0)


def test_annotated_data_are_saved_and_have_growth(tmp_path):
    data = annotated()
    grown = sb.fit_course(data, time_key="day", balance=sb.ends.Growth(lambda x: x[:, 0]), **FAST)
    data.obs["day"] = np.where(np.arange(len(ALL)) < 10, 3, DAYS)  # ten cells of a day between
    sb.annotate(data, grown, time_key="day", prefix="sb")
    growth = data.obs["sb_growth"].to_numpy()
    assert np.isnan(growth[:10]).all()
    assert np.isnan(growth[DAYS == 7]).all()
    assert np.isfinite(data.obsm["sb_velocity"][:10]).all()
    x = torch.from_numpy(X1.to_numpy())
    np.testing.assert_allclose(growth[DAYS == 4], grown.bridges[1].balance.growth(x), rtol=1e-6)
    sb.annotate(data, grown, time_key="day", groups="type", prefix="sb", draws=5)
    assert np.isnan(data.obsm["sb_fates"].to_numpy()[:10]).all()
    data.write_h5ad(tmp_path / "a.h5ad")
    again = pytest.importorskip("anndata").read_h5ad(tmp_path / "a.h5ad")
    pandas.testing.assert_frame_equal(again.obsm["sb_fates"], data.obsm["sb_fates"])


def test_annotations_that_cannot_be_made(course):
    data = annotated()
    keys = {"obsm": set(data.obsm), "obs": set(data.obs), "uns": set(data.uns)}
    with pytest.raises(InvalidInputError, match="X_wide has 3 columns, but the course has dimension 2"):
        sb.annotate(data, course, time_key="day", rep="X_wide")
    with pytest.raises(UnknownNameError, match=r"'typ'.*Did you mean 'type'"):
        sb.annotate(data, course, time_key="day", groups="typ")
    with pytest.raises(InvalidInputError, match=r"no cell has the time 7, the last of the course"):
        sb.annotate(data[DAYS < 7].copy(), course, time_key="day", groups="type")
    late, single = annotated(), annotated()
    late.obs["day"], single.obs["one"] = 0, "x"
    with pytest.raises(InvalidInputError, match=r"no cell has a time from 2 to 7.*day is 0"):
        sb.annotate(late, course, time_key="day")
    with pytest.raises(InvalidInputError, match=r"no cell has a time from 0 to 3"):
        sb.annotate(annotated(day=8 + DAYS), sb.Course((0.0, 3.0), course.bridges[1:]), time_key="day")
    with pytest.raises(InvalidInputError, match=r"obs\['one'\] at the time 7 has only one group, 'x'"):
        sb.annotate(single, course, time_key="day", groups="one")
    assert set(single.obsm) == keys["obsm"]
    assert keys == {"obsm": set(data.obsm), "obs": set(data.obs), "uns": set(data.uns)}
