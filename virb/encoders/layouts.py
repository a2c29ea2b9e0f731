"""The layouts of public checkpoints: where in a file the network lies. One table of whole-prefix rules, tried in order; the first that
finds a network decides. ``python -m virb.encoders.layouts`` prints it.

``module.`` and ``_orig_mod.`` (wrappers of torch, any number of them) and a ``model.`` in front are looked through; no other part of a name
is ever dropped. Where a file has a student and a teacher the teacher is taken, as the authors of these methods evaluate it;
``checkpoint_key: student`` takes the other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from virb.encoders.architectures import ANCHORS, MOCOV3_HEADS, SPELLINGS, Found, State, infer, is_vit, vit_shapes
from virb.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from virb.encoders.checkpoints import FORMAT, Checkpoint, some
from virb.encoders.registry import encoder_names
from virb.encoders.vit import HEADS, SIZES
from virb.errors import UserError

__all__ = ["HEADS", "RULES", "Place", "Rule", "choose", "layout_table", "places", "recognise", "vit_arguments"]

ANY = "*"  # any container that no other rule names
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module")
# With ANY: averaged weights first, as timm takes them.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "", "state_dict", "model")
# Prefixes of keys that no output of a network passes through: classifiers, projections, decoders, masks.
HEAD_NAMES = (
    *("head.", "heads.", "fc.", "head_dist.", "classifier.", "linear.", "mlp_head.", "projection_head.", "prototypes", "projector."),
    *("predictor.", "pred.", "projection.", "dino_head.", "ibot_head.", "decoder_", "decoder.", "mask_token", "masked_embed"),
)


@dataclass(frozen=True)
class Rule:
    """One row. ``prefix``: names before the network's own, wrappers taken out; ``family``: only such networks; ``beside``: the file has a
    key that begins so (after the wrappers), which tells layouts of one prefix apart. ``heads``: width -> heads that no shape tells.
    ``method``: whether the layout is of methods that all take ImageNet's mean and std; False where any program may have written it."""

    kind: str
    name: str
    containers: tuple[str, ...]
    prefix: str
    tested: str
    family: str | None = None
    beside: tuple[str, ...] = ()
    heads: Mapping[int, int] | None = None
    method: bool = True


_VISSL = ("classy_state_dict.base_model.model.trunk",)
_DINO = "DINO, DoRA, iBOT, Patch-Wise DINO, DINOv2"
RULES = (
    Rule("vissl", "VISSL trunk (PIRL, SimCLR, exemplar v1/v2, RotNet ...)", _VISSL, "_feature_blocks", "resnet18", "resnet"),
    Rule("vissl", "VISSL trunk", _VISSL, "", "vit", "vit"),
    Rule("vissl", "VISSL trunk, exported", (ANY,), "_feature_blocks", "resnet18", "resnet"),
    Rule("vissl", "VISSL trunk, exported", (ANY,), "trunk._feature_blocks", "resnet18", "resnet"),
    Rule("msn", "MSN, target encoder", ("target_encoder",), "", "vit", "vit"),
    Rule("dino", f"{_DINO}: teacher", ("teacher",), "backbone", "vit, resnet18, XCiT"),
    Rule("dino", f"{_DINO}: teacher", ("teacher",), "", "vit"),
    Rule("timet", "TimeT (or DINO in PyTorch-Lightning), teacher", (ANY,), "teacher.backbone", "vit"),
    Rule("timet", "TimeT", (ANY,), "feature_extractor.backbone", "vit"),
    Rule("lightly", "lightly, teacher", (ANY,), "teacher_backbone", "resnet18 in a Sequential"),
    Rule("dino", "student and teacher in one state dict: teacher", (ANY,), "teacher", "vit"),
    Rule("mocov3", "MoCo v3", (ANY,), "base_encoder", "vit with 12 heads, resnet18", heads=MOCOV3_HEADS),
    Rule("moco", "MoCo v1/v2 (also exemplar v1/v2)", (ANY,), "encoder_q", "resnet18"),
    Rule("byol", "BYOL, online network", (ANY,), "online_network.encoder", "resnet18 in a Sequential"),
    Rule("byol", "BYOL, online network", (ANY,), "online_encoder.net", "resnet18"),
    Rule("byol", "BYOL, online network", (ANY,), "online_network", "resnet18"),
    Rule("byol", "BYOL, online network", (ANY,), "online_encoder", "resnet18"),
    Rule("byol", "BYOL, online network", ("online_backbone", "online_network", "online_encoder"), "", "resnet18"),
    Rule("simsiam", "SimSiam", (ANY,), "encoder", "resnet18", beside=("predictor.",)),
    Rule("simclr", "SimCLR (PyTorch-Lightning)", (ANY,), "encoder", "resnet18", beside=("projection.",), method=False),
    Rule("barlowtwins", "Barlow Twins", ("model",), "backbone", "resnet18", "resnet", beside=("projector.", "bn.")),
    Rule("solo", "solo-learn", (ANY,), "backbone", "resnet18, vit", beside=("classifier.", "projector.")),
    Rule("solo", "solo-learn, old names", (ANY,), "encoder", "resnet18", beside=("classifier.", "projector.")),
    Rule("lightly", "lightly", (ANY,), "backbone", "resnet18 in a Sequential", beside=("projection_head.", "prediction_head.")),
    Rule("lightly", "lightly", (ANY,), "backbone.vit", "vit", "vit"),
    Rule("dino", f"{_DINO}: a backbone with its prefix", (ANY,), "backbone", "vit, resnet18", method=False),
    Rule("virb", "ViRB 2021", (ANY,), "model", "resnet18, resnet50", "resnet"),
    Rule("leopart", "Leopart", (ANY,), "model", "vit", "vit", method=False),
    Rule("swav", "SwAV", (ANY,), "", "resnet18", "resnet", beside=("projection_head.", "prototypes.")),
    Rule("mae", "MAE", ("model",), "", "vit with its decoder", "vit", beside=("decoder_embed.",)),
    Rule("dinov2", "DINOv2 hub file", (ANY,), "", "vit with registers and layer scale", "vit", beside=("blocks.0.ls1.", "register_tokens")),
    Rule("torchvision", "torchvision names (also Barlow Twins' and DINO's ResNet-50)", (ANY,), "", "all ResNets", "resnet", method=False),
    Rule("timm", "timm names (also DINO's, DoRA's and iBOT's backbones)", (ANY,), "", "vit", "vit", method=False),
    Rule("xcit", "XCiT (the authors' names, or timm's)", (ANY,), "", "xcit_nano_12_p16", "xcit"),
    Rule("bare", "the network's own names", (ANY,), "", "a network of the user", method=False),
    Rule("prefixed", "one prefix", (ANY,), "model", "XCiT", method=False),
    Rule("prefixed", "one prefix", (ANY,), "encoder", "vit", method=False),
    Rule("prefixed", "one prefix", (ANY,), "network", "vit", method=False),
    Rule("prefixed", "one prefix", (ANY,), "net", "vit", method=False),
    Rule("prefixed", "one prefix", (ANY,), "trunk", "vit", method=False),
    Rule("prefixed", "one prefix", (ANY,), "feature_extractor", "resnet18", method=False),
    Rule("prefixed", "one prefix", (ANY,), "feature_extractor.resnet", "resnet18", method=False),
    # what the rules above leave: the other half of the same files, if it is alone or asked for
    Rule("dino", f"{_DINO}: student", ("student",), "backbone", "vit"),
    Rule("dino", f"{_DINO}: student", ("student",), "", "vit"),
    Rule("dino", "student and teacher in one state dict: student", (ANY,), "student", "vit"),
    Rule("dino", "student and teacher in one state dict: student", (ANY,), "student.backbone", "vit"),
    Rule("msn", "MSN, anchor encoder", ("encoder",), "", "vit", "vit"),
    Rule(
        "mocov3", "MoCo v3, momentum encoder", (ANY,), "momentum_encoder", "vit", heads=MOCOV3_HEADS, beside=("base_encoder.", "predictor.")
    ),
    Rule("moco", "MoCo v1/v2, momentum encoder", (ANY,), "encoder_k", "resnet18"),
    Rule("byol", "BYOL, target network", (ANY,), "target_network.encoder", "resnet18 in a Sequential"),
    Rule("byol", "BYOL, target network", (ANY,), "target_encoder.net", "resnet18"),
    Rule("solo", "solo-learn, momentum", (ANY,), "momentum_backbone", "resnet18"),
    Rule("solo", "solo-learn, momentum, old names", (ANY,), "momentum_encoder", "resnet18"),
    Rule("lightly", "lightly, student", (ANY,), "student_backbone", "resnet18 in a Sequential"),
    Rule("lightly", "lightly, momentum", (ANY,), "backbone_momentum", "resnet18 in a Sequential"),
    Rule("other", "a prefix of no known layout, if there is one network alone", (ANY,), ANY, "vit", method=False),
)
_NAMED = {name for rule in RULES for name in rule.containers} - {ANY, "model"}


@dataclass(frozen=True)
class Place:
    """A network in a file: ``state`` has its keys without the prefix. ``others``: further networks of the file, by ``checkpoint_key``."""

    rule: Rule
    branch: str
    prefix: str
    family: str | None
    state: State
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The ``checkpoint_key`` that takes it."""
        return ".".join(part for part in (self.branch, core(self.prefix)) if part)

    def __str__(self) -> str:
        parts = [f'branch "{self.branch}"'] * bool(self.branch) + [f'prefix "{self.prefix}"'] * bool(self.prefix)
        return ", ".join(parts)


def core(prefix: str) -> str:
    """A prefix without wrappers and its last dot."""
    return ".".join(part for part in prefix.split(".") if part and part not in WRAPPERS)


def places(checkpoint: Checkpoint, key: str | None = None, wanted: Collection[str] = ()) -> list[tuple[tuple[int, int], Place]]:
    """Every network of a known family, or with most of the ``wanted`` names, best first: ((number of the rule, rank of the container),
    place). ``key``: only those with it in the names that lead there."""
    found = []
    for branch, state in checkpoint.branches.items():
        for prefix, family in _prefixes(state, wanted).items():
            path = [*branch.split("."), *prefix.split(".")] if branch else prefix.split(".")
            if (
                key is not None
                and not _within(key.split("."), path)
                and not _within(key.split("."), [p for p in path if p not in WRAPPERS])
            ):
                continue
            inner = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)} if prefix else state
            outside = [_unwrapped(name) for name in state if not (prefix and name.startswith(prefix))]
            number, rule = _rule(branch, prefix, family, outside if core(prefix) else [_unwrapped(name) for name in state])
            rank = CONTAINERS.index(branch) if branch in CONTAINERS else len(CONTAINERS)
            others = tuple(sorted({name.partition(".")[0] for name in outside})) if prefix else ()
            found.append(((number, rank), Place(rule, branch, prefix, family, inner, beside=others)))
    return sorted(found, key=lambda item: (*item[0], item[1].branch, item[1].prefix))


def choose(checkpoint: Checkpoint, key: str | None = None, wanted: Collection[str] = ()) -> Place:
    """The one that the first fitting rule finds. UserError when there is none, or several that no rule tells apart."""
    found = places(checkpoint, key, wanted)
    if not found:
        raise UserError(_nothing(checkpoint, key))
    (best, place), rest = found[0], [place for _, place in found[1:]]
    equal = [place, *(other for score, other in found[1:] if score == best)]
    if len(equal) > 1:
        names = some([other.key or "(top level)" for other in equal], 6)
        which = f"  it holds   {names}\n  try        checkpoint_key: {equal[0].key}"
        raise UserError(f"{checkpoint.path} holds several networks; which one?\n{which}")
    return replace(place, others=tuple(dict.fromkeys(other.key or "(top level)" for other in rest)))


def recognise(checkpoint: Checkpoint, key: str | None = None) -> Found:
    """(architecture, arguments) of the network in a file. UserError says what is unclear, and what to name."""
    noted = _noted(checkpoint)
    told_arch = noted[0] if noted is not None else checkpoint.trained_arch or ""
    if _PLAIN_TIMM.fullmatch(told_arch) and not places(checkpoint, key):  # names that only timm knows; filling shows whether they are there
        return told_arch, {} if noted is None else noted[1]
    place = choose(checkpoint, key)
    heads = checkpoint.trained_heads if noted is None else noted[1].get("heads")
    told = vit_shapes(place.state) if is_vit(place.state) else {}
    found = infer(place.state, place.rule.heads if heads is None or not told else {told["width"]: heads})
    if noted is not None and noted[0] in _GIANTS and (told.get("width"), told.get("depth")) == (1536, 40):
        return noted  # in timm's names, whose shapes do not tell it
    if noted is not None and isinstance(found, tuple) and found[0] != noted[0]:
        raise UserError(
            f"{checkpoint.path} notes that it holds {noted[0]}, but its shapes are those of {found[0]}; name `arch:` or `timm:`"
        )
    if isinstance(found, str):
        raise UserError(f"{checkpoint.path} holds {found}; name `arch:` with `args:`, or `module:`")
    return found


def vit_arguments(checkpoint: Checkpoint, key: str | None, arch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the file tells for a vision transformer that the user has named; empty for other layouts. UserError where the layout is known
    to need other heads than ``arch`` has."""
    there = [place for _, place in places(checkpoint, key)]
    found = next((place for place in there if place.family == "vit"), None)
    if found is None and arch not in SIZES and not {"width", "depth", "heads"} <= given.keys():
        raise UserError(f"{checkpoint.path} holds no vision transformer; leave `arch: {arch}` away" if there else _nothing(checkpoint, key))
    state = None if found is None else SPELLINGS["blocks in chunks"](found.state) or found.state
    if found is None or state is None or not is_vit(state):
        return {}
    told = vit_shapes(state)
    heads = checkpoint.trained_heads or (found.rule.heads or {}).get(told["width"])
    if heads is not None and "heads" not in given:
        if arch in SIZES and SIZES[arch][2] != heads:
            raise UserError(f"{checkpoint.path}: {found.rule.name}'s network of this width has {heads} heads; leave `arch: {arch}` away")
        told.update({} if arch in SIZES else {"heads": heads})
    return {name: value for name, value in told.items() if not (arch in SIZES and name in ("width", "depth"))}


def layout_of(checkpoint: Checkpoint, key: str | None, wanted: Collection[str]) -> Rule:
    """The row of the place that filled a network with the ``wanted`` names; of a converted file, the row that its source had."""
    noted = checkpoint.metadata.get("virb.layout", "")
    origin = max((rule for rule in RULES if f"{noted}, ".startswith(f"{rule.name}, ")), key=lambda rule: len(rule.name), default=None)
    if origin is not None:
        return origin
    names = [name for name in wanted if not name.endswith(("num_batches_tracked", "mask_token"))]
    return choose(checkpoint, key, names).rule if places(checkpoint, key, names) else RULES[-1]


def normalisation(rule: Rule) -> dict[str, Any]:
    """``mean`` and ``std`` of the methods whose layout this is; empty where the layout does not tell."""
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if rule.method else {}


def check_heads(checkpoint: Checkpoint, rule: Rule, width: int, heads: int | None, given: Mapping[str, Any]) -> None:
    """UserError where a network has other heads than its weights, which no shape would show: other than `virb convert` noted, or than
    the layout's networks of this width have (which gives way to heads in ``given``, the arguments of the user)."""
    noted = _noted(checkpoint)
    told = noted[1].get("heads") if noted is not None else checkpoint.trained_heads
    who = f"{checkpoint.path} notes that its network"
    if told is None and not {"heads", "num_heads"} & given.keys():
        told, who = (rule.heads or {}).get(width), f"{checkpoint.path}: {rule.name}'s network of this width"
    if told is not None and heads is not None and told != heads:
        raise UserError(f"{who} has {told} heads, not {heads}\n  try   no `arch:` or `timm:`, or arch: vit with args: {{heads: {told}}}")


def _noted(checkpoint: Checkpoint) -> Found | None:
    """What `virb convert` wrote beside the tensors. Whoever wrote the file: UserError for anything that `virb convert` does not write."""
    import json

    if checkpoint.metadata.get(FORMAT) != "1":
        return None
    try:
        arguments = json.loads(checkpoint.metadata["virb.arguments"])
        architecture = checkpoint.metadata["virb.architecture"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    known = isinstance(architecture, str) and (architecture in encoder_names() or _PLAIN_TIMM.fullmatch(architecture))
    plain = isinstance(arguments, dict) and all(
        name in _WRITTEN and isinstance(value, int | float) and 0 <= value < 1 << 20 for name, value in arguments.items()
    )
    if not known or not plain:
        raise UserError(
            f"{checkpoint.path} notes an architecture that `virb convert` does not write; name `arch:` or `timm:` for its weights"
        )
    return architecture, arguments


_PLAIN_TIMM = re.compile(r"timm:\w+")  # no tag, no address, no file
_GIANTS = ("timm:vit_giant_patch14_dinov2", "timm:vit_giant_patch14_reg4_dinov2")
_WRITTEN = {"width", "depth", "heads", "patch_size", "img_size", "mlp_ratio", "qkv_bias", "registers", "layer_scale"}


# Finding


def _prefixes(state: State, wanted: Collection[str]) -> dict[str, str | None]:
    """Prefix -> family, of every network of a known family; with ``wanted``, of every place where most of these names are."""
    found: dict[str, str | None] = {}
    for anchor in ANCHORS:
        for prefix in _before(state, anchor.keys[0]):
            if prefix not in found and all(prefix + key in state for key in anchor.keys):
                found[prefix] = anchor.family
    if not wanted:
        return found
    names = sorted(wanted, key=lambda name: (-name.count("."), name))
    candidates = {prefix for name in (*names[:3], *names[-3:]) for prefix in _before(state, name)} | set(found)
    return {prefix: found.get(prefix) for prefix in candidates if _has_most(state, prefix, wanted)}


def _before(state: State, name: str) -> Iterator[str]:
    for key in state:
        if key == name or key.endswith(f".{name}"):
            yield key[: len(key) - len(name)]


def _has_most(state: State, prefix: str, wanted: Collection[str]) -> bool:
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    there = max(sum(name in spelled for name in wanted) for spell in SPELLINGS.values() if (spelled := spell(inner)) is not None)
    return 2 * there >= len(wanted)


def _rule(branch: str, prefix: str, family: str | None, tops: Collection[str]) -> tuple[int, Rule]:
    name = core(prefix)
    for number, rule in enumerate(RULES):
        in_container = branch in rule.containers or (ANY in rule.containers and (branch not in _NAMED or rule.prefix == ANY))
        has_prefix = rule.prefix in (ANY, name) or (rule.prefix != "" and name == f"model.{rule.prefix}")
        has_family = rule.family in (None, family)
        beside = not rule.beside or any(top.startswith(rule.beside) for top in tops)
        if in_container and has_prefix and has_family and beside:
            return number, rule
    raise LookupError("the last rule fits everything")


def _unwrapped(name: str) -> str:
    first, _, rest = name.partition(".")
    return _unwrapped(rest) if first in WRAPPERS and rest else name


def _within(part: list[str], path: list[str]) -> bool:
    return any(path[at : at + len(part)] == part for at in range(len(path) - len(part) + 1))


# Messages for files without a network


def _nothing(checkpoint: Checkpoint, key: str | None) -> str:
    path, branches, content = checkpoint.path, checkpoint.branches, checkpoint.content
    there = places(checkpoint)
    if key is not None and there:
        holds = some(list(dict.fromkeys(place.key or "(top level)" for _, place in there)), 6)
        return f"{path} has no network under checkpoint_key {key!r}\n  it holds   {holds}"
    if key is not None and not any(_within(key.split("."), name.split(".")) for name in branches):
        holds = some([f"{name or '(top level)'}: {next(iter(state), 'nothing')}" for name, state in branches.items()], 6)
        return f"{path} has no tensors under checkpoint_key {key!r}\n  it holds   {holds or 'no tensors at all'}"
    trained = isinstance(content, Mapping) and any(str(name).startswith(("optim", "param_groups", "lr_sched")) for name in content)
    networks = {name: state for name, state in branches.items() if state and "optim" not in name}
    kind = f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    if not networks:
        what = "holds only the state of an optimizer: it" if trained else "holds no state dict (it"
        return f"{path} {what} has {kind}{'' if trained else ')'}"
    names = [_unwrapped(name) for state in networks.values() for name in state]
    shown = some([f"{name} {'x'.join(map(str, tensor.shape))}" for state in networks.values() for name, tensor in state.items()])
    if all(name.startswith(HEAD_NAMES) or name.split(".", 1)[-1].startswith(HEAD_NAMES) for name in names):
        return f"{path} holds only heads or a linear classifier ({shown}); the encoder that they belong to is in another file"
    hint = next((text for text, marks in _ELSEWHERE.items() if any(mark in name for name in names for mark in marks)), "")
    what = hint or f"no layout that ViRB knows (its keys look like {shown})"
    return f"{path} holds {what}; name `arch:` with `args:`, or `module:`"


_ELSEWHERE = {
    "a vision model of Hugging Face's transformers, which `hf:` loads": (
        "embeddings.cls_token",
        "encoder.layer.0.attention",
        "vision_model.",
    ),
    "a CLIP model, whose image tower `timm:` or `open_clip:` loads": ("visual.class_embedding", "visual.transformer.", "visual.trunk."),
    "a Swin transformer, which `timm:` loads (timm: swin_tiny_patch4_window7_224, with these weights:)": ("relative_position_bias_table",),
    "a DINOv3 file, which `timm:` loads (timm: vit_small_patch16_dinov3)": ("rope_embed.periods", "storage_tokens"),
    "a ConvNeXt, which `timm:` loads": ("stages.0.blocks.0.conv_dw", "stages.0.0.dwconv"),
}


# The table


def layout_table() -> list[tuple[str, str, str, str, str]]:
    """(layout, where in the file, prefix, networks, tested on) of every rule, in their order."""
    rows = []
    for rule in RULES:
        where = "anywhere" if ANY in rule.containers else " or ".join(f"`{name}`" for name in rule.containers)
        prefix = "any" if rule.prefix == ANY else f"`{rule.prefix}.`" if rule.prefix else "none"
        beside = f", beside {' or '.join(f'`{name}`' for name in rule.beside)}" if rule.beside else ""
        networks = {"resnet": "ResNets", "vit": "ViTs", "xcit": "XCiTs", None: "ResNets, ViTs, XCiTs"}[rule.family]
        rows.append((rule.name, where, prefix + beside, networks, rule.tested))
    return rows


def layout_markdown() -> str:
    head = ("layout", "in the file under", "prefix", "networks", "tested on")
    rows = [head, tuple("---" for _ in head), *layout_table()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(layout_markdown())
