"""How steps are run: the same bits for any number of threads, and a step that can be captured, recorded and replayed here without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from virb.config import GradientConfig, SchedulerConfig
from virb.data import loader
from virb.data.loader import LoadedBatch
from virb.features import ahead
from virb.metrics.base import Metric, find_metric
from virb.probes import stacks, steps, tally
from virb.probes.grid import Recipe, Trained, train_grid
from virb.probes.heads import HeadShape
from virb.probes.losses import find_loss
from virb.probes.split import Split
from virb.probes.stacks import Group, divide
from virb.probes.standard import Standard
from virb.probes.steps import GraphSteps, ThreadSteps, make_steps

CPU = torch.device("cpu")
CONFIGS = {
    "sgd": GradientConfig(optimizer="sgd", lr=0.1),
    "momentum": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.9, scheduler=SchedulerConfig(type="cosine", per="step")),
    "nesterov": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": GradientConfig(optimizer="adam", lr=0.02, weight_decay=0.05),
    "adam-cycle": GradientConfig(optimizer="adam", lr=0.03, scheduler=SchedulerConfig(type="OneCycle", per="step")),
    "adamw": GradientConfig(optimizer="adamw", lr=0.01, weight_decay=0.1),
}


class Given:
    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None: ...

    def gather(self, samples: Tensor) -> Tensor:
        return self.values[samples]


def split_of(name: str, n: int, width: int, classes: int) -> Split:
    generator = torch.Generator().manual_seed(n)
    y = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(n, width, generator=generator) + torch.nn.functional.one_hot(y, width).mul(30.0)
    return Split(name, ((Given(x), torch.arange(n)),), y)


def assert_equal_bits(a: dict[str, Trained], b: dict[str, Trained]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].history == b[name].history
        assert a[name].best == b[name].best
        for key, tensor in a[name].head.items():
            assert torch.equal(tensor, b[name].head[key]), (name, key)


@pytest.mark.parametrize("hidden", [None, 96])
def test_the_bits_are_the_same_for_any_number_of_cores(hidden: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size where products are big enough for threads, and where torch's own would change their bits."""
    monkeypatch.setattr(stacks, "_LEAST_WEIGHTS", 2**15)
    monkeypatch.setattr(stacks, "_LEAST_WORK", 2**22)
    fit, select = split_of("fit", 600, 384, 100), split_of("select", 150, 384, 100)
    shapes = {name: HeadShape(384, 100, hidden) for name in CONFIGS}
    recipe = Recipe(2, 256, 64, 0, metrics=("top1", "top5", "mean_class_accuracy"))
    assert len(divide(shapes["sgd"], CONFIGS, 256, CPU)) == 6
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = train_grid(shapes, CONFIGS, fit, select, recipe, CPU)
        assert alone["adam"].best["select_top1"] > 0.3
        for cores, process_threads in ((2, 1), (3, 2), (1, 2), (64, 1)):
            torch.set_num_threads(process_threads)
            assert_equal_bits(train_grid(shapes, CONFIGS, fit, select, recipe, CPU, cores=cores), alone)
            assert torch.get_num_threads() == process_threads
    finally:
        torch.set_num_threads(before)


def test_groups_depend_on_sizes_and_hold_every_config_once() -> None:
    configs = {f"{kind}{i}": config for i in range(5) for kind, config in CONFIGS.items()}
    small, large = (divide(HeadShape(width, 100), configs, 256, CPU) for width in (4, 384))
    assert len(small) == 1
    assert len(large) == 8
    for groups in (small, large):
        assert sorted(name for group in groups for name in group) == sorted(configs)
    assert max(map(len, large)) - min(map(len, large)) <= 1
    assert len(divide(HeadShape(2048, 1000), configs, 256, CPU)) == len(configs)
    assert len(divide(HeadShape(384, 100), {"one": CONFIGS["sgd"]}, 256, CPU)) == 1
    cuda = torch.device("cuda")
    assert len(divide(HeadShape(384, 100), configs, 256, cuda)) == 1
    many = {f"{kind}{i}": config for i in range(50) for kind, config in CONFIGS.items()}
    large = divide(HeadShape(2048, 1000), many, 256, cuda)  # work enough for several GPUs
    assert len(large) == len(many) * 2048 * 1000 * 256 // 2**33 // 2 * 2
    assert sorted(name for group in large for name in group) == sorted(many)


def groups_of(
    names: tuple[str, ...] = tuple(CONFIGS),
    metrics: tuple[str, ...] = ("top1",),
    hidden: int | None = None,
    n_steps: int = 50,
    standard: Standard | None = None,
) -> list[Group]:
    """One group per config; every second one sees standardised features, if there is a ``standard``."""
    loss, shape = find_loss("cross_entropy"), HeadShape(12, 4, hidden)
    made = [Group(shape, [name], CONFIGS, loss, metrics, 0, CPU, standard if place % 2 else None) for place, name in enumerate(names)]
    for group in made:
        group.begin_epoch(1, 2, n_steps)
    return made


def batches(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 12, generator=generator), torch.randint(4, (size,), generator=generator)) for _ in range(count)]


@pytest.mark.parametrize("cores", [1, 2])
def test_threads_take_groups_through_every_batch_in_order(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each computes its products alone, however many threads torch had."""
    monkeypatch.setattr(steps, "_AT_ONCE", 3)
    seen: dict[str, list[float]] = {}
    threads = set()
    real = Group.train_step

    def look(group: Group, x: Tensor, y: Tensor) -> None:
        seen.setdefault(group.names[0], []).append(float(x[0, 0]))
        threads.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        real(group, x, y)

    monkeypatch.setattr(Group, "train_step", look)
    data = batches(10)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with make_steps(groups_of(), CPU, cores) as run:
            run.train(iter(data))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {name: [float(x[0, 0]) for x, _ in data] for name in CONFIGS}
    assert all(name.startswith("grid") == (cores > 1) for name in threads)
    assert not [t for t in threading.enumerate() if t.name.startswith("grid")]


def test_errors_end_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(20)
        raise OSError("gone")

    before = torch.get_num_threads()
    with pytest.raises(OSError, match="gone"), make_steps(groups_of(), CPU, 2) as run:
        run.train(unreadable())
    wrong = batches(1)[0][0][:, :5], batches(1)[0][1]
    with pytest.raises(RuntimeError), make_steps(groups_of(), CPU, 2) as run:
        run.train([wrong])
    assert torch.get_num_threads() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("grid")]


def test_metrics_of_other_makers_stay_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    top1 = find_metric("top1")
    own = Metric("own", "own", True, "%", top1.statistics, top1.values)
    monkeypatch.setattr(tally, "find_metric", lambda name: own if name == "own" else find_metric(name))
    made = groups_of(metrics=("own",))
    assert not made[0].on_device
    with make_steps(made, CPU, 2) as run:
        assert isinstance(run, ThreadSteps)
        assert run._pool is None
        run.train(batches(2))


# A step recorded as a list of operations on fixed tensors, as a CUDA graph records kernels.


class Recorder(TorchDispatchMode):
    """Notes every operation; what reads a number on the host cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[object, tuple, dict, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "local_scalar" in str(func) or "nonzero" in str(func):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


class Recordings:
    """Stands in for CUDA graphs. Recording has to do the step once, so what it changed is put back."""

    def __init__(self, groups: list[Group], refuse: bool = False) -> None:
        self.groups, self.refuse = groups, refuse
        self.warm_ups = self.captures = self.replays = 0

    def tensors(self) -> list[Tensor]:
        found = [tensor for group in self.groups for tensor in (*group.params.values(), *group.sums(), group._step)]
        return found + [t for group in self.groups for segment in group.segments for pair in segment.buffers for t in pair]

    def warm_up(self, call: Callable[[], None]) -> None:
        self.warm_ups += 1
        call()

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        if self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing\nmore about it")
        before = [tensor.clone() for tensor in self.tensors()]
        with Recorder() as recorder:
            call()
        for tensor, value in zip(self.tensors(), before, strict=True):
            tensor.copy_(value)

        def replay() -> None:
            self.replays += 1
            fresh: dict[int, Tensor] = {}
            for func, args, kwargs, out in recorder.operations:

                def now(value: object) -> object:
                    return fresh.get(id(value), value) if isinstance(value, Tensor) else value

                result = func(*(now(a) for a in args), **{key: now(a) for key, a in kwargs.items()})  # type: ignore[operator]
                if isinstance(out, Tensor):
                    fresh[id(out)] = result

        return replay


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are broken by the operations that GPUs use: those of CPUs look at numbers."""
    on_device = lambda o, t, most: tally._rank(o, t) if most > 1 else (o.argmax(-1) != t[:, None]).long()  # noqa: E731
    monkeypatch.setattr(tally, "rank_of_target", on_device)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("metrics", [("top1",), ("top5", "mean_class_accuracy", "top1")])
@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("standard", [None, Standard(torch.linspace(-1, 1, 12), torch.linspace(0.5, 2, 12))], ids=["plain", "standardised"])
def test_a_captured_step_gives_the_bits_of_the_step(metrics: tuple[str, ...], hidden: int | None, standard: Standard | None) -> None:
    """Five epochs with a remainder batch: coefficients, counters and sums must come from tensors that stay where they are."""
    eager, captured = (groups_of(metrics=metrics, hidden=hidden, n_steps=8, standard=standard) for _ in range(2))
    graphs = Recordings(captured)
    run, plain = GraphSteps(captured, graphs), GraphSteps(eager, None)
    data = [*batches(7), *batches(1, size=3)]
    for epoch in (1, 2, 3, 4, 5):
        for groups, way in ((eager, plain), (captured, run)):
            for group in groups:
                group.begin_epoch(epoch, 5, len(data))
            way.train(data)
            way.score(data)
        for one, other in zip(eager, captured, strict=True):
            for a, b in zip(one.sums(), other.sums(), strict=True):
                assert torch.equal(a, b)
            for key in one.params:
                assert torch.equal(one.params[key], other.params[key]), (epoch, one.names, key)
    assert graphs.captures == 4  # whole batches and the remainder, in training and in scoring
    assert graphs.warm_ups == 4 * 3
    assert graphs.replays == 2 * 5 * len(data) - graphs.warm_ups
    assert run.notes == []


def test_what_cannot_be_captured_is_done_as_it_is() -> None:
    """The steps of the CPU look at numbers on the host, which the recorder refuses as CUDA does; so may a driver."""
    for refuse in (True, False):
        eager, captured = groups_of(), groups_of()
        graphs = Recordings(captured, refuse)
        run = GraphSteps(captured, graphs)
        if not refuse:  # what the recorder has done before it failed
            graphs.capture = lambda call: _fail_at_once()  # type: ignore[method-assign]
        for groups, way in ((eager, GraphSteps(eager, None)), (captured, run)):
            assert groups
            way.train(batches(9))
        for one, other in zip(eager, captured, strict=True):
            assert all(torch.equal(one.params[key], other.params[key]) for key in one.params)
        (note,) = run.notes
        assert note.startswith("the step could not be captured in a CUDA graph")
        assert "\n" not in note


def _fail_at_once() -> Callable[[], None]:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_step_of_a_cpu_cannot_be_captured() -> None:
    """Else the test above would not see a number read on the host."""
    groups = groups_of(("sgd",))
    with pytest.raises(RuntimeError, match="not permitted"):
        Recordings(groups).capture(lambda: groups[0].train_step(*batches(1)[0]))


def test_a_gpu_captures_unless_a_metric_counts_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(steps, "CudaGraphs", lambda device: made.append(device) or Recordings([]))
    with make_steps(groups_of(), torch.device("cuda:0"), 1) as run:
        assert isinstance(run, GraphSteps)
    assert made == [torch.device("cuda:0")]
    monkeypatch.setattr(Group, "on_device", property(lambda self: False))
    with make_steps(groups_of(), torch.device("cuda:0"), 1) as run:
        assert run._graphs is None
    assert len(made) == 1


def test_a_group_is_stepped_only_after_its_epoch_was_planned() -> None:
    group = Group(HeadShape(12, 4), ["sgd"], CONFIGS, find_loss("cross_entropy"), ("top1",), 0, CPU)
    with pytest.raises(RuntimeError, match="plan_epoch"):
        group.train_step(*batches(1)[0])


def test_steps_are_captured_on_a_stream_of_their_own(monkeypatch):
    """What a thread that reads ahead enqueued on the same stream meanwhile would be captured, too."""
    for module in (steps, ahead, loader):
        monkeypatch.setattr(module, "side_stream", lambda device, purpose: purpose)
    asked = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: asked.append(stream) or nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: SimpleNamespace(record=lambda stream: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(wait_event=lambda event: None))
    list(ahead.read_ahead(lambda chunk: {}, [0], torch.device("cuda:0")))
    list(loader.on_device(iter([LoadedBatch(np.zeros(1), {})]), torch.device("cuda:0")))
    assert len(set(asked)) == 2
    assert steps.CudaGraphs(torch.device("cuda:0"))._stream not in asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_gives_the_numbers_of_single_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    fit, select = split_of("fit", 600, 384, 100), split_of("select", 150, 384, 100)
    fit, select = (Split(s.name, ((Given(s.parts[0][0].values.to(device)), s.parts[0][1]),), s.targets.to(device)) for s in (fit, select))
    shapes = {name: HeadShape(384, 100) for name in CONFIGS}
    notes: list[str] = []
    captured = train_grid(shapes, CONFIGS, fit, select, Recipe(8, 64, 64, 0), device, notes=notes)
    assert notes == []
    monkeypatch.setattr(Group, "on_device", property(lambda self: False))
    single = train_grid(shapes, CONFIGS, fit, select, Recipe(8, 64, 64, 0), device)
    for name in CONFIGS:
        for key, tensor in captured[name].head.items():
            torch.testing.assert_close(tensor, single[name].head[key], rtol=1e-4, atol=1e-6)
