"""Networks from hubs: torch.hub repositories in a folder, transformers models with tiny configs, open_clip towers. No network is used."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from virb.encoders import hub, huggingface, openclip, towers
from virb.encoders.base import Encoder, InputSpec
from virb.encoders.download import NotDownloaded
from virb.encoders.load import load_encoder
from virb.errors import UserError

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8)
INPUT = {"size": 32}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

# A network in DINO's manner: attention written out, get_last_selfattention; and one in DINOv2's, with registers and torch's attention.
DINO = """
    import torch
    from torch import nn
    from parts import WIDTH

    class Attention(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.qkv, self.proj, self.fused = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), fused

        def forward(self, x, rows=False):
            q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(2, 3) * (WIDTH // 2) ** -0.5).softmax(-1)
            if rows:
                return weights
            y = nn.functional.scaled_dot_product_attention(q, k, v) if self.fused else weights @ v
            return self.proj(y.transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self, fused, in_place):
            super().__init__()
            self.norm1, self.attn, self.in_place = nn.LayerNorm(WIDTH), Attention(fused), in_place

        def forward(self, x):
            if self.in_place:
                return x.add_(self.attn(self.norm1(x)))
            return x + self.attn(self.norm1(x))

    class ViT(nn.Module):
        def __init__(self, registers, fused, in_place):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, WIDTH, 8, 8)
            self.cls_token = nn.Parameter(torch.randn(1, 1 + registers, WIDTH))
            self.blocks = nn.ModuleList(Block(fused, in_place) for _ in range(3))
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, 10)

        def embed(self, x):
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
            return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)

        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    class DINO(ViT):
        def get_last_selfattention(self, x):
            x = self.embed(x)
            for block in self.blocks[:-1]:
                x = block(x)
            return self.blocks[-1].attn(self.blocks[-1].norm1(x), rows=True)
"""
HUBCONF = """
    dependencies = ["torch"]
    import torch
    from parts import WIDTH
    from net import DINO, ViT
    from torch import nn

    def dino(pretrained=True):
        torch.manual_seed(3)
        return DINO(0, fused=False, in_place=False)

    def registers(pretrained=True):
        torch.manual_seed(3)
        return ViT(4, fused=True, in_place=False)

    def in_place():
        torch.manual_seed(3)
        return ViT(0, fused=True, in_place=True)

    def resnet(classes=10):
        from torchvision.models import resnet18
        net = resnet18(num_classes=10)
        if not classes:
            net.fc = nn.Identity()
        return net

    def timm_vit():
        import timm
        return timm.create_model("test_vit", num_classes=7)

    def plain():
        return nn.Sequential(nn.Conv2d(3, WIDTH, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def bad():
        net = plain()
        net[0].weight.data[0] = float("nan")
        return net

    def downloads():
        torch.hub.load_state_dict_from_url("https://example.org/models/weights-v1.pth")

    def fails(width):
        raise KeyError(width)

    def number():
        return 5
"""


def repository(folder: Path, width: int = 16) -> str:
    folder.mkdir(parents=True)
    (folder / "parts.py").write_text(f"WIDTH = {width}\n")
    (folder / "net.py").write_text(dedent(DINO))
    (folder / "hubconf.py").write_text(dedent(HUBCONF))
    return str(folder)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    return repository(tmp_path / "my_repo")


def load(text: str, **keys: Any) -> Encoder:
    return load_encoder({"hub": text, "input": INPUT, **keys})


def blocks_of(network: Any, images: Tensor) -> list[Tensor]:
    x, found = network.embed(images), []
    for block in network.blocks:
        x = block(x.clone())
        found.append(x)
    return found


@pytest.mark.parametrize(("entry", "prefix"), [("dino", 1), ("registers", 5), ("in_place", 1)])
def test_a_vit_of_a_repository(repo: str, entry: str, prefix: int) -> None:
    encoder = load(f"{repo}:{entry}")
    network: Any = encoder.network
    assert isinstance(encoder, towers.TowerEncoder)
    assert (encoder.spec.depth, encoder.spec.patch_size, encoder.spec.n_heads, encoder.spec.embed_dim) == (3, 8, 2, 16)
    assert encoder.spec.architecture == f"hub:my_repo:{entry}"
    images = torch.randn(2, 3, 32, 48)
    raw = blocks_of(network, images)
    found = encoder(images, ["embedding", "cls[-2:]", "tokens[0]", "tokens[1](norm=false)", "attention[-1]", "pyramid"])
    torch.testing.assert_close(found["embedding"], network.norm(raw[2])[:, 0])  # the classifier is off
    torch.testing.assert_close(found["cls[-2:]"], torch.stack([network.norm(x)[:, 0] for x in raw[1:]], 1))
    torch.testing.assert_close(found["tokens[0]"], network.norm(raw[0])[:, prefix:].transpose(1, 2).reshape(2, 16, 4, 6))
    torch.testing.assert_close(found["tokens[1](norm=false)"], raw[1][:, prefix:].transpose(1, 2).reshape(2, 16, 4, 6))
    last = network.blocks[2]
    rows = last.attn(last.norm1(raw[1]), rows=True)
    torch.testing.assert_close(found["attention[-1]"], rows[:, :, 0, prefix:].reshape(2, 2, 4, 6))
    assert [tuple(level.shape) for level in found["pyramid"]] == [(2, 16, 4, 6)] * len(encoder.spec.stages)


def test_attention_of_other_blocks(repo: str) -> None:
    fused = load(f"{repo}:registers")
    assert fused(IMAGES, ["attention[0]", "queries[1]"])["queries[1]"].shape == (2, 2, 21, 8)
    written_out = load(f"{repo}:dino")
    assert "queries" not in written_out.spec.outputs
    with pytest.raises(Exception, match="attention of its last block only"):
        written_out(IMAGES, ["attention[0]"])


def test_computes_only_what_is_wanted(repo: str) -> None:
    encoder = load(f"{repo}:registers")
    calls: list[int] = []
    network: Any = encoder.network
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    encoder(IMAGES, ["tokens[0]"])
    assert calls == [0]


def test_other_networks_of_a_repository(repo: str) -> None:
    for classes in (10, 0):
        resnet = load(f"{repo}:resnet", args={"classes": classes})
        assert resnet.spec.family == "resnet"
        assert resnet(IMAGES, ["embedding", "block4"])["block4"].shape == (2, 512, 1, 1)
    vit = load_encoder({"hub": f"{repo}:timm_vit"})
    assert vit.spec.family == "timm"
    assert "attention" in vit.spec.outputs or "tokens" in vit.spec.outputs
    assert vit.spec.input.size == (160, 160)
    plain = load(f"{repo}:plain")
    assert plain.spec.outputs == ("embedding",)
    assert plain(IMAGES)["embedding"].shape == (2, 16)


def test_weights_of_ones_own(repo: str, tmp_path: Path) -> None:
    state = {name: torch.full_like(x, 0.5) for name, x in load(f"{repo}:plain").network.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    assert float(load(f"{repo}:plain", weights=str(tmp_path / "w.pt")).network[0].weight.mean()) == 0.5  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match="decides its weights"):
        load(f"{repo}:plain", weights="random")


def test_two_repositories_with_modules_of_one_name(repo: str, tmp_path: Path) -> None:
    other = repository(tmp_path / "other", width=32)
    widths = [load(f"{folder}:dino").spec.embed_dim for folder in (repo, other, repo)]
    assert widths == [16, 32, 16]


def test_the_code_is_part_of_the_identity(repo: str, tmp_path: Path) -> None:
    first = load(f"{repo}:dino").spec.encoder_id
    assert load(f"{repo}:dino").spec.encoder_id == first
    (Path(repo) / "net.py").write_text(dedent(DINO) + "\n# changed\n")
    assert load(f"{repo}:dino").spec.encoder_id != first


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nothing", r"hub:my_repo:nothing cannot be built with {}: .*Cannot find callable nothing"),
        ("fails", r"cannot be built with {}: TypeError"),
        ("number", "gives a int; expected a torch.nn.Module"),
        ("bad", "hub:my_repo:bad: 0.weight has NaN or infinite values"),
    ],
)
def test_mistakes(repo: str, entry: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(f"{repo}:{entry}")


@pytest.mark.parametrize("text", ["dinov2", "facebookresearch:net", "a/b", "a/b:c d", "a/b:ref:", "./x"])
def test_bad_names(text: str) -> None:
    with pytest.raises(UserError, match="should be owner/repo:entry"):
        hub.parse(text)


def test_parse() -> None:
    entry = hub.parse("facebookresearch/dinov2:release/v1:dinov2_vits14")
    assert (entry.owner, entry.repo, entry.ref, entry.name) == ("facebookresearch", "dinov2", "release/v1", "dinov2_vits14")
    assert hub.parse("./a/b:net").folder == Path("a/b")


def test_offline_says_what_to_put_where(repo: str, tmp_path: Path) -> None:
    with pytest.raises(NotDownloaded, match=r"put a clone of it at .*cache.facebookresearch_dinov2_main") as missing:
        load_encoder("hub:facebookresearch/dinov2:dinov2_vits14", offline=True)
    assert missing.value.address == "https://github.com/facebookresearch/dinov2"
    with pytest.raises(NotDownloaded, match=r"https://example.org/models/weights-v1.pth\n.*checkpoints") as missing:
        load_encoder(f"hub:{repo}:downloads", offline=True)
    assert missing.value.address == "https://example.org/models/weights-v1.pth"
    repository(tmp_path / "cache" / "somebody_nets_master", width=24)
    assert load("somebody/nets:dino").spec.embed_dim == 24  # in the cache: nothing is asked for
    with pytest.raises(UserError, match=r"has no hubconf\.py"):
        load_encoder(f"hub:{tmp_path}:net", offline=True)


def test_a_repository_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repo: str) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    for text, folder in (("somebody/nets:net", "somebody_nets_main"), ("somebody/nets:v2:net", "somebody_nets_v2")):
        with pytest.raises(UserError) as caught:
            load_encoder(f"hub:{text}")
        said = str(caught.value)
        assert said.startswith(f"cannot get hub:{text} (")
        clone = f"put a clone of https://github.com/somebody/nets at {tmp_path / 'cache' / folder} and its weights in"
        assert said.endswith(f"\n  without a network, {clone} {tmp_path / 'cache' / 'checkpoints'}")
    with pytest.raises(UserError) as caught:
        load_encoder(f"hub:{repo}:downloads")
    assert str(caught.value).endswith(f"\n  without a network, put its weights in {tmp_path / 'cache' / 'checkpoints'}")


def test_a_check_is_silent_about_what_it_does_not_download(repo: str, capfd: pytest.CaptureFixture[str]) -> None:
    for offline in (f"hub:{repo}:downloads", "supervised"):
        with pytest.raises(NotDownloaded):
            load_encoder(offline, offline=True)
    assert capfd.readouterr() == ("", "")


# Hugging Face


def test_processors() -> None:
    dinov2 = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3}
    spec = huggingface.read_processor({**dinov2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    assert spec == InputSpec(size=(224, 224), crop_pct=0.875, interpolation="bicubic")
    siglip = {"size": {"height": 256, "width": 256}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert huggingface.read_processor(siglip) == InputSpec(
        size=(256, 256), resize="squash", crop="none", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    convnext = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    assert (huggingface.read_processor(convnext).crop_pct, huggingface.read_processor(convnext).resize) == (0.875, "shorter")
    assert huggingface.read_processor({**convnext, "size": {"shortest_edge": 384}}).resize == "squash"
    beit = {"size": 224, "do_center_crop": False, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    assert huggingface.read_processor(beit).mean == pytest.approx((0.5,) * 3)  # x / 127.5 - 1
    assert huggingface.read_processor({**beit, "do_normalize": False, "do_rescale": False}).std == pytest.approx((1 / 255,) * 3)


class Answer:
    def __init__(self, last: Tensor, pooled: Tensor | None) -> None:
        self.last_hidden_state, self.pooler_output, self.hidden_states = last, pooled, (last,)


class StandIn(nn.Module):
    """What a vision model of transformers looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2))
        self.layernorm = nn.LayerNorm(16)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = False, interpolate_pos_encoding: bool = False) -> Answer:
        assert interpolate_pos_encoding
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        x = self.layernorm(x)
        return Answer(x, x[:, 0] * 2)


def test_the_adapter_on_a_stand_in() -> None:
    torch.manual_seed(0)
    network = StandIn().eval()
    for pooled in (True, False):
        encoder = towers.wrap(huggingface.HuggingFaceModel(network, pooled, maps=False), "hf:stand-in", {}, InputSpec(size=(32, 32)))
        assert isinstance(encoder, towers.TowerEncoder)
        found = encoder(IMAGES, ["embedding", "cls[-1]", "tokens[-1]"])
        expected = network(IMAGES, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(found["embedding"], expected[:, 0] * (2 if pooled else 1))
        torch.testing.assert_close(found["cls[-1]"], expected[:, 0])
        torch.testing.assert_close(found["tokens[-1]"], expected[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4))


def saved(folder: Path, config: Any, processor: bool = True, drop: str = "") -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    for parameter in model.parameters():  # all tokens differ, as in a trained one
        parameter.data = torch.randn_like(parameter) * 0.2
    state = {name: x for name, x in model.state_dict().items() if not (drop and name.startswith(drop))}
    model.save_pretrained(folder, state_dict=state)
    if processor:
        text = json.dumps({"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3})
        (folder / "preprocessor_config.json").write_text(text)
    return model


@pytest.mark.parametrize(
    ("kind", "prefix", "extra"),
    [
        ("ViT", 1, {}),
        ("Dinov2", 1, {}),
        ("Dinov2WithRegisters", 5, {"num_register_tokens": 4}),
        ("DINOv3ViT", 3, {"num_register_tokens": 2}),
        ("SiglipVision", 0, {}),
    ],
)
def test_vits_of_transformers(tmp_path: Path, kind: str, prefix: int, extra: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**SMALL, **extra, attn_implementation="eager")
    model = saved(tmp_path / "tiny", config)
    encoder = load_encoder({"hf": str(tmp_path / "tiny")}, offline=True)
    assert encoder.spec.family == "tower"
    assert encoder.spec.input == InputSpec(
        size=(32, 32), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert (encoder.spec.depth, encoder.spec.patch_size, encoder.spec.n_heads) == (3, 8, 2)
    with torch.no_grad():
        expected = model(IMAGES, output_attentions=True)
    found = encoder(IMAGES, ["embedding", "tokens[-1]", "queries[0]"])
    torch.testing.assert_close(found["embedding"], expected.pooler_output)
    last = expected.last_hidden_state
    torch.testing.assert_close(found["tokens[-1]"], last[:, prefix:].transpose(1, 2).reshape(2, 32, 4, 4), rtol=1e-4, atol=1e-5)
    assert found["queries[0]"].shape == (2, 2, 16 + prefix, 16)
    if not prefix:
        assert not {"cls", "attention"} & set(encoder.spec.outputs)
        return
    found = encoder(IMAGES, ["cls[-1]", "attention[-1]", "attention[0]"])
    torch.testing.assert_close(found["cls[-1]"], last[:, 0], rtol=1e-4, atol=1e-5)
    for block in (-1, 0):
        rows = expected.attentions[block][:, :, 0, prefix:].reshape(2, 2, 4, 4)
        torch.testing.assert_close(found[f"attention[{block}]"], rows, rtol=1e-4, atol=1e-5)
    wide = torch.randn(1, 3, 32, 64)
    assert encoder(wide, ["tokens[-1]"])["tokens[-1]"].shape == (1, 32, 4, 8)


def test_clip_gives_its_vision_tower(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    model = saved(tmp_path / "clip", transformers.CLIPConfig(text_config=text, vision_config=SMALL))
    encoder = load_encoder({"hf": str(tmp_path / "clip")}, offline=True)
    with torch.no_grad():
        expected = model.vision_model(IMAGES)
    found = encoder(IMAGES, ["embedding", "tokens[-1](norm=false)", "cls[-1]"])
    torch.testing.assert_close(found["embedding"], expected.pooler_output)
    torch.testing.assert_close(found["cls[-1]"], expected.pooler_output)  # CLIP pools [CLS] through its last norm
    raw = expected.last_hidden_state
    torch.testing.assert_close(found["tokens[-1](norm=false)"], raw[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4))
    assert encoder.spec.n_params < sum(parameter.numel() for parameter in model.parameters())


def test_mae_sees_every_patch_in_order(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    saved(tmp_path / "mae", transformers.ViTMAEConfig(**SMALL))
    encoder = load_encoder({"hf": str(tmp_path / "mae")}, offline=True)
    first, second = (encoder(IMAGES, ["embedding", "tokens[0]"]) for _ in range(2))
    assert torch.equal(first["embedding"], second["embedding"])
    marked = IMAGES.clone()
    marked[:, :, 8:16, 24:32] += 5  # row 1, column 3
    change = (encoder(marked, ["tokens[0]"])["tokens[0]"] - first["tokens[0]"]).norm(dim=1)
    assert change.flatten(1).argmax(1).tolist() == [7, 7]


def test_convnets_and_swin_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    swin = transformers.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4)
    for name, config, width in (("resnet", resnet, 32), ("swin", swin, 32)):
        model = saved(tmp_path / name, config)
        encoder = load_encoder({"hf": str(tmp_path / name)}, offline=True)
        with torch.no_grad():
            expected = model(IMAGES, output_hidden_states=True)
        found = encoder(IMAGES, ["embedding", "tokens", "pyramid"])
        torch.testing.assert_close(found["embedding"], expected.pooler_output.flatten(1))
        levels = expected.hidden_states if name == "resnet" else expected.reshaped_hidden_states
        torch.testing.assert_close(list(found["pyramid"]), list(levels))
        assert encoder.spec.embed_dim == width


def test_what_the_files_do_not_fill(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = saved(tmp_path / "dino", transformers.ViTConfig(**SMALL), drop="pooler.")  # as DINO's files are on the hub
    encoder = load_encoder({"hf": str(tmp_path / "dino")}, offline=True)
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES)["embedding"], model(IMAGES).last_hidden_state[:, 0])
    assert not any("pooler" in name for name, _ in encoder.network.named_parameters())
    saved(tmp_path / "part", transformers.ViTConfig(**SMALL), drop="layers.1.mlp")
    with pytest.raises(UserError, match=r"its files do not fill \d parameters \(layers.1.mlp"):
        load_encoder({"hf": str(tmp_path / "part")}, offline=True)


def test_half_precision_files_run_in_float32(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = saved(tmp_path / "half", transformers.Dinov2Config(**SMALL)).half()
    model.save_pretrained(tmp_path / "half")
    network = load_encoder({"hf": str(tmp_path / "half")}, offline=True).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_random_weights_and_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    saved(tmp_path / "tiny", transformers.Dinov2Config(**SMALL), processor=False)
    entry = {"hf": str(tmp_path / "tiny"), "weights": "random", "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    first, again, other = (load_encoder(entry, seed=seed, offline=True) for seed in (0, 0, 1))
    assert first.spec.encoder_id == again.spec.encoder_id != other.spec.encoder_id
    assert "random weights" in first.spec.source
    with pytest.raises(UserError, match=r"has no preprocessor_config.json; say how images are prepared"):
        load_encoder({"hf": str(tmp_path / "tiny")}, offline=True)
    with pytest.raises(UserError, match="its config has no depht"):
        load_encoder({**entry, "args": {"depht": 3}}, offline=True)
    with pytest.raises(UserError, match=r"there is no folder \./nowhere"):
        load_encoder("hf:./nowhere")
    with pytest.raises(UserError, match="leave out weights"):
        load_encoder({**entry, "weights": "a.pt"})
    saved(tmp_path / "text", transformers.BertConfig(**{key: SMALL[key] for key in list(SMALL)[:4]}, vocab_size=20))
    with pytest.raises(UserError, match="is no vision model"):
        load_encoder({"hf": str(tmp_path / "text")}, offline=True)


def test_not_in_the_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(NotDownloaded, match=r"fill the cache .*\n  from a machine that has one \(hf download nobody/nothing\)") as missing:
        load_encoder("hf:nobody/nothing@main", offline=True)
    assert missing.value.address == "https://huggingface.co/nobody/nothing"


# open_clip


def test_towers_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(0)
    tower = _build_vision_tower(24, CLIPVisionCfg(layers=3, width=32, head_width=16, image_size=32, patch_size=8)).eval()
    encoder = towers.wrap(tower, "open_clip:tiny", {}, InputSpec(size=(32, 32)))
    assert isinstance(encoder, towers.TowerEncoder)
    found = encoder(IMAGES, ["embedding", "cls[-1]", "tokens[1](norm=false)"])
    torch.testing.assert_close(found["embedding"], tower(IMAGES))
    torch.testing.assert_close(found["cls[-1]"] @ tower.proj, tower(IMAGES))
    expected = tower.forward_intermediates(IMAGES, indices=[1], intermediates_only=True)["image_intermediates"][0]
    torch.testing.assert_close(found["tokens[1](norm=false)"], expected)
    assert (encoder.spec.embed_dim, encoder.spec.stages[-1].channels) == (24, 32)
    resnet = _build_vision_tower(24, CLIPVisionCfg(layers=[1, 1, 1, 1], width=8, head_width=8, image_size=32)).eval()
    assert towers.wrap(resnet, "open_clip:rn", {}, InputSpec(size=(32, 32))).spec.outputs == ("embedding",)
    assert open_clip.__version__


def test_open_clip_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip")
    cfg = dict(open_clip.get_model_config("ViT-B-32"))
    cfg["embed_dim"] = 24
    cfg["vision_cfg"] = dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8)
    cfg["text_cfg"] = {**cfg["text_cfg"], "width": 16, "heads": 2, "layers": 1, "vocab_size": 50}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-8", cfg)
    encoder = load_encoder({"open_clip": "tiny-8", "weights": "random"}, offline=True)
    assert encoder.spec.input.size == (32, 32)
    assert encoder.spec.input.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert (encoder.spec.input.resize, encoder.spec.input.crop, encoder.spec.input.crop_pct) == ("shorter", "center", 1.0)
    assert encoder(IMAGES)["embedding"].shape == (2, 24)
    with pytest.raises(UserError, match=r"no model 'ViT-B-33'; did you mean ViT-B-32"):
        load_encoder("open_clip:ViT-B-33/openai")
    with pytest.raises(UserError, match=r"no weights 'laion2b' of ViT-B-32"):
        load_encoder("open_clip:ViT-B-32/laion2b")
    with pytest.raises(UserError, match="should be MODEL/WEIGHTS"):
        load_encoder("open_clip:ViT-B-32")


def test_not_in_the_open_clip_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotDownloaded, match="fill the cache") as missing:
        load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k", offline=True)
    assert missing.value.address == "https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


def test_extras_are_named_when_they_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"need transformers .*pip install 'virb\[hf\]'"):
        load_encoder("hf:facebook/dinov2-small")
    with pytest.raises(UserError, match=r"need open_clip .*pip install 'virb\[open_clip\]'"):
        load_encoder("open_clip:ViT-B-32/openai")
    assert openclip.parse("hf-hub:a/b", random=False) == ("hf-hub:a/b", None)
