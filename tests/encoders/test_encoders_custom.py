"""A user's own network: what it may return, how it is named in an experiment list, and what goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from virb.encoders.load import load_encoder
from virb.errors import UserError, ViRBError

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        if width < 1:
            raise RuntimeError("width must be positive")
        self.conv = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, images):
        return self.conv(images).mean((2, 3))

class Fussy(Net):
    def forward(self, images):
        raise IndexError("no such luck")

def make(width):
    return Net(width)

number = 3
"""


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "models.py").write_text(SOURCE)
    (tmp_path / "mylab" / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


class Returns(nn.Module):
    """Gives what it was told to, from a function of the images."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> Any:
        return self.answer(images)


def pooled(images: torch.Tensor, stride: int) -> torch.Tensor:
    return nn.functional.avg_pool2d(images, stride)


def test_a_class_from_the_current_folder(mylab: Path) -> None:
    recipe = {"module": "mylab.models:Net", "args": {"width": 6}, "input": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}}
    encoder = load_encoder(recipe)
    assert (encoder.spec.name, encoder.spec.embed_dim, encoder.spec.outputs) == ("Net", 6, ("embedding",))
    assert (encoder.spec.input.size, encoder.spec.input.mean) == ((64, 64), (0.5,) * 3)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(encoder(images)["embedding"], encoder.network(images))
    assert load_encoder({"module": "mylab.models:make", "args": {"width": 2}}).spec.embed_dim == 2


def test_random_construction_depends_on_the_seed_alone(mylab: Path) -> None:
    weights = [load_encoder({"module": "mylab.models:Net"}, seed=seed).network.conv.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_fill_it_strictly(mylab: Path) -> None:
    state = {"module.conv.weight": torch.randn(4, 3, 8, 8), "module.conv.bias": torch.randn(4)}
    torch.save({"state_dict": state, "best": 1.0}, "net.pt")
    encoder = load_encoder({"module": "mylab.models:Net", "weights": "net.pt"})
    assert torch.equal(encoder.network.conv.weight, state["module.conv.weight"])
    assert "2 of 2 tensors filled" in encoder.spec.source
    torch.save({**state, "module.fc.weight": torch.zeros(2, 4)}, "more.pt")
    with pytest.raises(UserError, match=r"1 unexpected: module\.fc\.weight"):
        load_encoder({"module": "mylab.models:Net", "weights": "more.pt"})
    torch.save({"conv.weight": state["module.conv.weight"]}, "less.pt")
    with pytest.raises(UserError, match=r"1 missing: conv\.bias"):
        load_encoder({"module": "mylab.models:Net", "weights": "less.pt"})


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"module": "mylab.models:Nett"}, "did you mean Net?"),
        ({"module": "mylab.modles:Net"}, "No module named 'mylab.modles'"),
        ({"module": "mylab.broken:Net"}, "a_package_that_is_not_there"),
        ({"module": "mylab.models"}, "package.module:Name"),
        ({"module": "mylab.models:Net", "args": {"width": 0}}, "width must be positive"),
        ({"module": "mylab.models:Net", "args": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"module": "mylab.models:make", "args": {}}, "'width'"),
        ({"module": "builtins:dict"}, "expected a torch.nn.Module"),
        ({"module": "mylab.models:Fussy"}, "IndexError: no such luck"),
        ({"module": "mylab.models:Net", "weights": "none.pt"}, "none.pt does not exist"),
    ],
)
def test_mistakes_name_module_and_reason(mylab: Path, recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_encoder(recipe)
    assert says in str(caught.value)
    if "weights" not in recipe:
        assert recipe["module"].partition(":")[0] in str(caught.value)


def test_virb_2021s_dict_just_works() -> None:
    channels = {"conv": 2, "block1": 4, "block2": 8, "block3": 16, "block4": 32}

    def forward(images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {name: pooled(images, 2 << i).repeat(1, c, 1, 1)[:, :c] for i, (name, c) in enumerate(channels.items())}
        return {"img": images, **maps, "embedding": maps["block4"].mean((2, 3))}

    encoder = load_encoder(Returns(forward), name="old")
    assert [(stage.name, stage.channels, stage.stride) for stage in encoder.spec.stages] == [
        ("conv", 2, 2), ("block1", 4, 4), ("block2", 8, 8), ("block3", 16, 16), ("block4", 32, 32),
    ]  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    found = encoder(images, ("embedding", "pyramid", "tokens[-1]", "block2.mean"))
    expected = forward(images)
    assert [torch.equal(a, expected[name]) for a, name in zip(found["pyramid"], channels, strict=True)] == [True] * 5
    assert torch.equal(found["tokens[-1]"], expected["block4"])
    assert (encoder.spec.name, encoder.spec.embed_dim) == ("old", 32)


def test_tokens_cls_and_a_pyramid_of_ones_own() -> None:
    def forward(images: torch.Tensor) -> dict[str, Any]:
        levels = [pooled(images, 8), pooled(images, 16)]
        return {"cls": images.mean((2, 3)), "tokens": levels[1], "pyramid": levels, "attention": levels[1]}

    encoder = load_encoder(Returns(forward))
    assert encoder.spec.outputs == ("cls", "tokens", "pyramid", "attention")
    assert [str(request) for request in encoder.spec.expand("pyramid.mean")] == ["pyramid[0].mean", "pyramid[1].mean"]
    images = torch.randn(2, 3, 32, 32)
    found = encoder(images, ("pyramid[0]", "cls[-1]+tokens[-1].gem(4)"))
    assert torch.equal(found["pyramid[0]"], pooled(images, 8))
    with pytest.raises(UserError, match="no output 'embedding'"):
        encoder(images)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: pooled(x, 8), 'return a dict {"tokens": map, "embedding": vector}'),
        (lambda x: x.mean((1, 2, 3)), "expected 2 x D"),
        (lambda x: x[:1].flatten(1), "for 2 images"),
        (lambda x: {"tokens": x.flatten(2)}, "expected 2 x D x h x w"),
        (lambda x: {"embeddings": x.flatten(1)}, "did you mean embedding?"),
        (lambda x: {"embedding": [1.0]}, "is a list"),
        (lambda x: (x.flatten(1),), "returned a tuple"),
        (lambda x: {}, "returned nothing"),
    ],
)
def test_wrong_outputs_are_explained(answer: Any, says: str) -> None:
    with pytest.raises(ViRBError) as caught:
        load_encoder(Returns(answer))
    assert says in str(caught.value)
    assert str(caught.value).startswith("Returns: ")


def test_an_output_that_goes_wrong_later_is_explained() -> None:
    encoder = load_encoder(Returns(lambda x: {"embedding": x.flatten(1)} if len(x) == 2 else {"tokens": x}))
    with pytest.raises(ViRBError, match="gave no embedding"):
        encoder(torch.randn(3, 3, 8, 8))


def test_wrapping_leaves_the_users_module_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    network(torch.randn(1, 3, 224, 224))
    encoder = load_encoder(network)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        before = encoder.network[1].weight.clone()
        network[1].weight.zero_()
    assert torch.equal(encoder.network[1].weight, before)
