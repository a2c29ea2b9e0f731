"""Compiled encoders: one graph for all batches, an error where it fails, no encoder kept alive. A stand-in compiles, for speed."""

from __future__ import annotations

import gc
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from virb.data.images import ArrayImages
from virb.data.transforms import Geometry
from virb.encoders.load import load_encoder
from virb.errors import ViRBError
from virb.features import compiled as module
from virb.features.cache import STORAGE, FeatureCache
from virb.features.compiled import compiled
from virb.features.counted import PassReport, encode_counted
from virb.features.encoding import Numerics, PassOptions, encode
from virb.features.passes import Wanted, run_slices

CPU = torch.device("cpu")
COMPILED, EAGER = (PassOptions(Numerics("float32", "cpu", compile=flag), 4, 0) for flag in (True, False))
REQUESTS = ["embedding", "tokens[-1].mean"]


def vit(seed: int = 0) -> Any:
    args = {"width": 16, "depth": 1, "heads": 2, "patch_size": 8, "img_size": 16}
    return load_encoder({"arch": "vit", "weights": "random", "args": args}, name=f"vit{seed}", seed=seed)


def noise(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each graph that was compiled."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        found.append(next(len(tensor) for tensor in inputs if tensor.ndim == 4 and tensor.shape[1] == 3))
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(module, "BACKEND", backend)
    return found


def test_one_graph_for_all_batches_and_the_same_numbers(graphs: list[int]) -> None:
    encoder = vit()
    for n in (4, 11, 3):
        found, expected = (encode(encoder, noise(n), REQUESTS, CPU, options) for options in (COMPILED, EAGER))
        for request in REQUESTS:
            torch.testing.assert_close(torch.stack(found[request]), torch.stack(expected[request]))
    assert graphs == [4]
    encode(encoder, noise(4), REQUESTS[:1], CPU, COMPILED)
    assert graphs == [4, 4]  # other outputs are another graph


def test_one_wrapper_for_all_batches(graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda requests: made.append(requests) or forward(requests))
    encoder = vit()
    for n in (4, 11, 3):
        encode(encoder, noise(n), REQUESTS, CPU, COMPILED)
    assert made == [tuple(REQUESTS)]


def test_many_encoders_are_all_compiled(graphs: list[int]) -> None:
    """The compiler gives up on code that it has seen too often."""
    encoders = [vit(seed) for seed in range(10)]
    for encoder in encoders * 2:
        encode(encoder, noise(4), REQUESTS, CPU, COMPILED)
    assert graphs == [4] * 10


def test_images_of_different_sizes_are_not_compiled(graphs: list[int]) -> None:
    encode(vit(), [noise(1)[0], noise(1)[0, :, :8]], REQUESTS, CPU, COMPILED)
    assert graphs == []


def test_what_cannot_be_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values computed some other way would lie under the key of compiled ones."""

    def backend(*_: object) -> None:
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    monkeypatch.setattr(module, "BACKEND", backend)
    encoder = vit()
    for _ in range(2):
        with pytest.raises(ViRBError, match=r"^vit0 cannot be compiled; run it without --compile \(.*no compiler here"):
            encode(encoder, noise(9), REQUESTS, CPU, COMPILED)


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "fail_on_recompile_limit_hit"), reason="this torch gives up in silence")
def test_a_compiler_that_gives_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(module, "BACKEND", "eager")
    shared = torch.compile(lambda encoder, images: encoder(images, REQUESTS), backend="eager", dynamic=False)
    monkeypatch.setattr(module, "_forward", lambda requests: shared)
    encoder = vit()
    compiled(encoder, torch.zeros(4, 3, 16, 16), REQUESTS)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(ViRBError, match="cannot be compiled"):
        compiled(encoder, torch.zeros(4, 3, 24, 24), REQUESTS)


def test_the_seconds_of_a_forward_are_without_those_of_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        time.sleep(1.0)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(module, "BACKEND", backend)
    report = PassReport()
    encode_counted(report, vit(), noise(4), REQUESTS, CPU, COMPILED)
    assert report.seconds["compile"] >= 1.0
    assert 0 < report.seconds["encode"] == report.seconds["compute"] < 0.9
    images = ArrayImages("noise", noise(4).permute(0, 2, 3, 1).numpy(), list("abcd"))
    geometry = Geometry((16, 16), "squash", "none", 1.0, "bilinear", None)
    item = Wanted("vit", geometry, "embedding", "0" * 64)
    done = run_slices(images, [(0, 4)], [item], {"vit": vit(1)}, FeatureCache(tmp_path), CPU, COMPILED)
    assert done.failed == {}
    assert done.seconds["compile"] >= 1.0
    assert done.seconds["encode"] < 0.9


def test_a_network_that_is_wrong_is_not_the_compilers_fault(graphs: list[int]) -> None:
    class Wrong:
        spec = SimpleNamespace(name="wrong", n_heads=None)

        def __call__(self, images: torch.Tensor, requests: Any) -> Any:
            return images.reshape(7, -1, 11)

    with pytest.raises(RuntimeError, match="shape"):
        compiled(Wrong(), torch.zeros(4, 3, 8, 8), REQUESTS)  # type: ignore[arg-type]


def test_running_out_of_memory_is_passed_on(graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = vit(), torch.zeros(4, 3, 16, 16)

    def greedy(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    wanted = ("embedding",), (4, 3, 16, 16)
    monkeypatch.setitem(module._forwards.setdefault(encoder, {}), wanted, greedy)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(encoder, images, ["embedding"])
    assert module._forwards[encoder][wanted] is greedy  # a smaller batch may do


def test_no_encoder_is_kept_alive(graphs: list[int]) -> None:
    encoder = vit()
    encode(encoder, noise(4), REQUESTS, CPU, COMPILED)
    there = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert there() is None


def test_the_word_in_the_record() -> None:
    """None without --compile: what was cached before there was such a flag is found. None for native sizes, which are not compiled."""
    plain = {"compute": "float32", "storage": STORAGE, "device": "cpu"}
    fixed = Geometry((16, 16), "squash", "none", 1.0, "bilinear", None)
    native = Geometry(None, "none", "none", 1.0, "bilinear", None)
    assert EAGER.numerics.record(vit(), fixed) == plain
    assert COMPILED.numerics.record(vit(), fixed) == {**plain, "compile": "inductor"}
    assert COMPILED.numerics.record(vit(), native) == plain
