"""What k-NN costs beside faiss's flat index on the same cores, as a ratio of pairs run in turn: python benchmarks/knn.py

Both get float32 features that are not normalised and give the k best of each query: ours normalises and searches piece by piece, faiss's
way is to normalise, fill the index and search. ViRB 2021 had no k-NN: in place of its loop stands that of DINO's eval_knn, which searches
anew for each k; there both vote. With one thread, seconds are the process's own CPU time, which does not depend on what else the machine
does; else they are the clock's. A whole job that two workers share is measured against the same job on one, from cached features, with
planning, the start of processes and results: seconds are the CPU time of the process that runs it and half of that of its two workers,
which have equal shares. ``--memory`` prints instead the most memory that the search takes besides the features (by default at ImageNet's
size, which takes many minutes on a CPU). On a GPU: the share of the bare products' speed that the search reaches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from frame import Table, children_time, machine, paired, timed, times
from torch import Tensor, nn

import virb
from virb.data.images import ArrayImages, Dataset, Samples
from virb.functional.knn import nearest, normalise, piece_rows, vote
from virb.plan import units
from virb.results.store import read_job
from virb.tasks.base import Task

WIDTH = 384
CLASSES, TEMPERATURE = 1000, 0.07  # of the votes
SIDE, NOISE_CLASSES = 16, 100


def noise(root: Path | None = None, n_train: int = 0, n_test: int = 0) -> Dataset:
    """Images of grey noise, brighter for some classes: what k-NN costs does not depend on what it finds."""
    random = np.random.default_rng(0)
    lists, samples = {}, {}
    for split, n in (("train", n_train), ("test", n_test)):
        labels = np.arange(n) % NOISE_CLASSES
        pixels = (random.integers(0, 128, (n, SIDE, SIDE)) + labels[:, None, None]).astype(np.uint8)
        lists[split] = ArrayImages(split, pixels, [f"{split}/{i}" for i in range(n)])
        samples[split] = Samples.one_per_image(lists[split], {"class": labels})
    return Dataset("noise", lists, samples, {"class": tuple(map(str, range(NOISE_CLASSES)))})


NOISE = Task(id="Noise", level="image-level", kind="semantic", dataset="knn:noise", metrics=("top1",))


def features(n: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(min(65_536, n - i), WIDTH, generator=generator).to(device, dtype) for i in range(0, n, 65_536)])


def ours(bank: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    rows = piece_rows(WIDTH, bank.device)
    pieces = (normalise(part.float().clone()) for part in bank.split(rows))
    return nearest(normalise(queries.float().clone()), pieces, k)[1]


def faiss_flat(bank: torch.Tensor, queries: torch.Tensor, k: int) -> torch.Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(normalise(bank.clone()).numpy())
    return torch.from_numpy(index.search(normalise(queries.clone()).numpy(), k)[1])


def against_faiss(n_bank: int, n_queries: int, ks: list[int], repeats: int) -> list[tuple[str, ...]]:
    bank, queries = features(n_bank, 0), features(n_queries, 1)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    rows = []
    for k in ks:
        pairs, same = [], 0.0
        for _ in range(repeats):
            began = clock()
            a = ours(bank, queries, k)
            middle = clock()
            b = faiss_flat(bank, queries, k)
            pairs.append((middle - began, clock() - middle))
            same = (a == b).double().mean().item()
        mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(x / y for x, y in pairs)
        what = f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, k {k}"
        rows.append((what, f"{mine:.2f} s", f"{theirs:.2f} s (faiss flat)", times(ratio), f"{100 * same:.3f} %"))
    return rows


def on_two_workers(n_bank: int, n_queries: int, repeats: int, force: bool) -> tuple[str, ...]:
    """``force``: share the job though it is too small to be worth it."""
    if force:
        units.choose_shared = lambda loads, devices: {load.job.id for load in loads if load.stages} if devices > 1 else set()
    encoders = {"pixels": {"arch": "pixels", "args": {"side": SIDE}, "input": {"size": SIDE}}}
    data = {"n_train": n_bank, "n_test": n_queries}
    task = {"task": "knn:NOISE", "probe": "knn", "data": data, "selection": "test-last", "training_configs": {"k20": {"k": 20}}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def run(devices: str, what: dict[str, object] = task) -> Path:
            out = root / f"out{len(list(root.iterdir()))}"
            if failed := virb.run(encoders, {"t": what}, out, devices=devices, progress=False, cache_dir=root / "cache").failed:
                raise SystemExit(f"the run failed: {failed}")
            return out

        run("cpu:1", {**task, "probe": "ncm", "training_configs": {"mean": {}}})  # makes the features
        shared: list[Path] = []
        two, one, ratio = paired(
            lambda: shared.append(run("cpu:2")), lambda: run("cpu:1"), repeats, lambda: time.process_time() + children_time() / 2
        )
        job = read_job(shared[0], "pixels", "t")
        parts = job.parts if job is not None else []
    what = f"a whole job on 2 CPU workers, in {len(parts)} parts: {n_queries:,} queries x {n_bank:,} x {3 * SIDE * SIDE}, k 20"
    return what, f"{two:.2f} s", f"{one:.2f} s (on 1 worker)", times(ratio), ""


def eval_knn(bank: Tensor, queries: Tensor, labels: Tensor, truth: Tensor, ks: list[int]) -> Tensor:
    """The loop of DINO's eval_knn: for each k anew, a hundred chunks of queries against the whole bank, one-hot votes, and ``.item()`` of
    the hits of each chunk. Classes (ks, queries)."""
    bank, queries = nn.functional.normalize(bank, dim=1).t(), nn.functional.normalize(queries, dim=1)
    found = []
    for k in ks:
        hits = 0
        for chunk, expected in zip(queries.chunk(100), truth.chunk(100), strict=True):
            similarity, neighbour = torch.mm(chunk, bank).topk(k)
            one_hot = torch.zeros(len(chunk) * k, CLASSES, device=bank.device).scatter_(1, labels[neighbour].view(-1, 1), 1)
            votes = (one_hot.view(len(chunk), k, CLASSES) * (similarity / TEMPERATURE).exp()[:, :, None]).sum(1)
            found.append(votes.sort(1, descending=True).indices[:, 0])
            hits += int((found[-1] == expected).sum().item())
    return torch.cat(found).view(len(ks), -1)


def search_and_vote(bank: Tensor, queries: Tensor, labels: Tensor, ks: list[int]) -> Tensor:
    """The same by ours: one search for all k."""
    pieces = (normalise(part.clone()) for part in bank.split(piece_rows(WIDTH, bank.device)))
    similarity, neighbour = nearest(normalise(queries.clone()), pieces, max(ks))
    return torch.stack([vote(similarity[:, :k], labels[neighbour[:, :k]], CLASSES, temperature=TEMPERATURE).argmax(1) for k in ks])


def against_eval_knn(n_bank: int, n_queries: int, ks: list[int], device: str = "cpu") -> tuple[str, ...]:
    """One pair; ViRB 2021 had no k-NN."""
    bank, queries = features(n_bank, 0, device=device), features(n_queries, 1, device=device)
    labels, truth = (torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(n)).to(device) for n in (n_bank, n_queries))
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    found: list[Tensor] = []
    mine = timed(lambda: found.append(search_and_vote(bank, queries, labels, ks)), clock)
    theirs = timed(lambda: found.append(eval_knn(bank, queries, labels, truth, ks)), clock)
    same = (found[0] == found[1]).double().mean().item()
    what = f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, votes for k {' and '.join(map(str, ks))}"
    return what, f"{mine:.2f} s", f"{theirs:.2f} s (loop of DINO's eval_knn)", times(mine / theirs), f"{100 * same:.3f} % (classes)"


def memory(n_bank: int, n_queries: int, k: int) -> None:
    """The bank is float16, as the cache stores features."""
    bank, queries = features(n_bank, 0, torch.float16), features(n_queries, 1, torch.float16)
    process, most, stop = psutil.Process(os.getpid()), 0, threading.Event()
    nearest(torch.randn(32, WIDTH), torch.randn(2000, WIDTH), 10)  # libraries are loaded before
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.005):
            most = max(most, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    ours(bank, queries, k)
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    print(f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, k {k}: {seconds:.1f} s, {most / 2**30:.2f} GiB besides the features")


def on_gpu(n_bank: int, n_queries: int, k: int) -> tuple[str, ...]:
    bank, queries = features(n_bank, 0, torch.float16, "cuda"), features(n_queries, 1, torch.float16, "cuda")

    def products() -> None:
        x = queries.float()
        rows = piece_rows(WIDTH, bank.device)
        tile = x.new_empty(2048, rows)
        for part in bank.split(rows):
            y = part.float()
            for some in x.split(2048):
                torch.mm(some, y.t(), out=tile[: len(some), : len(y)])

    ours(bank, queries, k), products()  # warm
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    whole = timed(lambda: ours(bank, queries, k))
    peak = torch.cuda.max_memory_allocated() - held
    alone = timed(products)
    speed = 2 * n_bank * n_queries * WIDTH / 1e12 / alone
    what = (
        f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, k {k}, {torch.cuda.get_device_name()}, {peak / 2**30:.2f} GiB besides the features"
    )
    return what, f"{whole:.2f} s", f"{alone:.2f} s (its products, {speed:.0f} TFLOP/s)", times(whole / alone), ""


def table(quick: bool = False, options: argparse.Namespace | None = None) -> Table:
    options = options or parser().parse_args([])
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    rows = [on_gpu(options.bank or 1_281_167, options.queries or 50_000, max(options.k))] if cuda else []
    bank, queries = (5_000, 500) if quick else (100_000, 10_000)
    if cuda:
        rows.append(against_eval_knn(options.bank or 1_281_167, options.queries or 50_000, options.k, "cuda"))
    rows += against_faiss(options.bank or bank, options.queries or queries, options.k, 1 if quick else options.repeats)
    rows.append(against_eval_knn(options.bank or bank, options.queries or queries, options.k))
    rows.append(on_two_workers(2000, 4200, 1, True) if quick else on_two_workers(60_000, 40_000, options.repeats, False))
    return Table(
        f"k-NN with cosine similarity, {options.threads} thread{'s' * (options.threads != 1)} on the CPU",
        ("what", "ours", "baseline", "ratio", "same neighbours"),
        tuple(rows),
        gpu="" if cuda else "python benchmarks/knn.py",
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--bank", type=int)
    made.add_argument("--queries", type=int)
    made.add_argument("--k", type=int, nargs="+", default=[20, 200])
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--memory", action="store_true")
    made.add_argument("--quick", action="store_true", help="small sizes: to see that it works, not for figures")
    return made


def main() -> None:
    options = parser().parse_args()
    if options.memory:
        torch.set_num_threads(options.threads)
        memory(options.bank or 1_281_167, options.queries or 50_000, max(options.k))
    else:
        print(f"{machine()}\n\n{table(options.quick, options).text()}")


if __name__ == "__main__":
    main()
