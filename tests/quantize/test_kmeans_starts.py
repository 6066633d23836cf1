"""K-means on sorted weights against numbers worked by hand, brute force, and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.errors import OptionError, UnknownNameError
from secateur.quantize import Kmeans, starts
from secateur.quantize.lloyd import lloyd
from secateur.quantize.lookup import lookup
from secateur.quantize.program import _Banded, _Dense, best_cuts
from secateur.quantize.sorted_weights import BLOCK, SortedWeights, not_above
from secateur.quantize.starts.kmeans_plus_plus import _squared_errors
from secateur.quantize.starts.linear import LinearStart

STARTS = [*starts.registry.names(), "kmeans++"]


def error_of(weights: torch.Tensor, method: Kmeans, seed: int = 0) -> float:
    palette = method.palette("w", weights, 0, seed)
    assert palette.values.size <= 2**method.bits
    assert (np.diff(palette.values) > 0).all()
    back = torch.from_numpy(palette.values)[palette.assign(weights)]
    return float(((weights.double() - back) ** 2).sum())


def brute_force(numbers: np.ndarray, count: int) -> float:
    """The least squared error over every way to cut the sorted numbers."""
    ordered = np.sort(numbers.astype(np.float64))
    best = np.inf
    for cuts in itertools.combinations(range(1, ordered.size), min(count, ordered.size) - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(((part - part.mean()) ** 2).sum() for part in parts))
    return best


finite = st.floats(-8, 8, width=32, allow_nan=False)


# -- by hand ---------------------------------------------------------------------------------------


def test_four_numbers_two_centroids():
    palette = Kmeans(bits=1).palette("w", torch.tensor([11.0, 0.0, 9.0, 1.0]), 0, 0)
    assert palette.values.tolist() == [0.5, 10.0]
    assert palette.cuts.tolist() == [5.25]


def test_a_weight_half_way_goes_to_the_lower_centroid():
    # Centroids 0 and 4 (two weights each, and symmetric pulls); 2 lies exactly between.
    palette = Kmeans(bits=1, start="linear", iterations=1).palette("w", torch.tensor([0.0, 4.0]), 0, 0)
    assert palette.cuts.tolist() == [2.0]
    assert palette.assign(torch.tensor([2.0, np.nextafter(np.float32(2), np.float32(3))])).tolist() == [0, 1]


def test_linear_gets_stuck_where_optimal_does_not():
    # From 0 and 10 the cut at 5 gives {0 x4, 4 x4} and {10}, which no round changes: 8 weights 2 off, 32.
    # {0 x4} and {4 x4, 10} is better: around 5.2, 4 * 1.2**2 + 4.8**2 = 28.8.
    weights = torch.tensor([0.0, 4.0] * 4 + [10.0])
    assert error_of(weights, Kmeans(bits=1, start="linear")) == pytest.approx(32.0)
    assert error_of(weights, Kmeans(bits=1, start="optimal")) == pytest.approx(28.8)


@pytest.mark.parametrize("start", STARTS)
def test_an_empty_centroid_is_put_to_use(start):
    # An outlier leaves most evenly spaced centroids without a weight.
    weights = torch.cat([torch.linspace(0, 1, 400), torch.tensor([1000.0])])
    palette = Kmeans(bits=4, start=start).palette("w", weights, 0, 0)
    assert palette.values.size == 16
    assert torch.bincount(palette.assign(weights), minlength=16).min() > 0


@pytest.mark.parametrize("start", STARTS)
def test_no_more_distinct_weights_than_centroids_is_exact(start):
    weights = torch.tensor([3.0, -1.0, 3.0, 0.25, 0.25, -0.0])
    palette = Kmeans(bits=2, start=start).palette("w", weights, 0, 0)
    assert palette.values.tolist() == [-1.0, 0.0, 0.25, 3.0]
    assert not np.signbit(palette.values[1])
    assert error_of(weights, Kmeans(bits=2, start=start)) == 0.0


@pytest.mark.parametrize("start", STARTS)
def test_a_constant_tensor_has_one_value(start):
    palette = Kmeans(bits=5, start=start).palette("w", torch.full((1000,), 0.1), 0, 0)
    assert palette.values.tolist() == [float(np.float32(0.1))]


# -- against brute force ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 9), elements=finite), st.integers(1, 2))
def test_optimal_is_what_trying_every_cut_finds(numbers, bits):
    found = error_of(torch.from_numpy(numbers), Kmeans(bits=bits))
    assert found == pytest.approx(brute_force(numbers, 2**bits), rel=1e-5, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, st.integers(2, 60), elements=st.floats(-8, 8)), st.integers(2, 9))
def test_the_banded_program_finds_what_the_dense_one_finds(numbers, pieces):
    data = SortedWeights(numbers)
    places = np.append(data.runs(), data.count)
    sums, squares = data.sums(places)
    counts = places.astype(float)
    first = squares - sums * sums / np.maximum(counts, 1)
    choice = np.zeros((3, places.size), dtype=np.int32)
    for piece in range(2, min(pieces, places.size - 1) + 1):
        dense = _Dense(counts, sums, squares)(first, piece, choice[0])
        banded = _Banded(counts, sums, squares)(first, piece, choice[1])
        np.testing.assert_allclose(banded[piece:], dense[piece:], rtol=1e-9, atol=1e-9)
        first = dense


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=finite),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_optimal_is_never_worse_than_any_start(numbers, bits, seed, dtype):
    weights = torch.from_numpy(numbers).to(dtype)
    optimal = error_of(weights, Kmeans(bits=bits), seed)
    for start in STARTS:
        assert optimal <= error_of(weights, Kmeans(bits=bits, start=start), seed) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("shape", ["normal", "heavy", "spiky"])
def test_optimal_is_never_worse_on_many_weights(shape):
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(20_000, generator=generator)
    if shape == "heavy":
        weights = weights * weights.abs() ** 2
    if shape == "spiky":
        weights = torch.where(torch.rand(20_000, generator=generator) < 0.4, torch.tensor(0.125), weights)
    optimal = error_of(weights, Kmeans(bits=4))
    for start in STARTS:
        for seed in range(2):
            assert optimal <= error_of(weights, Kmeans(bits=4, start=start), seed) * (1 + 1e-9)


def test_many_weights_come_within_a_hair_of_the_exact_program():
    weights = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    exact = error_of(weights, Kmeans(bits=4, start=starts.OptimalStart(places=5000)))
    assert exact <= error_of(weights, Kmeans(bits=4)) <= exact * 1.0005


# -- against scikit-learn --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_scikit_learn_never_finds_better(bits):
    from sklearn.cluster import KMeans

    weights = torch.randn(3000, generator=torch.Generator().manual_seed(bits))
    peer = KMeans(2**bits, init="k-means++", n_init=4, random_state=0, tol=0).fit(
        weights.double().numpy()[:, None]
    )
    assert error_of(weights, Kmeans(bits=bits)) <= peer.inertia_ * (1 + 1e-9)


def test_lloyd_from_the_same_start_ends_where_scikit_learn_does():
    from sklearn.cluster import KMeans

    weights = np.random.default_rng(0).normal(size=2000)
    first = np.linspace(-2, 2, 8)
    peer = KMeans(8, init=first[:, None], n_init=1, tol=0, max_iter=1000).fit(weights[:, None])
    ours = lloyd(SortedWeights(weights), first, iterations=1000)
    np.testing.assert_allclose(ours, np.sort(peer.cluster_centers_[:, 0]), atol=1e-9)


# -- sums ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5 * BLOCK), st.integers(0, 2**31))
def test_block_sums_are_the_sums(count, seed):
    numbers = np.random.default_rng(seed).normal(3, 1, size=count)
    data = SortedWeights(numbers)
    places = np.arange(count + 1)
    sums, squares = data.sums(places)
    centred = np.sort(numbers) - data.shift
    np.testing.assert_allclose(sums, np.append(0, np.cumsum(centred)), atol=1e-9)
    np.testing.assert_allclose(squares, np.append(0, np.cumsum(centred**2)), atol=1e-9)


def test_a_cut_between_two_float32_rounds_down():
    cut = np.array([1.0 + 2.0**-30, 1.0, -1.0 - 2.0**-30])
    assert not_above(cut, np.float32).tolist() == [
        1.0,
        1.0,
        float(np.nextafter(np.float32(-1), np.float32(-2))),
    ]


def test_clusters_far_from_zero_keep_their_digits():
    # 1e6 + {0, 0.0625, 0.125} and 2e6: prefix sums alone would lose the small differences.
    weights = torch.tensor([1e6, 1e6 + 0.0625, 1e6 + 0.125, 2e6] * 1000, dtype=torch.float64)
    palette = Kmeans(bits=1).palette("w", weights, 0, 0)
    assert palette.values.tolist() == [1e6 + 0.0625, 2e6]


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-140, 1.0, 2.0**120, 2.0**1000])
def test_the_scale_of_the_weights_does_not_matter(scale):
    weights = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    plain = Kmeans(bits=3).palette("w", weights, 0, 0).values
    np.testing.assert_array_equal(Kmeans(bits=3).palette("w", weights * scale, 0, 0).values, plain * scale)


def test_best_cuts_takes_no_more_pieces_than_there_are():
    data = SortedWeights(np.array([1.0, 2.0]))
    assert best_cuts(data, np.arange(3), 5).tolist() == [0, 1, 2]


# -- starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_the_same_seed_gives_the_same_values(start):
    weights = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    shuffled = weights[torch.randperm(4000, generator=torch.Generator().manual_seed(1))]
    one = Kmeans(bits=4, start=start).palette("a", weights, 0, 7).values
    two = Kmeans(bits=4, start=start).palette("b", shuffled, 0, 7).values
    assert one.tobytes() == two.tobytes()


def test_another_seed_draws_other_centroids():
    data = SortedWeights(np.random.default_rng(0).normal(size=4000))
    for start in (starts.RandomStart(), starts.KmeansPlusPlusStart()):
        one, two = (start.candidates(data, 8, seed)[0] for seed in (0, 1))
        assert not np.array_equal(np.sort(one), np.sort(two))


def test_density_puts_as_many_weights_around_each():
    data = SortedWeights(np.arange(12.0))
    assert starts.DensityStart().centroids(data, 3, np.random.default_rng(0)).tolist() == [2.0, 6.0, 10.0]


def test_kmeans_plus_plus_draws_by_squared_distance():
    # From a centroid on 0, the weights 1 (100 of them) and 10 (3 of them) hold squared distance 100 and 300.
    weights = np.array([0.0] * 1000 + [1.0] * 100 + [10.0] * 3)
    data = SortedWeights(weights)
    start = starts.KmeansPlusPlusStart(trials=1)
    random = np.random.default_rng(0)
    drawn = start._draw(data, np.array([0.0]), random, 20_000)
    assert drawn is not None
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1.0, 10.0]
    assert counts[1] / 20_000 == pytest.approx(0.75, abs=0.015)


def test_options_say_what_is_wrong():
    for bits in (0, 9, True, 2.0):
        with pytest.raises(OptionError, match=r"bits of K-means: expected a whole number from 1 to 8"):
            Kmeans(bits=bits)
    with pytest.raises(UnknownNameError, match="unknown start of K-means 'linnear': did you mean 'linear'"):
        Kmeans(start="linnear")
    with pytest.raises(OptionError, match="iterations of K-means"):
        Kmeans(iterations=0)
    with pytest.raises(OptionError, match="places of the optimal start"):
        starts.OptimalStart(places=3)
    with pytest.raises(OptionError, match=r"trials of k-means\+\+"):
        starts.KmeansPlusPlusStart(trials=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "case", ["plain", "on the cuts", "close cuts", "equal cuts", "huge", "infinite cuts"]
)
def test_the_table_finds_what_a_search_finds(dtype, case):
    random = np.random.default_rng(0)
    numbers = random.normal(size=50_000).astype(dtype)
    cuts = np.sort(random.normal(size=31)).astype(dtype)
    if case == "on the cuts":
        above, below = np.nextafter(cuts, dtype(9)), np.nextafter(cuts, dtype(-9))
        numbers = np.concatenate([np.repeat(cuts, 2000), above, below])
    if case == "close cuts":
        cuts[7] = np.nextafter(cuts[6], dtype(9))
    if case == "equal cuts":
        cuts[7] = cuts[6]
    if case == "huge":
        top = np.finfo(dtype).max / 8
        numbers, cuts = numbers * top, cuts * top
    if case == "infinite cuts":
        cuts[-1] = np.inf
    np.testing.assert_array_equal(lookup(numbers, cuts), np.searchsorted(cuts, numbers, side="left"))


def test_a_number_on_a_cut_counts_as_below_it():
    data = SortedWeights(np.array([1.0, 2.0, 2.0, 3.0], dtype=np.float32))
    assert data.positions(np.array([0.0, 1.5, 2.0, 3.0])).tolist() == [0, 1, 3, 4]


def test_one_evenly_spaced_value_is_in_the_middle():
    data = SortedWeights(np.array([2.0, 2.5, 6.0]))
    assert LinearStart().centroids(data, 1, np.random.default_rng(0)).tolist() == [4.0]


def test_the_errors_that_kmeans_plus_plus_compares():
    # 0, 1 | 4, 5 by the middles 2.5 of both rows: 1 + 0 + 0 + 1, and four times a quarter
    data = SortedWeights(np.array([0.0, 1.0, 4.0, 5.0]))
    found = _squared_errors(data, np.array([[1.0, 4.0], [0.5, 4.5]]))
    assert found.tolist() == pytest.approx([2.0, 1.0])
