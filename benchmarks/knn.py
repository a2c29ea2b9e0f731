"""What k-NN costs beside faiss's flat index on the same cores, as a ratio of pairs run in turn: python benchmarks/knn.py

Both get float32 features that are not normalised and give the k best of each query: ours normalises and searches piece by piece, faiss's
way is to normalise, fill the index and search. With one thread, seconds are the process's own CPU time, which does not depend on what else
the machine does; else they are the clock's. ``--memory`` prints instead the most memory that the search takes besides the features (by
default at ImageNet's size, which takes many minutes on a CPU). On a GPU: the share of the bare products' speed that the search reaches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch

from virb.functional.knn import nearest, normalise, piece_rows

WIDTH = 384


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


def against_faiss(n_bank: int, n_queries: int, ks: list[int], repeats: int) -> None:
    bank, queries = features(n_bank, 0), features(n_queries, 1)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
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
        print(
            f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, k {k}: {mine:.2f} s, faiss flat {theirs:.2f} s, ratio {ratio:.2f} "
            f"({100 * same:.3f} % of neighbours the same)"
        )


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


def on_gpu(n_bank: int, n_queries: int, k: int) -> None:
    bank, queries = features(n_bank, 0, torch.float16, "cuda"), features(n_queries, 1, torch.float16, "cuda")

    def seconds(call: Callable[[], object]) -> float:
        call()
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def products() -> None:
        x = queries.float()
        rows = piece_rows(WIDTH, bank.device)
        tile = x.new_empty(2048, rows)
        for part in bank.split(rows):
            y = part.float()
            for some in x.split(2048):
                torch.mm(some, y.t(), out=tile[: len(some), : len(y)])

    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    whole = seconds(lambda: ours(bank, queries, k))
    peak = torch.cuda.max_memory_allocated() - held
    alone = seconds(products)
    work = 2 * n_bank * n_queries * WIDTH / 1e12
    print(
        f"{n_queries:,} queries x {n_bank:,} x {WIDTH}, k {k}: {whole:.2f} s, products alone {alone:.2f} s ({work / alone:.0f} TFLOP/s): "
        f"{100 * alone / whole:.0f} % of their speed, {peak / 2**30:.2f} GiB besides the features"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if torch.cuda.is_available():
        on_gpu(args.bank or 1_281_167, args.queries or 50_000, max(args.k))
    if args.memory:
        memory(args.bank or 1_281_167, args.queries or 50_000, max(args.k))
    else:
        against_faiss(args.bank or 100_000, args.queries or 10_000, args.k, args.repeats)


if __name__ == "__main__":
    main()
