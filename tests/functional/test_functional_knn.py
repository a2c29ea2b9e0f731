"""The search against brute force, the vote against DINO's own numbers and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from virb.functional.knn import Nearest, _by_torch, _in_order, largest, nearest, normalise, piece_rows, vote

GOLDEN = Path(__file__).parents[1] / "golden"


def unit_rows(n: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return normalise(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("k", [1, 5, 10, 20, 100])
def test_dinos_votes_and_predictions(k: int) -> None:
    golden = np.load(GOLDEN / "dino_knn.npz", allow_pickle=False)
    bank, queries, labels, truth = (
        torch.from_numpy(golden[key]) for key in ("train_features", "test_features", "train_labels", "test_labels")
    )
    similarity, index = nearest(queries, bank, 100, piece=64)
    votes = vote(similarity[:, :k], labels.long()[index[:, :k]], int(golden["num_classes"]), temperature=float(golden["temperature"]))
    np.testing.assert_allclose(votes.numpy(), golden[f"k{k}.votes"], rtol=2e-5)
    np.testing.assert_array_equal(votes.argmax(1), golden[f"k{k}.prediction"])
    order = torch.argsort(votes, dim=1, descending=True, stable=True)  # classes without a vote by ascending number
    hits = (order[:, : min(5, k)] == truth[:, None]).any(1)
    assert float(hits.double().mean() * 100) == pytest.approx(float(golden[f"k{k}.top5"]), abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 40, 7), (5, 1000, 1), (4, 1280, 10), (4, 1299, 9), (2, 64, 64)])
def test_largest_is_topk(shape: tuple[int, int, int]) -> None:
    rows, columns, k = shape
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    expected = torch.topk(values, k, dim=1)
    found, place = largest(values, k)
    assert torch.equal(found, expected.values)
    assert torch.equal(place, expected.indices)


def test_largest_with_many_equal_values() -> None:
    values = torch.randint(0, 3, (50, 2000), generator=torch.Generator().manual_seed(2)).float()
    found, place = largest(values, 12)
    assert torch.equal(found, torch.topk(values, 12, dim=1).values)
    assert torch.equal(values.gather(1, place), found)
    assert all(len(set(row.tolist())) == 12 for row in place)


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
@pytest.mark.parametrize("k", [1, 5, 150])
def test_pieces_make_no_difference(piece: int, k: int) -> None:
    bank, queries = unit_rows(333), unit_rows(41, seed=1)
    similarity, index = nearest(queries, bank, k, piece=piece)
    expected = torch.topk(queries @ bank.t(), k, dim=1)
    torch.testing.assert_close(similarity, expected.values, rtol=0, atol=1e-6)
    assert torch.equal(index, expected.indices)


@pytest.mark.parametrize("tile", [1, 1000, 1 << 20])
def test_the_search_of_accelerators_finds_the_same(tile: int) -> None:
    bank, queries = unit_rows(700), unit_rows(30, seed=1)
    expected = torch.topk(queries @ bank.t(), 9, dim=1)
    parts = list(_by_torch(queries, bank, 9, tile))
    assert len(parts) == {1: 30, 1000: 30, 1 << 20: 1}[tile]
    torch.testing.assert_close(torch.cat([value for _, value, _ in parts]), expected.values, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([column for _, _, column in parts]), expected.indices)


def test_a_small_bank_and_no_bank() -> None:
    bank, queries = unit_rows(3), unit_rows(4, seed=1)
    similarity, index = nearest(queries, bank, 5)
    assert (index[:, 3:] == -1).all()
    assert torch.isneginf(similarity[:, 3:]).all()
    votes = vote(similarity, torch.tensor([0, 1, 1])[index.clamp(min=0)], 3, temperature=0.1)
    torch.testing.assert_close(votes.sum(1), torch.exp(similarity[:, :3].double() / 0.1).sum(1))
    none = Nearest(queries, 2)
    for relative in (True, False):
        for weighting in ("exp", "uniform"):
            empty = vote(none.similarity, torch.zeros(4, 2, dtype=torch.int64), 3, weighting=weighting, relative=relative)
            assert torch.equal(empty, torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("weighting", ["exp", "uniform"])
def test_scikit_learn_votes_alike(weighting: str) -> None:
    bank, queries = unit_rows(300), unit_rows(80, seed=1)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 7, 300))
    weights = "uniform" if weighting == "uniform" else lambda distance: np.exp((1 - distance) / 0.2)
    reference = KNeighborsClassifier(11, weights=weights, metric="cosine", algorithm="brute").fit(bank.numpy(), labels.numpy())
    similarity, index = nearest(queries, bank, 11)
    votes = vote(similarity, labels[index], 7, temperature=0.2, weighting=weighting)
    np.testing.assert_array_equal(votes.argmax(1), reference.predict(queries.numpy()))
    np.testing.assert_allclose((votes / votes.sum(1, keepdim=True)).numpy(), reference.predict_proba(queries.numpy()), atol=1e-5)


def test_votes_one_neighbour_after_the_other_have_the_bits_of_the_host() -> None:
    """The order in which GPUs take them, where sums of all at once differ from time to time."""
    random = torch.Generator().manual_seed(4)
    label, weight = torch.randint(0, 3, (50, 40), generator=random), torch.rand(50, 40, generator=random, dtype=torch.float64).exp()
    nothing = torch.zeros(50, 3, dtype=torch.float64)
    expected = nothing.clone().scatter_add_(1, label, weight)
    assert torch.equal(_in_order(nothing.clone(), label, weight), expected)
    backwards = _in_order(nothing.clone(), label.flip(1), weight.flip(1))
    assert not torch.equal(backwards, expected)  # these do depend on the order


def test_relative_votes_keep_the_order_and_stay_finite() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7], [900.0, 10.0, -900.0]])
    label = torch.tensor([[2, 0, 0], [1, 0, 2]])
    plain, relative = (vote(similarity[:1], label[:1], 3, temperature=0.1, relative=r) for r in (False, True))
    torch.testing.assert_close(relative, plain / np.exp(similarity[0, 0].double().item() / 0.1))
    assert torch.isfinite(vote(similarity, label, 3, temperature=0.01, relative=True)).all()
    with pytest.raises(ValueError, match="exp or uniform"):
        vote(similarity, label, 3, weighting="cubic")


def test_rows_of_zeros_stay_and_pieces_fit_their_memory() -> None:
    x = normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert piece_rows(384, torch.device("cpu")) * 384 * 4 <= 256 * 2**20
    assert piece_rows(384, torch.device("cuda")) == 65_536
