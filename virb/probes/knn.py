"""The probe ``knn``: DINO's weighted vote of nearest neighbours. Nothing is trained; k, temperature and the rest are configs.

All k and temperatures of a job come from one pass over the similarities. ``refit: true`` adds the select samples to the bank that the
reported samples are compared with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from torch import Tensor

from virb.config.check import Strict
from virb.errors import ViRBError
from virb.functional.knn import QUERY_BLOCK, Nearest, normalise, piece_rows, vote
from virb.metrics.base import Metric, Statistics, find_metric
from virb.metrics.classification import rank_of_target
from virb.probes.base import FIT, REPORT, SELECT, Context, Outcome, RoleData, Run, Settings, register_probe
from virb.probes.pieces import Sizes, Stage
from virb.probes.prepare import Prepared, prepare
from virb.probes.sheets import Sheet, choose_by, deterministic, measure, outcome
from virb.probes.split import Split, join, sample_width

_QUERIES = 1 << 26  # numbers of the queries that are searched at once: 256 MB
_SELECT, _REPORT = "choose", "report"  # stages that several devices can share
_VOTES = 1 << 23  # numbers of one batch of votes: 64 MB


class KnnConfig(Strict):
    """``normalise``: neighbours by cosine, else by inner product. ``exp`` weighs a neighbour exp(similarity / temperature), ``uniform`` 1.

    ``index``: ``exact`` never holds a float copy of the bank; ``flat`` and ``ivf`` are faiss's indices (on the GPU where faiss has one),
    ``flat`` exact, ``ivf`` approximate: ``nprobe`` of ``nlist`` cells are searched (default: 4 sqrt(N) cells, a sixteenth of them).
    """

    k: Annotated[int, Field(ge=1)] = 20
    weighting: Literal["exp", "uniform"] = "exp"
    temperature: Annotated[float, Field(gt=0)] | None = None  # 0.07 for exp; uniform has none
    normalise: bool = True
    index: Literal["exact", "flat", "ivf"] = "exact"
    nlist: Annotated[int | None, Field(ge=1)] = None
    nprobe: Annotated[int | None, Field(ge=1)] = None

    @field_validator("nlist", "nprobe")
    @classmethod
    def _only_ivf(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("index") not in (None, "ivf"):
            raise ValueError(f"the index {info.data['index']} takes no {info.field_name}; it belongs to ivf")
        return value

    @field_validator("temperature")
    @classmethod
    def _only_exp(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("weighting") == "uniform":
            if value is not None:
                raise ValueError("uniform votes take no temperature; it belongs to exp")
            return None
        return 0.07 if value is None else value

    def search(self) -> tuple[Any, ...]:
        """Configs with the same search share their neighbours."""
        return self.normalise, self.index, self.nlist, self.nprobe


@register_probe
class KnnProbe:
    name: ClassVar[str] = "knn"
    shape: ClassVar[Literal["features"]] = "features"
    Config: ClassVar[type[BaseModel]] = KnnConfig
    by_epochs: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False
    targets: ClassVar[str] = "class"

    @staticmethod
    def check_features(role: str, shape: tuple[int, ...] | None) -> None:
        sample_width(role, shape)

    @staticmethod
    def stages(configs: Mapping[str, BaseModel], sizes: Sizes) -> tuple[Stage, ...]:
        """Each block of queries is compared with the whole bank. An index of faiss's would be made by everybody who shares."""
        own = [config for config in configs.values() if isinstance(config, KnnConfig)]
        if any(config.index != "exact" for config in own):
            return ()
        searches = len({config.search() for config in own})
        found = []
        for stage, role, times in ((_SELECT, SELECT, searches), (_REPORT, REPORT, 1)):
            chooses = stage == _SELECT
            n = sizes.n_samples.get(REPORT if chooses and sizes.selection != "val" else role, 0)
            if n and (chooses or sizes.selection == "val"):
                pieces = -(-n // _piece_rows(sizes.width)) * times
                found.append(Stage(stage, 2.0 * times * n * sizes.n_samples.get(FIT, 0) * sizes.width, pieces))
        return tuple(found)

    def from_features(self, roles: Mapping[str, RoleData], settings: Settings, context: Context) -> Outcome:
        data = prepare(roles, settings, context.device, loss="cross_entropy")
        configs = {name: config for name, config in settings.configs.items() if isinstance(config, KnnConfig)}
        steps = _Steps(context, len({config.search() for config in configs.values()}) * (1 if data.report in (None, data.score) else 2))
        chosen_by = _score(_SELECT, configs, data.fit, data.score, data, settings, context, steps)
        primary = find_metric(settings.metrics[0])
        chosen = choose_by(chosen_by, configs, primary.name, primary.higher_is_better)
        reported: Mapping[str, Sheet] = chosen_by if data.score is data.report else {}
        bank = join(data.fit, data.score) if settings.refit else data.fit
        if data.report is not None and data.score is not data.report:
            reported = _score(_REPORT, {chosen: configs[chosen]}, bank, data.report, data, settings, context, steps)
        on_select = chosen_by if data.score is not data.report else {}
        outcomes = {name: outcome(name, on_select.get(name), reported.get(name)) for name in configs}
        notes = [*data.notes, *_notes(configs, len(data.fit)), *deterministic(settings.seeds)]
        if settings.refit:
            outcomes[chosen].notes.append(f"the bank has the fit and the select samples ({len(bank):,})")
        return Outcome([Run(settings.seeds[0], outcomes, chosen)], chosen, data.index_lists, data.selected_on, notes)


def _notes(configs: Mapping[str, KnnConfig], n_bank: int) -> list[str]:
    return [f"{name}: the bank has only {n_bank:,} samples, all of them vote" for name, config in configs.items() if config.k > n_bank]


class _Steps:
    """Progress over searches, in shares of each."""

    def __init__(self, context: Context, searches: int) -> None:
        self._context, self._total, self._done = context, 100 * max(1, searches), 0

    def tell(self, share: float) -> None:
        self._context.progress("searching", min(self._total, self._done + int(100 * share)), self._total)

    def finish(self) -> None:
        self._done += 100


def _score(
    stage: str,
    configs: Mapping[str, KnnConfig],
    bank: Split,
    queries: Split,
    data: Prepared,
    settings: Settings,
    context: Context,
    steps: _Steps,
) -> dict[str, Sheet]:
    """All configs on all queries. A piece is a block of queries in one search: what is found of it depends on no other."""
    if bank.targets is None or queries.targets is None:
        raise ViRBError(f"the {queries.name if bank.targets is not None else bank.name} samples have no targets")
    metrics = [find_metric(name) for name in settings.metrics]
    bank.set_epoch(0)
    queries.set_epoch(0)
    searches = list(dict.fromkeys(config.search() for config in configs.values()))
    groups = [{name: config for name, config in configs.items() if config.search() == search} for search in searches]
    blocks = list(queries.chunks(_piece_rows(data.width)))
    pieces = [(group, number) for group in range(len(groups)) for number in range(len(blocks))]

    targets = bank.targets, queries.targets
    if len(groups) > 1:  # each goes through all of both
        bank, queries = bank.held(), queries.held()

    def find(numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for group in dict.fromkeys(pieces[number][0] for number in numbers):
            own = [blocks[pieces[number][1]] for number in numbers if pieces[number][0] == group]
            for sheets in _search(groups[group], bank, queries, targets, own, data, metrics, steps):
                yield {name: sheet.state() for name, sheet in sheets.items()}
            steps.finish()

    sheets = {name: Sheet(metrics) for name in configs}
    names = [(list(groups[group]), number, len(bank), len(queries)) for group, number in pieces]
    for found in context.pieces.of(stage, names, find):
        for name, state in found.items():
            sheets[name].extend(state)
    return sheets


def _piece_rows(width: int) -> int:
    return min(QUERY_BLOCK, max(1, _QUERIES // max(1, width)))


def _search(
    group: Mapping[str, KnnConfig],
    bank: Split,
    queries: Split,
    targets: tuple[Tensor, Tensor],
    blocks: Sequence[Tensor],
    data: Prepared,
    metrics: Sequence[Metric],
    steps: _Steps,
) -> Iterator[dict[str, Sheet]]:
    """The sheets of each block of queries; ``targets`` are those of the bank and of the queries. As many blocks as memory holds go through
    the bank together."""
    first = next(iter(group.values()))
    k = min(max(config.k for config in group.values()), len(bank))
    index = None if first.index == "exact" else _faiss_index(first, bank, data.width)
    several = max(1, _QUERIES // max(1, data.width) // max(map(len, blocks)))
    together = [blocks[start : start + several] for start in range(0, len(blocks), several)]
    known, asked = targets
    with closing(queries.pieces([torch.cat(list(here)) for here in together])) as pieces:
        for number, (here, (_, x)) in enumerate(zip(together, pieces, strict=True)):
            x = _prepared(x, first.normalise)
            if index is None:
                similarity, neighbour = _exact(x, bank, k, first.normalise, steps, number, len(together))
            else:
                similarity, neighbour = _by_index(index, x, k)
            steps.tell((number + 1) / len(together))
            sizes = [len(positions) for positions in here]
            for positions, near, rows in zip(here, similarity.split(sizes), neighbour.split(sizes), strict=True):
                sheets = {name: Sheet(metrics) for name in group}
                _vote(group, near, rows, known, asked[positions.to(asked.device)], data.n_outputs, sheets)
                yield sheets


def _vote(
    group: Mapping[str, KnnConfig],
    similarity: Tensor,
    neighbour: Tensor,
    bank_targets: Tensor,
    truth: Tensor,
    n_classes: int,
    sheets: Mapping[str, Sheet],
) -> None:
    size = max(1, _VOTES // n_classes)
    for first in range(0, len(similarity), size):
        rows = slice(first, first + size)
        labels = bank_targets[neighbour[rows].clamp(min=0).long()]  # a missing neighbour (-1, similarity -inf) has no vote
        for name, config in group.items():
            k, values, temperature = config.k, similarity[rows], config.temperature or 1.0
            votes = vote(values[:, :k], labels[:, :k], n_classes, temperature=temperature, weighting=config.weighting, relative=True)
            sheets[name].add(votes, truth[rows], _first(k))


def _first(k: int) -> Any:
    """DINO's top-5 looks at the first min(5, k) classes: with fewer than five neighbours no class beyond the k-th is a guess."""

    def measure_batch(metric: Metric, votes: Tensor, targets: Tensor) -> Statistics:
        if metric.name != "top5" or k >= 5:
            return measure(metric, votes, targets)
        hits = torch.from_numpy(rank_of_target(votes, targets)) < min(k, votes.shape[1])
        return Statistics(torch.stack([hits.double(), torch.ones(len(hits), dtype=torch.float64)], 1).numpy())

    return measure_batch


def _prepared(x: Tensor, cosine: bool) -> Tensor:
    """In place."""
    return normalise(x) if cosine else x


def _pieces(bank: Split, width: int, cosine: bool, device: torch.device) -> Generator[Tensor, None, None]:
    with closing(bank.pieces(bank.chunks(piece_rows(width, device)))) as pieces:
        for _, x in pieces:
            yield _prepared(x, cosine)


def _exact(x: Tensor, bank: Split, k: int, cosine: bool, steps: _Steps, block: int, blocks: int) -> tuple[Tensor, Tensor]:
    found, start = Nearest(x, k), 0
    with closing(_pieces(bank, x.shape[1], cosine, x.device)) as pieces:
        for piece in pieces:
            found.update(piece, start)
            start += len(piece)
            steps.tell((block + start / len(bank)) / blocks)
    return found.similarity, found.index


def _faiss_index(config: KnnConfig, bank: Split, width: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index: Any = faiss.IndexFlatIP(width)
    device = bank.targets.device if bank.targets is not None else torch.device("cpu")
    if config.index == "ivf":
        nlist = min(config.nlist or max(1, round(4 * len(bank) ** 0.5)), len(bank))
        index = faiss.IndexIVFFlat(index, width, nlist, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(config.nprobe or max(1, nlist // 16), nlist)
        index.cp.min_points_per_centroid = 1  # small banks are no reason for a warning
        # Cells are made from samples spread over the whole bank, 256 for each at most.
        spread = torch.linspace(0, len(bank) - 1, min(len(bank), 256 * nlist), dtype=torch.float64).long()
        ((_, sample),) = bank.pieces([spread])
        index.train(_prepared(sample, config.normalise).cpu().numpy())
    if device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > (device.index or 0):
        nprobe = getattr(index, "nprobe", None)
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
        if nprobe is not None:
            index.nprobe = nprobe
    with closing(_pieces(bank, width, config.normalise, device)) as pieces:
        for piece in pieces:
            index.add(piece.cpu().numpy())
    return index


def _by_index(index: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    similarity, neighbour = (torch.from_numpy(found) for found in index.search(x.cpu().numpy(), k))
    similarity = similarity.masked_fill(neighbour < 0, -torch.inf)  # too few in the cells that were searched
    return similarity.to(x.device), neighbour.to(x.device)
