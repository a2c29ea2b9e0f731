"""Benchmarks have one frame, and docs/performance.md has a place for each; what they measure is measured by `make bench`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found)
        spec.loader.exec_module(found)
        return found

    yield module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__ or "").parent == FOLDER:
            del sys.modules[name]


def test_every_benchmark_has_a_place_on_the_page(load) -> None:
    run = load("run")
    page = run.PAGE.read_text(encoding="utf-8")
    assert set(run.names()) <= {found[1] for found in run.BLOCK.finditer(page)}
    assert {"cache", "encode", "fanout", "grid", "knn", "scaling", "spine"} <= set(run.names())


def test_every_benchmark_imports_and_says_what_it_does(load) -> None:
    for name in load("run").names():
        module = load(name)
        assert module.__doc__, name
        assert f"python benchmarks/{name}.py" in module.__doc__
        assert callable(module.table)


def test_tables_as_text_and_markdown(load) -> None:
    frame = load("frame")
    table = frame.Table("A title", ("what", "time"), (("one | two", "1.5 s"), ("three", "10 s")), ("a note",), gpu="python benchmarks/x.py")
    assert table.text().splitlines() == [
        "A title",
        "",
        "what        time",
        "one | two  1.5 s",
        "three       10 s",
        "",
        "- a note",
        "- GPU rows: not measured (no GPU here); with one: `python benchmarks/x.py`",
    ]
    assert table.markdown().splitlines()[2:6] == ["| what | time |", "| --- | ---: |", "| one / two | 1.5 s |", "| three | 10 s |"]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        frame.Table("x", ("a", "b"), (("only one",),))


def test_pairs_are_ratios_of_ours_to_the_baseline(load, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = load("frame")
    took = {"ours": iter((2.0, 9.0, 4.0)), "baseline": iter((1.0, 3.0, 4.0))}
    monkeypatch.setattr(frame, "timed", lambda call, clock: next(took[call()]))
    assert frame.paired(lambda: "ours", lambda: "baseline") == (4.0, 3.0, 2.0)


def test_the_page_is_rewritten_block_by_block(load) -> None:
    run, frame = load("run"), load("frame")
    table = frame.Table("New", ("a",), (("1",),))
    page = "before\n<!-- benchmark: one -->\nold\n<!-- end -->\nbetween\n"
    page += "<!-- benchmark: two -->\nkept\n<!-- end -->\nafter\n"
    written = run.rewrite(page, {"one": run.block("one", table, "a machine", "2026-01-01"), "three": "new block"})
    assert written.startswith("before\n<!-- benchmark: one -->\n\n**New**\n")
    assert "`python benchmarks/one.py` on a machine; 2026-01-01\n\n<!-- end -->\nbetween\n" in written
    assert "old" not in written
    assert "<!-- benchmark: two -->\nkept\n<!-- end -->\nafter\n" in written
    assert written.endswith("\n## three\n\nnew block\n")
    assert run.rewrite(written, {}) == written


def test_a_benchmark_runs_in_a_process_of_its_own(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = load("run")
    for name in ("run", "frame"):
        (tmp_path / f"{name}.py").write_text((FOLDER / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "tiny.py").write_text(
        "from frame import Table\n\n\ndef table(quick=False):\n    print(1)\n    return Table('T', ('a',), ((str(quick),),), gpu='x')\n"
    )
    (tmp_path / "broken.py").write_text("def table(quick=False):\n    raise ValueError('no')\n")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    table, where = run.measure("tiny", True)
    assert (table.title, table.rows, table.gpu) == ("T", (("True",),), "x")
    assert "torch" in where
    assert json.dumps(where)
    with pytest.raises(SystemExit, match="broken"):
        run.measure("broken", False)


def test_photos_are_as_large_as_imagenets(load, tmp_path: Path) -> None:
    jpegs = load("jpegs")
    jpegs.make_folder(tmp_path, 3, classes=2)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.jpg")]
    assert len(sizes) == 3
    assert all(60_000 < size < 160_000 for size in sizes)


def test_the_loop_of_2021_decodes_for_each_encoder(load) -> None:
    import virb
    from virb.data.decode import DECODED
    from virb.data.images import ArrayImages
    from virb.encoders.base import InputSpec

    loop = load("loop2021")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    args = {"width": 24, "depth": 1, "heads": 3, "patch_size": 8, "img_size": 32}
    spec = {"size": 32, "resize": "squash", "crop": "none"}
    encoders = [virb.load_encoder({"arch": "vit", "weights": "random", "args": args, "input": spec}, name="v", seed=i) for i in (0, 1)]
    photos = loop.Photos(ArrayImages("noise", pixels, list("abcde")), [0, 1, 2, 3, 4], encoders[0].spec.input)
    before = DECODED.value
    for encoder in encoders:
        features, labels = loop.encode(encoder, loop.loader(photos, torch.device("cpu"), batch=2), torch.device("cpu"))
        expected = encoder(encoder.prepare(torch.from_numpy(pixels).permute(0, 3, 1, 2)), ("embedding",))["embedding"]
        assert features.dtype == torch.float16
        torch.testing.assert_close(features.float(), expected, rtol=2e-3, atol=2e-3)
        assert labels.tolist() == [0, 1, 2, 3, 4]
    assert DECODED.value - before == 10
    cropped = loop.Photos(ArrayImages("noise", pixels, list("abcde")), [0] * 5, InputSpec(size=(28, 28), crop_pct=28 / 32))
    assert cropped[0][0].shape == (3, 28, 28)
    plain = torch.from_numpy(pixels[0, 2:-2, 2:-2]).permute(2, 0, 1) / 255  # 32 on the shorter side is what they have
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (InputSpec().mean, InputSpec().std))
    torch.testing.assert_close(cropped[0][0], (plain - mean) / std)


def test_the_loop_of_2021_trains_and_scores(load, tmp_path: Path) -> None:
    """A step on all samples against the gradient of softmax by hand."""
    from virb.config import GradientConfig

    loop = load("loop2021")
    torch.manual_seed(3)
    x, y = torch.randn(6, 4).half(), torch.tensor([0, 1, 2, 0, 1, 2])
    test = torch.randn(5, 4).half(), torch.tensor([2, 1, 0, 2, 1])
    configs = {"slow": GradientConfig(optimizer="sgd", lr=0.5)}
    torch.manual_seed(7)
    loop.train(configs, (x, y), test, n_classes=3, epochs=1, batch=6, out=tmp_path)
    torch.manual_seed(7)
    start = torch.nn.Linear(4, 3)
    probabilities = start(x.float()).softmax(1)
    error = (probabilities - torch.nn.functional.one_hot(y, 3)) / 6
    head = torch.load(tmp_path / "slow" / "model_head.pt", weights_only=True)
    torch.testing.assert_close(head["0.weight"], start.weight - 0.5 * error.T @ x.float())
    torch.testing.assert_close(head["0.bias"], start.bias - 0.5 * error.sum(0))
    found = json.loads((tmp_path / "slow" / "results.json").read_text())
    assert found["train_loss"] == pytest.approx(-probabilities[range(6), y].log().mean().item(), rel=1e-5)
    guesses = (test[0].float() @ head["0.weight"].T + head["0.bias"]).argmax(1)
    assert found["test_accuracy"] == pytest.approx((guesses == test[1]).float().mean().item())

    steps: list[int] = []
    head = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    loop.one_pass(head, [(x[:4].float(), y[:4]), (x[4:].float(), y[4:])], loop.accuracy, optimizer)
    assert len(steps) == 2
    weights = head.weight.clone()
    loss, right = loop.one_pass(head, [(x[:4].float(), y[:4]), (x[4:].float(), y[4:])], loop.accuracy)
    assert torch.equal(head.weight, weights)
    outputs = head(x.float())
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(outputs, y).item(), rel=1e-5)
    assert right == pytest.approx((outputs.argmax(1) == y).float().mean().item())


def test_the_iou_of_2021_counts_images_without_the_class_as_right(load) -> None:
    labels = torch.zeros(16, 4, 4, dtype=torch.int64)
    labels[3, :2] = 1
    background = torch.zeros(16, 3, 4, 4)
    background[:, 0] = 1.0
    assert load("loop2021").batch_iou(background, labels).item() == pytest.approx(15 / 16)
    right = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert load("loop2021").batch_iou(right, labels).item() == pytest.approx(1.0)


def test_knn_as_dinos_loop_gives_the_same_classes(load) -> None:
    row = load("knn").against_eval_knn(600, 110, [5, 20])
    assert row[-1] == "100.000 % (classes)"


def test_both_loops_of_the_pretraining_benchmark_load_by_as_many_processes(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than there are cores: a plain loop with ten processes on two cores would be no fair comparison."""
    pretrain = load("pretrain")
    from virb.pretraining import data, loading

    asked: list[int] = []

    class Loader:
        def __init__(self, *_: object, num_workers: int, **__: object) -> None:
            asked.append(num_workers)
            raise SystemExit

    monkeypatch.setattr(pretrain, "available_cores", lambda: 3)
    monkeypatch.setattr(loading, "available_cores", lambda: 3)
    monkeypatch.setattr(pretrain.torch.utils.data, "DataLoader", Loader)
    for given, expected in (([], 3), (["--num_workers", "2"], 2), (["--num_workers", "0"], 0)):
        method, record = pretrain.prepared(pretrain.arguments(["--data_path", "digits", *given]))
        with pytest.raises(SystemExit):
            pretrain.plain_training(method, record, 1, "cpu")
        ours = data.open_source(record, method.views(), pretrain.torch.device("cpu"))
        assert asked.pop() == ours.workers == record.num_workers == expected
