"""Exact nearest neighbours by inner product, piece by piece, and the weighted vote of DINO's k-NN.

The bank is read once in pieces and the products are made in tiles, so that what is held besides the queries is one piece, one tile and
the k best of each query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_PIECE = 1 << 26  # numbers of one piece of the bank: 256 MB
_TILE = 1 << 27  # numbers of one tile of products: 512 MB
QUERY_BLOCK = 2048  # queries that are compared at once; where others begin at a multiple of it, these meet the same products
_GROUP = 32  # columns that share a maximum

Found = tuple[slice, Tensor, Tensor]  # which queries, their k largest products in descending order, and the columns


def piece_rows(width: int, device: torch.device) -> int:
    """How many rows of a bank of this width make a piece. Accelerators take shorter ones, for a tile of products spans all of them."""
    return max(1, min(_PIECE // max(1, width), 65_536 if device.type != "cpu" else _PIECE))


def normalise(x: Tensor) -> Tensor:
    """Rows of length 1, in place; a row of zeros stays."""
    return x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12))


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in descending order, and their columns, both (rows, k). Which of equal values is taken is not defined.

    No row is sorted as a whole: its k largest values lie in the k groups of columns with the largest maxima.
    """
    rows, columns = values.shape
    groups = columns // _GROUP
    if groups < 4 * k:
        return torch.topk(values, k, dim=1)
    body = groups * _GROUP
    # Group g has the columns g, g + groups, g + 2 groups ...: the maxima are element-wise over contiguous runs, which vectorises.
    best = torch.topk(values[:, :body].unflatten(1, (_GROUP, groups)).amax(1), k, dim=1, sorted=False).indices
    candidates = (best[:, :, None] + groups * torch.arange(_GROUP, device=values.device)).flatten(1)
    found = values.gather(1, candidates)
    if body < columns:
        rest = torch.arange(body, columns, device=values.device).expand(rows, -1)
        candidates, found = torch.cat([candidates, rest], 1), torch.cat([found, values[:, body:]], 1)
    top, place = torch.topk(found, k, dim=1)
    return top, candidates.gather(1, place)


class Nearest:
    """The k rows of a bank with the largest inner product to each query, kept while the bank goes by.

    ``queries`` (Q, D) float32. After all pieces, ``similarity`` (Q, k) float32 is in descending order and ``index`` (Q, k) int32 are row
    numbers of the bank; a bank of fewer than k rows leaves -inf and -1.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self._queries, self._k = queries, k
        self._fresh = True
        self.similarity = queries.new_full((len(queries), k), -torch.inf)
        self.index = torch.full((len(queries), k), -1, dtype=torch.int32, device=queries.device)

    def update(self, bank: Tensor, start: int) -> None:
        """``bank`` (n, D) are the rows from number ``start`` on."""
        k = min(self._k, len(bank))
        search = _by_faiss if bank.device.type == "cpu" else _by_torch
        for rows, value, column in search(self._queries, bank, k) if k else ():
            if self._fresh and k == self._k:
                self.similarity[rows], self.index[rows] = value, (column + start).int()
                continue
            value = torch.cat([self.similarity[rows], value], 1)
            column = torch.cat([self.index[rows], (column + start).int()], 1)
            self.similarity[rows], place = torch.topk(value, self._k, dim=1)
            self.index[rows] = column.gather(1, place)
        self._fresh = False


def _by_faiss(queries: Tensor, bank: Tensor, k: int) -> Iterator[Found]:
    """On CPUs: faiss selects while a block of products is still in the core's cache, and its BLAS is fast on every make of CPU."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    for first in range(0, len(queries), QUERY_BLOCK):
        rows = slice(first, first + QUERY_BLOCK)
        value, column = faiss.knn(queries[rows].contiguous().numpy(), bank.contiguous().numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
        yield rows, torch.from_numpy(value), torch.from_numpy(column)


def _by_torch(queries: Tensor, bank: Tensor, k: int, tile: int = _TILE) -> Iterator[Found]:
    """On accelerators: one product after the other in the same memory, and the k largest of its rows."""
    # A power of two, so that blocks hold whole tiles.
    size = min(1 << max(1, tile // len(bank)).bit_length() - 1, QUERY_BLOCK, max(1, len(queries)))
    buffer = queries.new_empty(size, len(bank))
    for first in range(0, len(queries), size):
        rows = slice(first, first + size)
        products = torch.mm(queries[rows], bank.t(), out=buffer[: len(queries[rows])])
        yield rows, *largest(products, k)


def nearest(queries: Tensor, bank: Tensor | Iterable[Tensor], k: int, *, piece: int | None = None) -> tuple[Tensor, Tensor]:
    """``(similarity, index)`` of the k rows with the largest inner product, each (Q, k); ``bank`` is a matrix, or pieces of it in order."""
    found = Nearest(queries, k)
    start = 0
    for part in bank.split(piece or piece_rows(queries.shape[1], bank.device)) if isinstance(bank, Tensor) else bank:
        found.update(part, start)
        start += len(part)
    return found.similarity, found.index.long()


def vote(
    similarity: Tensor, label: Tensor, n_classes: int, *, temperature: float = 0.07, weighting: str = "exp", relative: bool = False
) -> Tensor:
    """Votes of each class (Q, n_classes) float64: the sum over a query's neighbours of exp(similarity / temperature), or of 1 each.

    ``similarity`` (Q, k) in descending order, ``label`` (Q, k) class numbers; a neighbour at -inf (there was none) has no vote. With
    ``relative`` all votes of a query are divided by the weight of its nearest neighbour: any similarity and temperature stay finite.
    """
    if weighting == "exp":
        exponent = similarity.double() / temperature
        weight = torch.exp(exponent - exponent[:, :1] if relative else exponent)
        weight.masked_fill_(torch.isneginf(similarity), 0.0)  # also where a query has no neighbour at all
    elif weighting == "uniform":
        weight = torch.isfinite(similarity).double()
    else:
        raise ValueError(f"Expected argument `weighting` to be exp or uniform, but got {weighting!r}")
    votes = torch.zeros(len(similarity), n_classes, dtype=torch.float64, device=similarity.device)
    return votes.scatter_add_(1, label, weight) if votes.device.type == "cpu" else _in_order(votes, label, weight)


def _in_order(votes: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The sums in the order of the neighbours, as a CPU takes them: a GPU adds all at once in an order that differs from time to time."""
    for column in range(label.shape[1]):
        votes.scatter_add_(1, label[:, column : column + 1], weight[:, column : column + 1])
    return votes
