"""The encoder id: equal for equal encoders in any process, another for any ingredient that decides an output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import virb
from virb.encoders.identity import encoder_id
from virb.encoders.load import load_encoder

SMALL = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32}
SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.head = nn.Linear(3, 4)

    def forward(self, images):
        return self.head(images.mean((2, 3))) * self.scale
"""


def vit_id(seed: int = 0, **changes: Any) -> str:
    return load_encoder({"arch": "vit", "weights": "random", "args": {**SMALL, **changes}}, seed=seed).spec.encoder_id


def test_each_ingredient_changes_the_id() -> None:
    ids = [vit_id(), vit_id(seed=1), vit_id(ln_eps=1e-5), vit_id(position_mode="dino"), vit_id(heads=4), vit_id(mlp_ratio=2.0)]
    assert len(set(ids)) == len(ids)
    assert vit_id() == ids[0]
    assert load_encoder({"arch": "pixels", "args": {"side": 8}}).spec.encoder_id != load_encoder({"arch": "pixels"}).spec.encoder_id


def test_name_place_and_preprocessing_do_not_change_it(tmp_path: Path) -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": SMALL})
    ids = []
    for name in ("a.pt", "b.pt"):
        torch.save({"state_dict": {f"module.{k}": v for k, v in encoder.network.state_dict().items()}}, tmp_path / name)
        recipe = {"arch": "vit", "weights": str(tmp_path / name), "args": {"heads": 2}, "input": {"size": 64, "mean": [0, 0, 0]}}
        ids.append(load_encoder(recipe, name=name, seed=len(ids)).spec.encoder_id)
    assert ids[0] == ids[1]


def test_every_tensor_counts() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network.register_buffer("kept_out", torch.zeros(2), persistent=False)
    seen = {encoder_id(network, {})}
    for _, tensor in (*network.named_parameters(), *network.named_buffers()):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(encoder_id(network, {}))
    assert len(seen) == 1 + 2 + 5 + 1
    assert encoder_id(network.half(), {}) not in seen
    assert encoder_id(network, {"seed": 1}) != encoder_id(network, {"seed": 2})


def test_names_and_shapes_count() -> None:
    class Holder(nn.Module):
        def __init__(self, **tensors: torch.Tensor) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    values = torch.arange(6.0)
    networks = (Holder(a=values), Holder(b=values), Holder(a=values.view(2, 3)), Holder(a=values[:3], b=values[3:]), Holder(a=values.int()))
    assert len({encoder_id(network, {}) for network in networks}) == len(networks)
    strided = torch.stack([values, values], dim=1)[:, 0]
    assert encoder_id(Holder(a=strided), {}) == encoder_id(Holder(a=values), {})


def run_elsewhere(code: str, folder: Path, *arguments: str) -> str:
    """What ``code`` prints in another process that starts in ``folder``."""
    environment = {"PYTHONPATH": str(Path(virb.__file__).parents[1]), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "PATH": ""}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


RECIPES = (
    f"{{'arch': 'vit', 'weights': 'random', 'args': {SMALL}}}",
    "{'module': 'id_net:Net', 'args': {'scale': 2.0}}",
    "{'timm': 'mobilenetv3_small_050', 'weights': 'random'}",
)


def test_another_process_gets_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "id_net.py").write_text(SOURCE)
    code = "import sys; from virb.encoders.load import load_encoder\nfor t in sys.argv[1:]: print(load_encoder(eval(t)).spec.encoder_id)"
    there = run_elsewhere(code, tmp_path, *RECIPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(123)
    torch.randn(5)
    assert there.split() == [load_encoder(eval(recipe)).spec.encoder_id for recipe in RECIPES]


def test_the_source_and_arguments_of_a_users_class_count(tmp_path: Path) -> None:
    def module_id(name: str, source: str, **args: Any) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        recipe = {"module": f"{name}:Net", "args": args}
        return run_elsewhere(f"from virb.encoders.load import load_encoder; print(load_encoder({recipe}).spec.encoder_id)", tmp_path)

    first = module_id("net", SOURCE)
    assert module_id("net", SOURCE, scale=3.0) != first
    assert module_id("net", SOURCE.replace("images.mean", "images.abs().mean")) != first
    assert module_id("net", SOURCE) == first


def test_settings_that_are_in_no_tensor_count() -> None:
    class Net(nn.Module):
        def __init__(self, power: float) -> None:
            super().__init__()
            self.power = power

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :4] * self.power

    assert load_encoder(Net(1.0)).spec.encoder_id != load_encoder(Net(2.0)).spec.encoder_id
    assert load_encoder(Net(1.0)).spec.encoder_id == load_encoder(Net(1.0), name="other").spec.encoder_id


def test_loading_leaves_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    vit_id()
    assert torch.equal(torch.get_rng_state(), before)
