"""What a grid of training configs costs: python benchmarks/grid.py [--quick]

32 linear heads on 50,000 x 384 features in fp16, 100 classes, batches of 256, and eight MLPs of 512 units; one epoch each, reading the
features, shuffling, losses and training accuracy included. Against

- their bare matrix products: forward and weight gradient by ``torch.mm``, nothing else, on as many threads as ours;
- one config alone through the same step (on a GPU the captured one; in exact fp32, as runs train, and with torch's switch for TF32 turned
  on, which is what a GPU's products could be: runs have no such option);
- the loop of 2021: one config after the other, batch by batch, zero_grad / backward / step of ``torch.nn.Linear`` and ``torch.optim``,
  ``.item()`` of loss and hits at every step, and an evaluation on 10,000 rows after the epoch; with one thread, and with all cores as torch
  takes them when nobody says otherwise (where other processes are at work this is slower by far, for its threads wait for each other).

What bounds the grid on a CPU. Four fifths of a step are its products, and these run at what oneDNN reaches: on processors with 512-bit
instructions that MKL does not use (those not made by Intel) twice as fast as ``torch.mm``, so that the grid costs less than its own bare
products; elsewhere the two are equal and the grid is bound by ``torch.mm``. The rest is elementwise: log-softmax and its gradient 8 %, the
copy that turns a gradient for oneDNN 5 %, sums and ranks 5 %, SGD with momentum 4 % (AdamW 17 %, most of it the square root).

What was tried. ``exp`` and ``argmax`` of torch cost more than log-softmax on CPUs (no fast kernels): both are gone, the gradient comes from
autograd's own kernel, and ranks from comparisons that give floats. Outputs with the batch as the last axis would save the copy, but every
loss and metric would have to take them so: not done. A convolution of size 1, torch's documented way to oneDNN, is slower than
``torch.mm``. Threads are given heads, not parts of a product, so that bits cannot depend on their number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import loop2021
import numpy as np
import torch
from frame import NOT_MEASURED, Table, main, seconds_text, threads, times, verdict
from torch import Tensor

from virb.config import GradientConfig, MlpConfig
from virb.features.feature_set import SampleFeatures
from virb.functional.products import linear, onednn_linear
from virb.io import available_cores
from virb.probes import steps
from virb.probes.grid import Recipe, train_grid
from virb.probes.heads import HeadShape
from virb.probes.split import Split

WIDTH, CLASSES, BATCH, HIDDEN = 384, 100, 256, 512
REPEATS = 3
Configs = Mapping[str, GradientConfig]
SGD: Configs = {f"lr{i}": GradientConfig(optimizer="sgd", lr=1e-3 * 1.2**i, momentum=0.9) for i in range(32)}
ADAMW: Configs = {f"lr{i}": GradientConfig(optimizer="adamw", lr=1e-5 * 1.2**i, weight_decay=0.01) for i in range(32)}
MLP: Configs = {f"lr{i}": MlpConfig(optimizer="sgd", lr=1e-3 * 1.5**i, momentum=0.9, hidden=HIDDEN) for i in range(8)}
GRIDS = {"SGD": SGD, "AdamW": ADAMW, "MLP": MLP}
ONE = {"lr0": SGD["lr0"]}
MOST_OF_PRODUCTS = {"SGD": 1.5, "AdamW": 2.2}
ON_GPU = {  # the rows with a target there, and the most of the baseline that ours may take
    "SGD, 32 configs, captured, TF32 (no option of runs): 1 config, captured": 1.5,
    "SGD, 32 configs, captured, fp32: 1 config, captured": 2.5,
    "SGD, 32 configs, captured, fp32: 1 config, kernels launched one by one": 1.0,
    "SGD, 32 configs, fp32, evaluated: loop of 2021": 1 / 50,
}


def table(quick: bool = False) -> Table:
    with threads(1):  # as in a worker; the loop of 2021 takes its own
        return _table(quick)


def _table(quick: bool) -> Table:
    cuda = torch.cuda.is_available()
    data = _Data(torch.device("cuda:0" if cuda else "cpu"), 2_560 if quick else 50_000, 512 if quick else 10_000)
    loop2021.warm(data.device)
    fast = onednn_linear() is not None
    kernels = (
        f"{torch.backends.cpu.get_cpu_capability()}: big products of ours go to {'oneDNN' if fast else 'torch.mm'}, bare ones to torch.mm"
    )
    notes = (
        f"32 linear heads (8 MLPs of {HIDDEN} units), {data.n:,} x {WIDTH} features in fp16, {CLASSES} classes, batches of {BATCH}; "
        f"evaluated: on {len(data.score):,} rows after each epoch; seconds of one epoch",
        *(() if cuda else (kernels, "ours gives the same bits with any number of threads")),
        "runs train in exact fp32, and no option changes that; the TF32 row is measured with torch's own switch turned on",
    )
    return Table(
        f"Grids of training configs, {torch.cuda.get_device_name() if cuda else f'{available_cores()} CPU cores'}",
        ("ours: baseline", "ours", "baseline", "ours / baseline", "target", "reached"),
        tuple(_on_gpu(data) if cuda else _on_cpu(data)),
        notes,
        gpu="" if cuda else "python benchmarks/grid.py",
    )


def _on_cpu(data: _Data) -> list[tuple[str, ...]]:
    cores = available_cores()
    rows = []
    for name, configs in GRIDS.items():
        found = _in_turn(partial(data.ours, configs, 1), partial(data.products, configs))
        rows.append(
            _row(f"{name}, {len(configs)} configs, 1 thread: bare products (torch.mm), 1 thread", found, MOST_OF_PRODUCTS.get(name))
        )
        if name != "MLP" and onednn_linear() is not None:
            found = _in_turn(partial(data.ours, configs, 1), partial(data.products, configs, linear))
            rows.append(_row(f"{name}, {len(configs)} configs, 1 thread: bare products (oneDNN), 1 thread", found))
    rows.append(_row("SGD, 32 configs, 1 thread: 1 config", _in_turn(lambda: data.ours(SGD, 1), lambda: data.ours(ONE, 1))))
    if cores > 1:
        found = _in_turn(lambda: data.ours(SGD, cores), lambda: data.ours(SGD, 1))
        rows.append(_row(f"SGD, 32 configs, {cores} threads: 1 thread", found))
    for name, configs in GRIDS.items():
        for n_threads in dict.fromkeys((1, cores)) if name == "SGD" else (1,):
            found = _in_turn(partial(data.ours, configs, cores, True), partial(data.loop, configs, n_threads))
            what = f"{name}, {len(configs)} configs, {cores} threads, evaluated: loop of 2021, {n_threads} thread{'s' * (n_threads > 1)}"
            rows.append(_row(what, found, 1 / 3 if name == "SGD" else None))
    return rows + [(what, *[NOT_MEASURED] * 3, f"<= {times(most)}", NOT_MEASURED) for what, most in ON_GPU.items()]


def _on_gpu(data: _Data) -> list[tuple[str, ...]]:
    rows = []
    in_tf32, in_fp32, launched, old = ON_GPU
    for what, tf32 in ((in_tf32, True), (in_fp32, False)):
        with _tf32(tf32):
            found = _in_turn(lambda: data.ours(SGD, 1), lambda: data.ours(ONE, 1))
        rows.append(_row(what, found, ON_GPU[what]))
    found = _in_turn(lambda: data.ours(SGD, 1), lambda: _launched(lambda: data.ours(ONE, 1)))
    rows.append(_row(launched, found, ON_GPU[launched]))
    for name, configs in GRIDS.items():
        found = _in_turn(partial(data.ours, configs, 1), partial(data.products, configs))
        rows.append(_row(f"{name}, {len(configs)} configs, fp32: bare products", found))
        found = _in_turn(partial(data.ours, configs, 1, True), partial(data.loop, configs, 1))
        what = f"{name}, {len(configs)} configs, fp32, evaluated: loop of 2021"
        rows.append(_row(what, found, ON_GPU[old] if what == old else None))
    return rows


class _Data:
    """Features and labels on the device, and what is timed on them: each gives the seconds of an epoch."""

    def __init__(self, device: torch.device, n: int, n_score: int) -> None:
        self.device, self.n = device, n
        self.tables: dict[str, loop2021.Table] = {}  # the same, as the loop of 2021 reads it
        self.fit, self.score = self._split("fit", n), self._split("select", n_score)

    def _split(self, name: str, n: int) -> Split:
        generator = torch.Generator().manual_seed(n)
        y = torch.randint(0, CLASSES, (n,), generator=generator)
        x = torch.randn((n, WIDTH), generator=generator).half()
        tier = "host" if self.device.type == "cpu" else "device"
        self.tables[name] = x.to(self.device), y.to(self.device)
        features = SampleFeatures([_InMemory(x)], np.arange(n), np.arange(n + 1), self.device, tier)
        return Split(name, ((features, torch.arange(n)),), y.to(self.device))

    def ours(self, configs: Configs, cores: int, evaluated: bool = False) -> float:
        """On a GPU the epochs after the first, in which steps are captured."""
        epochs = 1 if self.device.type == "cpu" else 6
        hidden = getattr(next(iter(configs.values())), "hidden", None)
        ends = [time.perf_counter()]
        train_grid(
            dict.fromkeys(configs, HeadShape(WIDTH, CLASSES, hidden)),
            configs,
            self.fit,
            self.score if evaluated else None,
            Recipe(epochs, BATCH, BATCH, seed=0),
            self.device,
            cores=cores,
            on_epoch=lambda epoch, records: ends.append(time.perf_counter()),
        )
        seconds = np.diff(ends)
        return float(seconds[0] if epochs == 1 else np.median(seconds[epochs // 2 :]))

    def products(self, configs: Configs, product: Callable[[Tensor, Tensor], Tensor] | None = None) -> float:
        """Forward and weight gradient of all heads at once, by ``torch.mm`` alone, or by ``product`` (x, weight) -> x @ weight.T."""
        hidden = getattr(next(iter(configs.values())), "hidden", None)
        units = len(configs) * (hidden or CLASSES)
        weight, grad, x = (torch.randn(shape, device=self.device) for shape in ((units, WIDTH), (BATCH, units), (BATCH, WIDTH)))
        grad_t, x_t = grad.t().contiguous(), x.t().contiguous()
        out, of_weight = torch.empty(BATCH, units, device=self.device), torch.empty_like(weight)
        if hidden is not None:
            shapes = ((len(configs), CLASSES, hidden), (len(configs), BATCH, CLASSES), (len(configs), BATCH, hidden))
            second, of_logits, inner = (torch.randn(shape, device=self.device) for shape in shapes)

        def step() -> None:
            if product is not None:
                product(x, weight)
                product(grad_t, x_t)
                return
            torch.mm(x, weight.t(), out=out)
            torch.mm(grad.t(), x, out=of_weight)
            if hidden is not None:
                torch.bmm(inner, second.transpose(1, 2))
                torch.bmm(of_logits.transpose(1, 2), inner)
                torch.bmm(of_logits, second)

        def steps_of_an_epoch() -> None:
            for _ in range(-(-self.n // BATCH)):
                step()

        return self._seconds(steps_of_an_epoch)

    def loop(self, configs: Configs, n_threads: int) -> float:
        """One config after the other, as ViRB 2021 trained them."""
        with threads(n_threads):
            return self._seconds(lambda: loop2021.train(configs, self.tables["fit"], self.tables["select"], CLASSES, 1, BATCH))

    def _seconds(self, call: Callable[[], object]) -> float:
        self._synchronise()
        began = time.perf_counter()
        call()
        self._synchronise()
        return time.perf_counter() - began

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class _InMemory:
    nbytes = 0

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self._values)

    def read(self, rows: np.ndarray) -> Tensor:
        return self._values[torch.from_numpy(rows)]

    def read_one(self, row: int) -> Tensor:
        return self._values[row]


def _in_turn(ours: Callable[[], float], baseline: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both, and the median of the ratios of pairs, of which the first goes first in turn."""
    pairs = []
    for i in range(REPEATS):
        if i % 2:
            second = baseline()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), baseline()))
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def _row(what: str, found: tuple[float, float, float], most: float | None = None) -> tuple[str, ...]:
    ours, baseline, ratio = found
    target = "" if most is None else f"<= {times(most)}"
    return what, seconds_text(ours), seconds_text(baseline), times(ratio), target, "" if most is None else verdict(ratio <= most)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _launched(call: Callable[[], float]) -> float:
    """The same without capturing anything."""
    capture = steps.CudaGraphs
    steps.CudaGraphs = lambda device: None  # type: ignore[assignment, misc, return-value]
    try:
        return call()
    finally:
        steps.CudaGraphs = capture  # type: ignore[misc]


if __name__ == "__main__":
    main(table, __doc__)
