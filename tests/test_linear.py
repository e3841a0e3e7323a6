import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sbridge.errors import InvalidInputError
from sbridge.linear import LinearMap

DIM, ROWS = 3, 4


def make(form: str, times: int, seed: int = 0) -> LinearMap:
    """A random, well-conditioned map; ``times = 0`` means no leading dimension."""
    generator = torch.Generator().manual_seed(seed)
    leading = (times,) if times else ()
    tail = {"scalar": (1,), "diagonal": (DIM,), "matrix": (DIM, DIM)}[form]
    values = torch.randn(*leading, *tail, generator=generator, dtype=torch.float64)
    if form == "matrix":
        return LinearMap(values + 3.0 * torch.eye(DIM, dtype=torch.float64), dense=True)
    return LinearMap(values.sign() * (values.abs() + 0.5))


def states(rows: int = ROWS, dtype: torch.dtype = torch.float64, seed: int = 9) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


forms = st.sampled_from(["scalar", "diagonal", "matrix"])
leading = st.sampled_from([0, ROWS])


@given(forms, leading)
def test_a_map_acts_as_its_matrix(form, times):
    a, x = make(form, times), states()
    matrix = a.expanded(DIM)
    wanted = torch.stack([(matrix[i] if times else matrix) @ x[i] for i in range(ROWS)])
    torch.testing.assert_close(a(x), wanted)


@given(forms)
def test_each_of_n_maps_acts_on_its_block_of_rows(form):
    a, x = make(form, 2), states(6)
    matrix = a.expanded(DIM)
    torch.testing.assert_close(a(x), torch.cat([x[:3] @ matrix[0].mT, x[3:] @ matrix[1].mT]))


@given(forms, st.sampled_from([0, 1, 2, ROWS]), st.sampled_from([(DIM,), (1, DIM), (ROWS, DIM)]))
def test_adding_in_one_pass(form, times, shape):
    a, x, base = make(form, times), states(), states(seed=2)[0].expand(shape)
    torch.testing.assert_close(a.add(base, x), base + a(x))


@given(forms, forms, leading, leading)
def test_algebra_is_that_of_matrices(form, other_form, times, other_times):
    a, b = make(form, times), make(other_form, other_times, seed=1)
    p, q = a.expanded(DIM), b.expanded(DIM)
    torch.testing.assert_close((a @ b).expanded(DIM), p @ q)
    torch.testing.assert_close((a + b).expanded(DIM), p + q)
    torch.testing.assert_close((-a).expanded(DIM), -p)
    torch.testing.assert_close(a.T.expanded(DIM), p.mT)
    torch.testing.assert_close((a * 2.5).expanded(DIM), 2.5 * p)
    torch.testing.assert_close(a.inverse().expanded(DIM), torch.linalg.inv(p))
    torch.testing.assert_close(a.log_abs_det(DIM), torch.linalg.slogdet(p).logabsdet)
    torch.testing.assert_close(a.mean_square(DIM), (p @ p.mT).diagonal(dim1=-2, dim2=-1).mean(-1))


@given(forms, leading)
def test_a_factor_for_each_time(form, times):
    a, factor = make(form, times), torch.linspace(1.0, 2.0, ROWS, dtype=torch.float64)
    torch.testing.assert_close((a * factor).expanded(DIM), a.expanded(DIM) * factor.reshape(-1, 1, 1))


@given(forms, leading)
def test_the_root_is_a_root(form, times):
    a = make(form, times)
    square = a @ a.T
    root = square.cholesky()
    assert root.dense == square.dense
    torch.testing.assert_close((root @ root.T).expanded(DIM), square.expanded(DIM))
    if square.dense:
        torch.testing.assert_close(root.values, root.values.tril())


def test_the_root_of_a_singular_covariance():
    column = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    both = torch.stack([column @ column.mT, torch.zeros(3, 3, dtype=torch.float64)])
    root = LinearMap(both, dense=True).cholesky()
    torch.testing.assert_close((root @ root.T).values, both)
    rounded = LinearMap(torch.tensor([-1e-18, 4.0], dtype=torch.float64)).cholesky()
    assert rounded.values.tolist() == [0.0, 2.0]


@given(forms, leading)
def test_takes_the_dtype_of_the_states(form, times):
    x = states(dtype=torch.float32)
    assert make(form, times).to(x)(x).dtype == torch.float32


@given(forms)
def test_one_of_many(form):
    many = make(form, ROWS)
    assert torch.equal(many.at(2).values, many.values[2])
    assert many.at(2).dense == many.dense
    for k, one in enumerate(many.unbind()):
        assert torch.equal(one.values, many.at(k).values)
        assert one.dense == many.dense


@pytest.mark.parametrize(
    ("value", "dense", "dim"),
    [
        (2.0, False, None),
        (torch.tensor(2.0), False, None),
        (torch.tensor([1.0, 2.0]), False, 2),
        (torch.eye(2), True, 2),
    ],
)
def test_reads_coefficients(value, dense, dim):
    a = LinearMap.of(value)
    assert (a.dense, a.dim, a.values.dtype) == (dense, dim, torch.float64)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2, 3), r"square matrix .* got shape \(2, 3\)"),
        (torch.ones(2, 2, 2), "got shape"),
        (float("nan"), "finite"),
        (torch.tensor([1.0, float("inf")]), "finite"),
    ],
)
def test_refuses_other_coefficients(value, said):
    with pytest.raises(InvalidInputError, match=said):
        LinearMap.of(value)
