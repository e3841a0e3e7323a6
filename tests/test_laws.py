import json

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sbridge.errors import InvalidInputError, UnsupportedError
from sbridge.laws import Density, Gaussian, GaussianMixture, Point, Samples, as_law, as_rows
from sbridge.laws.scaling import AffineScaling
from sbridge.storage.registry import decode, encode

COVARIANCE = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
N = 40_000


def gaussian(dtype=torch.float64):
    return Gaussian(torch.tensor([1.0, -2.0], dtype=dtype), COVARIANCE.to(dtype))


def mixture(dtype=torch.float64):
    means = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-2.0, 4.0]], dtype=dtype)
    covariances = torch.stack([COVARIANCE, torch.eye(2), 0.1 * COVARIANCE]).to(dtype)
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3], dtype=dtype), means, covariances)


def torch_mixture(law):
    return MixtureSameFamily(Categorical(law.weights), MultivariateNormal(law.means, law.covariances))


def weighted(dtype=torch.float64):
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]], dtype=dtype)
    return Samples(rows, torch.tensor([0.5, 0.3, 0.2], dtype=dtype))


def unweighted(dtype=torch.float64):
    return Samples(weighted(dtype).rows)


LAWS = {"samples": unweighted, "weighted samples": weighted, "gaussian": gaussian, "mixture": mixture}


def moments(law):
    if isinstance(law, Gaussian):
        return law.mean, law.covariance
    weights, means = (law.weights, law.rows) if isinstance(law, Samples) else (law.weights, law.means)
    weights = torch.full_like(means[:, 0], 1 / len(means)) if weights is None else weights
    mean = weights @ means
    covariance = (weights[:, None] * (means - mean)).mT @ (means - mean)
    if isinstance(law, GaussianMixture):
        covariance = covariance + torch.einsum("k,kij->ij", law.weights, law.covariances)
    return mean, covariance


@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_moments_of_the_law(name, dtype):
    law = LAWS[name](dtype)
    x = law.sample(N, torch.Generator().manual_seed(1))
    assert (x.shape, x.dtype, law.dim) == ((N, 2), dtype, 2)
    mean, covariance = moments(law)
    error = (x.mean(0) - mean) / (x.std(0) / N**0.5)
    assert float(error.abs().max()) < 4
    products = (x - mean).unsqueeze(2) * (x - mean).unsqueeze(1)
    error = (products.mean(0) - covariance) / (products.std(0) / N**0.5)
    assert float(error.abs().max()) < 4


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_generator_alone(name):
    law, before = LAWS[name](), torch.random.get_rng_state()
    first = law.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(first, law.sample(50, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, law.sample(50, torch.Generator().manual_seed(4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_unweighted_samples_are_rows_drawn_evenly():
    rows = torch.arange(10.0).reshape(5, 2)
    x = Samples(rows).sample(N, torch.Generator().manual_seed(0))
    counts = torch.stack([(x == row).all(1).sum() for row in rows]).double()
    assert float(counts.sum()) == N
    assert float(((counts - N / 5) / (N * 0.2 * 0.8) ** 0.5).abs().max()) < 4


def test_log_densities(dtype):
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(2), dtype=dtype)
    law, mixed = gaussian(dtype), mixture(dtype)
    wanted = MultivariateNormal(law.mean, law.covariance).log_prob(x)
    torch.testing.assert_close(law.log_density(x), wanted)
    torch.testing.assert_close(mixed.log_density(x), torch_mixture(mixed).log_prob(x), rtol=1e-4, atol=1e-4)


def test_the_log_density_of_a_mixture_far_out_does_not_underflow():
    far = torch.full((1, 2), 1e3, dtype=torch.float64)
    value = mixture().log_density(far)
    torch.testing.assert_close(value, torch_mixture(mixture()).log_prob(far))
    assert torch.isfinite(value).all()


SCALINGS = {
    "common": AffineScaling(torch.tensor([1.0, -3.0]).double(), torch.tensor([2.0]).double()),
    "per coordinate": AffineScaling(torch.tensor([1.0, -3.0]).double(), torch.tensor([0.5, 4.0]).double()),
}


@pytest.mark.parametrize("units", SCALINGS)
@pytest.mark.parametrize("name", LAWS)
def test_a_law_in_other_units(name, units, dtype):
    law, scaling = LAWS[name](dtype), SCALINGS[units]
    scaled = law.rescaled(scaling)
    assert type(scaled) is type(law)
    size = scaling.scale.to(dtype)
    for found, wanted in zip(
        moments(scaled),
        (scaling.to_model(moments(law)[0]), moments(law)[1] / (size.expand(2)[:, None] * size)),
        strict=True,
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted)
    if name in ("gaussian", "mixture"):
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
        volume = scaling.scale.expand(2).log().sum().to(dtype)
        torch.testing.assert_close(
            scaled.log_density(scaling.to_model(x)), law.log_density(x) + volume, rtol=1e-4, atol=1e-4
        )
    if name == "weighted samples":
        assert torch.equal(scaled.weights, law.weights)


def test_a_density_in_other_units():
    law, scaling = Density(lambda x: -x.square().sum(1), 2), SCALINGS["per coordinate"]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled = law.rescaled(scaling)
    assert scaled.dim == 2
    torch.testing.assert_close(scaled.log_density(scaling.to_model(x)), law.log_density(x))


@pytest.mark.parametrize("name", LAWS)
def test_files_keep_laws(name):
    law = LAWS[name]()
    tree, tensors = encode(law)
    back = decode(json.loads(json.dumps(tree)), tensors)
    assert type(back) is type(law)
    draws = [one.sample(9, torch.Generator().manual_seed(5)) for one in (law, back)]
    assert torch.equal(*draws)


def test_a_density_has_no_sampler():
    law = Density(lambda x: -x.square().sum(1), 3)
    assert law.dim == 3
    assert law.log_density(torch.ones(2, 3)).tolist() == [-3.0, -3.0]
    with pytest.raises(UnsupportedError, match="cannot be sampled"):
        law.sample(5, torch.Generator())


def test_arrays_become_samples_of_their_dtype():
    for kind in (np.float32, np.float64):
        law = as_law(np.arange(6, dtype=kind).reshape(3, 2), "x0")
        assert isinstance(law, Samples)
        assert law.rows.dtype == (torch.float32 if kind is np.float32 else torch.float64)
    assert as_law(gaussian(), "x0").dim == 2
    big_endian = as_rows(np.arange(6, dtype=">f8").reshape(3, 2), "x0")
    assert big_endian.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


nan_rows = torch.ones(4, 2)
nan_rows[2, 1] = float("nan")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), r"x0 must have shape \(rows, columns\), got \(3,\)"),
        (torch.ones(3, 0), "columns"),
        (torch.ones(3, 2, dtype=torch.int64), r"int64; use x0.float\(\)"),
        (np.ones((3, 2), dtype=np.int32), r"x0.astype\(numpy.float64\)"),
        (np.ones((3, 2), dtype=np.float16), r"x0.astype\(numpy.float32\)"),
        (np.array([["a", "b"]] * 3), "<U1; numbers in float32 or float64 are needed"),
        (np.ones((3, 2), dtype=complex), "complex128; real numbers are needed: put the real and imaginary parts"),
        (torch.ones(3, 2, dtype=torch.complex64), "complex64; real numbers are needed"),
        (torch.ones(3, 2).to_sparse(), r"x0 is a sparse tensor \(torch.sparse_coo\).*x0.to_dense\(\)"),
        (scipy.sparse.csr_matrix(np.ones((3, 2))), r"x0 is sparse \(a scipy.csr_matrix\).*x0.toarray\(\)"),
        (torch.ones(3, 2, device="meta"), "'meta', which stores no numbers"),
        ([[1.0, 2.0], [3.0, 4.0]], "got a list; use numpy.asarray"),
        (np.ma.array(np.ones((4, 2)), mask=[[0, 0], [0, 0], [1, 1], [0, 1]]), r"hides 3 of 8 entries \(first: row 2\)"),
        (torch.ones(1, 2), r"1 row\(s\); at least 2"),
        (nan_rows, r"1 row\(s\) with NaN or infinite entries \(first: row 2\)"),
    ],
)
def test_bad_rows(value, said):
    with pytest.raises(InvalidInputError, match=said):
        as_law(value, "x0")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Samples(torch.ones(3, 2), np.ones(3, dtype=int)), "weights has dtype int64"),
        (lambda: Point(np.ones(2, dtype=complex)), "position has dtype complex128"),
        (lambda: Gaussian(np.ones(2), np.ma.masked_equal(np.eye(2), 0.0)), "covariance is a masked array"),
        (lambda: Samples(torch.ones(3, 2), torch.ones(2) / 2), "3 non-negative numbers with sum 1"),
        (lambda: Samples(torch.ones(2, 2), torch.tensor([1.5, -0.5])), "non-negative"),
        (lambda: Samples(torch.ones(2, 2), torch.tensor([0.5, 0.4])), r"sum 0\.9"),
        (lambda: Gaussian(torch.ones(2), torch.eye(3)), r"got \(2,\) and \(3, 3\)"),
        (lambda: Gaussian(torch.ones(2, 1), torch.eye(2)), "mean"),
        (lambda: Gaussian(torch.ones(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive definite"),
        (lambda: Gaussian(torch.ones(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (
            lambda: GaussianMixture(torch.ones(2) / 2, torch.ones(3, 2), torch.eye(2).expand(3, 2, 2)),
            "weights",
        ),
        (lambda: GaussianMixture(torch.ones(3), torch.ones(3, 2), torch.eye(2).expand(3, 2, 2)), "sum 1"),
        (lambda: GaussianMixture(torch.ones(1), torch.ones(1, 2), -torch.eye(2)[None]), "every covariance"),
    ],
)
def test_bad_laws(make, said):
    with pytest.raises(InvalidInputError, match=said):
        make()


def test_rows_that_require_gradients_make_samples_that_do_not():
    rows = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    law = as_law(rows, "x")
    assert not law.rows.requires_grad
    assert torch.equal(law.rows, rows)


def memory_kinds():
    """The same numbers in arrays of every kind of memory."""
    numbers = np.arange(12.0).reshape(6, 2)
    frozen = numbers.copy()
    frozen.flags.writeable = False
    masked = np.ma.array(numbers.copy(), mask=False)
    plain = numbers, np.asfortranarray(numbers), numbers[::-1].copy()[::-1], frozen, masked, torch.from_numpy(numbers)
    return [value.copy() if isinstance(value, np.ndarray) and value.flags.writeable else value for value in plain]


@pytest.mark.parametrize("place", range(6))
def test_laws_own_their_numbers(place, recwarn):
    value = memory_kinds()[place]
    wanted = torch.arange(12.0, dtype=torch.float64).reshape(6, 2)
    assert torch.equal(as_rows(value, "x"), wanted)
    made = [as_law(value, "x"), Samples(value), Samples(wanted, value[:, 0] / 30)]
    covariance = value[:2] * 0
    covariance[0, 0] = covariance[1, 1] = 1.0
    made += [Point(value[1]), Gaussian(value[1], covariance)]
    draws = [law.sample(5, torch.Generator().manual_seed(0)) for law in made]
    if isinstance(value, torch.Tensor) or value.flags.writeable:
        value += 100
        covariance += 100
    for law, draw in zip(made, draws, strict=True):
        assert torch.equal(law.sample(5, torch.Generator().manual_seed(0)), draw)
    assert not recwarn.list


def test_samples_share_memory_only_when_they_are_told_to():
    rows = torch.ones(3, 2)
    assert Samples.sharing(rows).rows is rows
    assert Samples(rows).rows.data_ptr() != rows.data_ptr()
    assert Samples.sharing(rows).rescaled(SCALINGS["common"]).rows.data_ptr() != rows.data_ptr()


def test_weights_take_the_dtype_of_the_rows():
    law = Samples(np.ones((4, 2), np.float32), np.full(4, 0.25))
    assert (law.weights.dtype, law.weights.tolist()) == (torch.float32, [0.25] * 4)
