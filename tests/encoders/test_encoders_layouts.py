"""Every public layout, as a file that the test writes in its true form: the right network, the right branch, the right heads."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torchvision import models

from virb.encoders.architectures import infer
from virb.encoders.checkpoints import from_state
from virb.encoders.layouts import RULES, Rule, choose, layout_markdown, layout_table, recognise
from virb.encoders.load import load_encoder
from virb.errors import UserError

State = dict[str, Tensor]
WIDTH = 192


def vit_state(width: int = WIDTH, depth: int = 12, patch: int = 16, side: int = 4, registers: int = 0, scale: bool = False) -> State:
    """The keys of DINO's vision transformers (and DINOv2's), written out."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        **({"register_tokens": (1, registers, width)} if registers else {}),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        block = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,)}
        block |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        if scale:
            shapes |= {f"blocks.{i}.ls{k}.gamma": (width,) for k in (1, 2)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def resnet_state(name: str = "resnet18") -> State:
    """torchvision's keys and shapes; each tensor is one number (so the files are small)."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in models.get_model(name, weights=None).state_dict().items() if not key.startswith("fc.")}
    numbers = {key: torch.rand(()) + 0.5 for key in shapes}
    return {key: number.expand(shapes[key]) if shapes[key] else torch.tensor(7) for key, number in numbers.items()}


def sequential(state: State) -> State:
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{places[key.split('.', 1)[0]]}.{key.split('.', 1)[1]}": value for key, value in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """The same keys with other values: what must not be loaded."""
    return {key: value + 1 for key, value in state.items()}


def mlp(prefix: str, *, shape: tuple[int, ...] = (4, 3)) -> State:
    return {f"{prefix}.weight": torch.zeros(shape), f"{prefix}.bias": torch.zeros(shape[:1])}


def dino(backbone: State, wrapped: bool = False) -> dict[str, Any]:
    head = {**mlp("head.mlp.0"), "head.last_layer.weight_g": torch.ones(4, 1), "head.last_layer.weight_v": torch.ones(4, 3)}
    teacher = {**under("backbone.", backbone), **head}
    return {
        "student": under("module.", {**under("backbone.", other(backbone)), **head}),
        "teacher": under("module.", teacher) if wrapped else teacher,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, output_dir=Path("out")),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def vissl(trunk: State) -> dict[str, Any]:
    model = {"trunk": trunk, "heads": under("0.clf.", {"weight": torch.zeros(3, 2)})}
    return {
        "phase_idx": 1,
        "iteration": 2,
        "loss": {},
        "classy_state_dict": {"base_model": {"model": model, "meters": {}}, "optimizer": {}},
    }


V, R = vit_state, resnet_state
FULL = Callable[[State], dict[str, Any]]
# name -> (network's own state, the file around it, the rule's kind, what the source line says, other networks of the file)
CASES: dict[str, tuple[Callable[[], State], FULL, str, str, str]] = {
    "ViRB 2021": (R, lambda s: {**under("model.", s), **mlp("model.fc")}, "virb", 'prefix "model."', ""),
    "torchvision": (R, lambda s: {**s, **mlp("fc", shape=(1000, 512))}, "torchvision", "torchvision names", ""),
    "torchvision, DataParallel twice": (R, lambda s: {"state_dict": under("module.module.", s)}, "torchvision", "module.module.", ""),
    "timm": (V, lambda s: {**s, **mlp("head")}, "timm", "timm names", ""),
    "DeiT": (V, lambda s: {"model": {**s, **mlp("head")}, "epoch": 1}, "timm", 'branch "model"', ""),
    "timm's EMA": (V, lambda s: {"state_dict": other(s), "state_dict_ema": s, "epoch": 1}, "timm", 'branch "state_dict_ema"', "state_dict"),
    "DINO backbone": (V, lambda s: OrderedDict(s), "timm", "DINO", ""),
    "DINO full": (V, dino, "dino", 'teacher, branch "teacher", prefix "backbone."', "student.backbone"),
    "DINO full, ResNet": (R, lambda s: dino(s, wrapped=True), "dino", 'branch "teacher", prefix "module.backbone."', "student.backbone"),
    "DoRA": (V, lambda s: {**dino(s), "fp16_scaler": {"scale": 1.0}}, "dino", 'branch "teacher"', "student.backbone"),
    "Patch-Wise DINO": (V, lambda s: {**dino(s), "dino_loss": {"center": torch.zeros(1, 197, 4)}}, "dino", 'branch "teacher"', "student"),
    "iBOT": (
        V,
        lambda s: {
            **dino(s),
            "student": under("module.backbone.", {**other(s), "masked_embed": torch.zeros(1, WIDTH)}),
            "ibot_loss": {"center": torch.zeros(1, 4), "center2": torch.zeros(1, 1, 4)},
        },
        *("dino", 'branch "teacher"', "student.backbone"),
    ),
    "iBOT's extract": (V, lambda s: {"state_dict": s}, "timm", 'branch "state_dict"', ""),
    "DINOv2, training": (
        lambda: V(registers=4, scale=True),
        lambda s: {
            "teacher": {
                **under("backbone.", {k.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v for k, v in s.items()}),
                "backbone.mask_token": torch.zeros(1, WIDTH),
                **mlp("dino_head.mlp.0"),
                **mlp("ibot_head.mlp.0"),
            }
        },
        *("dino", "blocks in chunks", ""),
    ),
    "DINOv2 hub": (
        lambda: V(patch=14, registers=4, scale=True),
        lambda s: {**s, "mask_token": torch.zeros(1, WIDTH)},
        *("dinov2", "DINOv2 hub file", ""),
    ),
    "TimeT": (
        V,
        lambda s: {"prototypes": torch.zeros(200, 256), **under("feature_extractor.backbone.", s), **mlp("feature_extractor.head.0")},
        *("timet", 'prefix "feature_extractor.backbone."', ""),
    ),
    "TimeT, teacher, DDP": (
        V,
        lambda s: {
            "epoch": 1,
            "model": under(
                "model.module.",
                {
                    "prototypes": torch.zeros(200, 256),
                    **under("feature_extractor.backbone.", other(s)),
                    **under("teacher.backbone.", s),
                    **mlp("teacher.head.0"),
                    "teacher_prototypes": torch.zeros(200, 256),
                },
            ),
        },
        *("timet", 'prefix "model.module.teacher.backbone."', "feature_extractor.backbone"),
    ),
    "Leopart": (V, lambda s: {"state_dict": {**under("model.", s), **mlp("model.mlp_head.0")}}, "leopart", 'prefix "model."', ""),
    "EMA beside raw weights": (V, lambda s: {"model": other(s), "ema": s}, "timm", 'branch "ema"', "model"),
    "EMA, a state dict": (V, lambda s: {"state_dict": other(s), "ema_state_dict": s}, "timm", "ema_state_dict", "state_dict"),
    "MSN": (
        V,
        lambda s: {
            "target_encoder": under("module.", {**s, **mlp("fc.fc1")}),
            "encoder": under("module.", {**other(s), **mlp("fc.fc1"), **mlp("pred.0")}),
            "prototypes": torch.zeros(4, 3),
            "epoch": 1,
        },
        *("msn", 'target encoder, branch "target_encoder", prefix "module."', "encoder"),
    ),
    "MoCo v1": (
        R,
        lambda s: {
            "arch": "resnet50",
            "state_dict": {
                **under("module.encoder_q.", {**s, **mlp("fc", shape=(128, 512))}),
                **under("module.encoder_k.", {**other(s), **mlp("fc", shape=(128, 512))}),
                "module.queue": torch.zeros(128, 8),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
        },
        *("moco", 'prefix "module.encoder_q."', "encoder_k"),
    ),
    "MoCo v2": (
        R,
        lambda s: {"state_dict": under("module.encoder_q.", {**s, **mlp("fc.0"), **mlp("fc.2")})},
        *("moco", 'prefix "module.encoder_q."', ""),
    ),
    "MoCo v3, ResNet": (
        R,
        lambda s: {
            "state_dict": {
                **under("module.base_encoder.", {**s, **mlp("fc.0")}),
                **under("module.momentum_encoder.", other(s)),
                **mlp("module.predictor.0"),
            }
        },
        *("mocov3", 'prefix "module.base_encoder."', "momentum_encoder"),
    ),
    "SwAV": (
        R,
        lambda s: under("module.", {**s, **mlp("projection_head.0"), **mlp("projection_head.3"), "prototypes.weight": torch.zeros(4, 3)}),
        *("swav", 'SwAV, prefix "module."', ""),
    ),
    "SimSiam": (
        R,
        lambda s: {"state_dict": {**under("module.encoder.", {**s, **mlp("fc.0")}), **mlp("module.predictor.0")}},
        *("simsiam", 'prefix "module.encoder."', ""),
    ),
    "PIRL, exemplar, SimCLR of VISSL": (
        R,
        lambda s: vissl(under("_feature_blocks.", s)),
        "vissl",
        'model.trunk", prefix "_feature_blocks."',
        "",
    ),
    "VISSL, ViT": (V, vissl, "vissl", 'branch "classy_state_dict.base_model.model.trunk"', ""),
    "VISSL, exported": (R, lambda s: {"model_state_dict": under("trunk._feature_blocks.", s)}, "vissl", "exported", ""),
    "SimCLR, Lightning": (
        R,
        lambda s: {
            "state_dict": {**under("encoder.", {**s, **mlp("fc")}), **mlp("projection.model.0")},
            "hyper_parameters": {"lr": 0.1},
            "pytorch-lightning_version": "1.0.0",
        },
        *("simclr", "SimCLR", ""),
    ),
    "BYOL, modules": (
        R,
        lambda s: {
            "model": {
                **under("module.online_network.encoder.", sequential(s)),
                **mlp("module.online_network.projetion.net.0"),
                **under("module.target_network.encoder.", sequential(other(s))),
            }
        },
        *("byol", "online network", "target_network.encoder"),
    ),
    "BYOL, lucidrains": (
        R,
        lambda s: {
            **under("online_encoder.net.", {**s, **mlp("fc")}),
            **under("target_encoder.net.", other(s)),
            **mlp("online_predictor.0"),
        },
        *("byol", 'prefix "online_encoder.net."', "target_encoder.net"),
    ),
    "BYOL, containers": (R, lambda s: {"online_backbone": under("module.", s), "epoch": 1}, "byol", 'branch "online_backbone"', ""),
    "Barlow Twins": (
        R,
        lambda s: {
            "epoch": 1,
            "model": {**under("module.backbone.", s), **mlp("module.projector.0"), "module.bn.running_mean": torch.zeros(3)},
            "optimizer": {},
        },
        *("barlowtwins", 'prefix "module.backbone."', ""),
    ),
    "solo-learn": (
        R,
        lambda s: {
            "state_dict": {
                **under("backbone.", s),
                **mlp("classifier"),
                **mlp("projector.0"),
                **under("momentum_backbone.", other(s)),
            }
        },
        *("solo", 'prefix "backbone."', "momentum_backbone"),
    ),
    "solo-learn, old": (
        R,
        lambda s: {"state_dict": {**under("encoder.", s), **mlp("classifier"), **under("momentum_encoder.", other(s))}},
        *("solo", 'prefix "encoder."', "momentum_encoder"),
    ),
    "lightly, MoCo": (
        R,
        lambda s: {
            "state_dict": {
                **under("backbone.", sequential(s)),
                **mlp("projection_head.layers.0"),
                **under("backbone_momentum.", sequential(other(s))),
            }
        },
        *("lightly", "layers of a Sequential", "backbone_momentum"),
    ),
    "lightly, DINO": (
        R,
        lambda s: {
            "state_dict": {
                **under("student_backbone.", sequential(other(s))),
                **under("teacher_backbone.", sequential(s)),
                **mlp("student_head.0"),
            }
        },
        *("lightly", 'lightly, teacher, branch "state_dict", prefix "teacher_backbone."', "student_backbone"),
    ),
    "lightly, ViT": (V, lambda s: {"state_dict": under("backbone.vit.", s)}, "lightly", 'prefix "backbone.vit."', ""),
    "MAE": (
        V,
        lambda s: {
            "model": {
                **s,
                "mask_token": torch.zeros(1, 1, 16),
                "decoder_pos_embed": torch.zeros(1, 17, 16),
                **mlp("decoder_embed"),
                **mlp("decoder_blocks.0.attn.qkv", shape=(48, 16)),
                **mlp("decoder_pred"),
            }
        },
        *("mae", 'MAE, branch "model"', ""),
    ),
    "torch.compile": (V, lambda s: {"model": under("_orig_mod.module.", s)}, "timm", "timm names", ""),
    "torch.compile, per block": (V, lambda s: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in s.items()}, "timm", "timm", ""),
    "another prefix, alone": (V, lambda s: under("some.net_a.", s), "other", 'prefix "some.net_a."', ""),
}


@pytest.mark.parametrize("name", CASES)
def test_layouts(name: str, tmp_path: Path) -> None:
    make, wrap, kind, says, others = CASES[name]
    state = make()
    path = tmp_path / "net.pth"
    content = wrap(state)
    torch.save(content, path, _use_new_zipfile_serialization=len(name) % 2 == 0)
    encoder = load_encoder(str(path))
    assert encoder.spec.architecture.startswith("resnet18" if make is R else "vit")
    memory = encoder.network.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(memory[key], value), key
    assert "(100 %)" in encoder.spec.source
    assert says in encoder.spec.source
    left = encoder.spec.source.partition("not taken: ")[2]
    assert others in left if others else not left
    assert choose(from_state(content, "x")).rule.kind == kind


def test_the_other_half_is_taken_when_asked_for(tmp_path: Path) -> None:
    for name, key in (("DINO full", "student"), ("MSN", "encoder"), ("MoCo v1", "encoder_k"), ("TimeT, teacher, DDP", "feature_extractor")):
        make, wrap, *_ = CASES[name]
        state = make()
        torch.save(wrap(state), tmp_path / "net.pth")
        encoder = load_encoder({"weights": str(tmp_path / "net.pth"), "checkpoint_key": key})
        memory = encoder.network.state_dict()
        assert all(torch.equal(memory[k], v + 1) for k, v in state.items() if not k.endswith("num_batches_tracked")), name
        assert key in encoder.spec.source


def test_a_resnet50_of_each_form_has_all_its_319_tensors() -> None:
    state = resnet_state("resnet50")
    for wrap in (CASES["ViRB 2021"][1], CASES["SwAV"][1], CASES["MoCo v1"][1], CASES["PIRL, exemplar, SimCLR of VISSL"][1]):
        checkpoint = from_state(wrap(state), "x")
        assert recognise(checkpoint) == ("resnet50", {})
        assert len([key for key in choose(checkpoint).state if not key.startswith(("fc.", "projection_head", "prototypes"))]) == 318


def test_moco_v3_vits_have_twelve_heads(tmp_path: Path) -> None:
    state = vit_state(384, depth=12)
    state["pos_embed"][:, 0] = 0
    torch.save({"state_dict": under("module.base_encoder.", {**state, **mlp("head.0")})}, tmp_path / "vit-s.pth.tar")
    assert load_encoder(tmp_path / "vit-s.pth.tar").spec.n_heads == 12
    with pytest.raises(UserError, match="has 12 heads; leave `arch: vit_small` away"):
        load_encoder({"arch": "vit_small", "weights": tmp_path / "vit-s.pth.tar"})
    assert load_encoder({"arch": "vit", "weights": tmp_path / "vit-s.pth.tar"}).spec.n_heads == 12
    assert load_encoder({"arch": "vit", "args": {"heads": 6}, "weights": tmp_path / "vit-s.pth.tar"}).spec.n_heads == 6
    torch.save({"state_dict": under("module.", state)}, tmp_path / "linear.pth.tar")  # MoCo v3's linear files do not say that they are
    with pytest.raises(UserError, match="no shape tells which"):
        load_encoder(tmp_path / "linear.pth.tar")


def test_xcit_of_its_authors_goes_through_timm(tmp_path: Path) -> None:
    network = timm.create_model("xcit_nano_12_p16_224", num_classes=0)
    state = dict(network.state_dict())
    theirs = {key.replace("pos_embed.", "pos_embeder."): value for key, value in state.items()}
    for i in range(2):
        for part in ("weight", "bias"):
            names = [f"cls_attn_blocks.{i}.attn.{name}.{part}" for name in "qkv"]
            theirs[f"cls_attn_blocks.{i}.attn.qkv.{part}"] = torch.cat([theirs.pop(name) for name in names])
    torch.save(dino(theirs), tmp_path / "full.pth")
    torch.save(theirs, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "timm.pth")
    images = torch.randn(1, 3, 64, 64)
    network.eval()
    with torch.no_grad():
        expected = network(images)
    for name in ("full.pth", "bare.pth", "timm.pth"):
        encoder = load_encoder(tmp_path / name)
        assert encoder.spec.architecture == "timm:xcit_nano_12_p16_224"
        torch.testing.assert_close(encoder(images)["embedding"], expected)
    assert load_encoder({"timm": "xcit_nano_12_p16_224", "weights": tmp_path / "full.pth"}).spec.source.count("teacher") == 2


def test_dinov2_hub_files_fill_timms_models(tmp_path: Path) -> None:
    """With registers timm keeps the [CLS] position in the token; the outputs are those of our own vision transformer."""
    state = vit_state(384, depth=1, patch=14, side=2, registers=4, scale=True)
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "hub.pth")
    named = load_encoder({"timm": "vit_small_patch14_reg4_dinov2", "args": {"depth": 1, "img_size": 28}, "weights": tmp_path / "hub.pth"})
    ours = load_encoder({"arch": "vit", "weights": tmp_path / "hub.pth", "args": {"heads": 6}})
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(named(images)["embedding"], ours(images)["embedding"], atol=2e-5, rtol=1e-4)
    assert "DINOv2 in timm's names" in named.spec.source


def test_dinov2_giant_goes_through_timm(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = vit_state(1536, depth=40, patch=14, side=37, scale=True)
        for i in range(40):
            for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del state[f"blocks.{i}.mlp.{name}"]
            state |= {f"blocks.{i}.mlp.w12.weight": torch.empty(8192, 1536), f"blocks.{i}.mlp.w3.weight": torch.empty(1536, 4096)}
    assert infer(state) == ("timm:vit_giant_patch14_dinov2", {"img_size": 518})
    small = {"embed_dim": 48, "depth": 1, "num_heads": 2, "img_size": 28}
    whole = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, **small)
    hub = {key.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): value for key, value in whole.state_dict().items()}
    torch.save(hub, tmp_path / "giant.pth")
    encoder = load_encoder({"timm": "vit_giant_patch14_dinov2", "args": small, "weights": tmp_path / "giant.pth"})
    assert torch.equal(encoder.network.blocks[0].mlp.fc1.weight, hub["blocks.0.mlp.w12.weight"])


@pytest.mark.parametrize(
    ("width", "depth", "patch", "side", "arch"),
    [
        (192, 12, 16, 14, "vit_tiny"),
        (384, 12, 8, 28, "vit_small"),
        (768, 12, 7, 32, "vit_base"),
        (1024, 24, 14, 37, "vit_large"),
        (1280, 32, 14, 16, "vit"),
    ],
)
def test_shapes_tell_a_vision_transformer(width: int, depth: int, patch: int, side: int, arch: str) -> None:
    with torch.device("meta"):
        state = vit_state(width, depth, patch, side)
    state["pos_embed"] = torch.ones(1, 1 + side * side, width)
    name, arguments = infer(state)
    assert name == arch
    assert arguments == {
        **dict(width=width, depth=depth, patch_size=patch, img_size=side * patch, heads=16 if width > 768 else width // 64),
        **dict(mlp_ratio=4.0, qkv_bias=True),
    }


def test_what_cannot_be_built_says_what_to_name() -> None:
    vit, resnet = vit_state(), resnet_state()
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "a small-image ResNet": ({**resnet, "conv1.weight": torch.zeros(64, 3, 3, 3)}, "a first convolution of 3x3"),
        "a cut ResNet": ({k: v for k, v in resnet.items() if not k.startswith("layer4")}, "not a whole torchvision ResNet"),
        "a distilled DeiT": ({**vit, "dist_token": torch.zeros(1, 1, WIDTH)}, "deit_small_distilled"),
        "a mean-pooled ViT": ({k: v for k, v in vit.items() if not k.startswith("norm.")}, "without a final norm"),
        "a ViT of another depth": (
            vit_state(768, depth=8),
            "768 wide and 8 deep, whose shapes do not tell its number of heads (try arch: vit",
        ),
        "a ResNet with blur pooling": ({**resnet, "layer2.0.aa.filt": torch.zeros(64, 1, 3, 3)}, "anti-aliasing"),
        "a non-square grid": ({**vit, "pos_embed": torch.zeros(1, 13, WIDTH)}, "img_size: [height, width]"),
        "a conv stem": ({**vit, "patch_embed.proj.0.weight": torch.zeros(1)}, "several convolutions"),
        "transformers": ({"vit.embeddings.cls_token": torch.zeros(1), "vit.encoder.layer.0.attention.x": torch.zeros(1)}, "Hugging Face"),
        "CLIP": ({"visual.class_embedding": torch.zeros(3), "visual.conv1.weight": torch.zeros(3)}, "a CLIP model"),
        "Swin": ({"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(3)}, "a Swin transformer"),
        "two networks": ({**under("net_a.", vit), **under("net_b.", vit)}, "checkpoint_key: net_a"),
        "linear weights": ({"state_dict": mlp("module.linear"), "optimizer": {}}, "only heads or a linear classifier"),
    }
    for name, (content, says) in cases.items():
        with pytest.raises(UserError) as caught:
            recognise(from_state(content, "file.pth"))
        assert says in str(caught.value), (name, str(caught.value))
        assert str(caught.value).startswith("file.pth")
    assert choose(from_state(cases["two networks"][0], "x"), "net_b").prefix == "net_b."


def xcit_state() -> State:
    with torch.device("meta"):
        return dict(timm.create_model("xcit_nano_12_p16_224", num_classes=0).state_dict())


NETWORKS: dict[str, tuple[Callable[[], State], str]] = {
    "vit": (V, "vit_tiny"),
    "vit with 12 heads": (lambda: V(384), "vit"),
    "vit with its decoder": (V, "vit_tiny"),
    "vit with registers and layer scale": (lambda: V(registers=4, scale=True), "vit_tiny"),
    "resnet18": (R, "resnet18"),
    "resnet50": (lambda: R("resnet50"), "resnet50"),
    "all ResNets": (lambda: R("wide_resnet101_2"), "wide_resnet101_2"),
    "resnet18 in a Sequential": (lambda: sequential(R()), "resnet18"),
    "XCiT": (xcit_state, "timm:xcit_nano_12_p16_224"),
    "xcit_nano_12_p16": (xcit_state, "timm:xcit_nano_12_p16_224"),
}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kind != "bare"], ids=lambda rule: f"{rule.containers[0]}:{rule.prefix}")
def test_each_rule_finds_what_its_row_says_it_was_tested_on(rule: Rule) -> None:
    for tested in rule.tested.split(", "):
        make, architecture = NETWORKS[tested]
        prefix = f"{rule.prefix}." if rule.prefix not in ("", "*") else "" if rule.prefix == "" else "of_nobody."
        beside = {name.removesuffix(".") + ".x": torch.zeros(1) for name in rule.beside[:1]}
        for wrapper in ("", "module.", "module.module."):
            state = under(wrapper, {**under(prefix, make()), **beside})
            for container in rule.containers:
                content: dict[str, Any] = state if container == "*" else {"epoch": 1}
                for name in reversed([] if container == "*" else container.split(".")):
                    content = {name: state if name == container.split(".")[-1] else content}
                checkpoint = from_state(content, "x")
                place = choose(checkpoint)
                assert place.rule is rule
                assert recognise(checkpoint)[0] == architecture
                if rule.heads and tested.endswith("heads"):
                    assert recognise(checkpoint)[1]["heads"] == 12


def test_the_table_has_all_rules_in_order() -> None:
    table = layout_table()
    assert len(table) == len(RULES)
    assert all(all(row) for row in table)
    assert layout_markdown().count("\n") == len(RULES) + 2
    assert RULES[-1].prefix == "*"
    assert len({(r.containers, r.prefix, r.family, r.beside) for r in RULES}) == len(RULES)
