"""Compiled encoders: one graph for all batches, eager where it fails, no encoder kept alive. A stand-in compiles; the real one is slow."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from virb.encoders.load import load_encoder
from virb.features import compiled as module
from virb.features.cache import STORAGE
from virb.features.compiled import channels_last, compiled
from virb.features.encoding import Memory, Numerics, PassOptions, encode

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


def test_many_encoders_are_all_compiled(graphs: list[int]) -> None:
    """The compiler gives up on code that it has seen too often."""
    encoders = [vit(seed) for seed in range(10)]
    for encoder in encoders * 2:
        encode(encoder, noise(4), REQUESTS, CPU, COMPILED)
    assert graphs == [4] * 10


def test_images_of_different_sizes_are_not_compiled(graphs: list[int]) -> None:
    encode(vit(), [noise(1)[0], noise(1)[0, :, :8]], REQUESTS, CPU, COMPILED)
    assert graphs == []


def test_what_cannot_be_compiled_runs_as_without_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: object) -> None:
        raise RuntimeError("no compiler here")

    torch.compiler.reset()
    monkeypatch.setattr(module, "BACKEND", backend)
    encoder, memory = vit(), Memory()
    found = [encode(encoder, noise(9), REQUESTS, CPU, options, memory) for options in (COMPILED, EAGER)]
    for request in REQUESTS:
        assert torch.equal(torch.stack(found[0][request]), torch.stack(found[1][request]))
    assert len(memory.notes) == 1
    assert memory.notes[0].startswith("vit0 cannot be compiled and runs as without --compile (")
    assert "no compiler here" in memory.notes[0]


def test_a_network_that_is_wrong_is_not_the_compilers_fault(graphs: list[int]) -> None:
    class Wrong:
        spec = SimpleNamespace(name="wrong", n_heads=None)

        def __call__(self, images: torch.Tensor, requests: Any) -> Any:
            return images.reshape(7, -1, 11)

    notes: list[str] = []
    with pytest.raises(RuntimeError, match="shape"):
        compiled(Wrong(), torch.zeros(4, 3, 8, 8), REQUESTS, notes)  # type: ignore[arg-type]
    assert notes == []


def test_running_out_of_memory_is_passed_on(graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, images = vit(), torch.zeros(4, 3, 16, 16)

    def greedy(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setitem(module._forwards.setdefault(encoder, {}), ("embedding",), greedy)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(encoder, images, ["embedding"])
    assert module._forwards[encoder]["embedding",] is greedy  # a smaller batch may do


def test_no_encoder_is_kept_alive(graphs: list[int]) -> None:
    encoder = vit()
    encode(encoder, noise(4), REQUESTS, CPU, COMPILED)
    there = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert there() is None


def test_the_word_in_the_record() -> None:
    """None without --compile: what was cached before there was such a flag is found."""
    plain = {"compute": "float32", "storage": STORAGE, "device": "cpu"}
    assert EAGER.numerics.record() == plain
    assert COMPILED.numerics.record() == {**plain, "compile": "inductor"}
    assert "channels last" in Numerics("bfloat16", "cuda", compile=True).record()["compile"]


def test_who_gets_channels_last() -> None:
    resnet = load_encoder({"arch": "resnet18", "weights": "random"}, name="resnet")
    assert channels_last(resnet, torch.device("cuda"))
    assert not channels_last(resnet, CPU)
    assert not channels_last(vit(), torch.device("cuda"))


def test_channels_last_reach_the_network(graphs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "channels_last", lambda encoder, device: True)
    monkeypatch.setattr(module, "BACKEND", "eager")
    resnet = load_encoder({"arch": "resnet18", "weights": "random"}, name="resnet")
    seen: list[bool] = []
    layer = resnet.network.conv1
    forward = layer.forward
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    monkeypatch.setattr(
        layer, "forward", lambda x: seen.append(x.is_contiguous(memory_format=torch.channels_last)) or forward(x), raising=False
    )
    identity = resnet.spec.encoder_id
    found = encode(resnet, noise(4), ["embedding"], CPU, COMPILED)["embedding"]
    expected = encode(resnet, noise(4), ["embedding"], CPU, EAGER)["embedding"]
    assert seen[0]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert resnet.spec.encoder_id == identity
