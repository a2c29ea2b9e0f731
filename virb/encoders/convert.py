"""Any known checkpoint to a file of its encoder alone: what ``virb convert`` and the scripts in ``scripts/convert_weights`` do."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from virb.encoders import checkpoints, timm
from virb.encoders.base import Encoder
from virb.encoders.checkpoints import FORMAT, TRAINING
from virb.encoders.filling import fill
from virb.encoders.layouts import choose, places, recognise
from virb.encoders.registry import build
from virb.errors import UserError, ViRBError
from virb.io import write_atomic

# What each script takes: kinds of layouts. Several methods hand out their backbone in bare names, which no reader can tell apart.
EXPECTED = {
    "swav": ("swav", "vissl"),
    "moco": ("moco", "vissl"),
    "pirl": ("vissl",),
    "exemplar": ("vissl", "moco"),
    "simsiam": ("simsiam",),
    "simclr": ("vissl", "simclr", "torchvision"),
    "byol": ("byol",),
    "barlowtwins": ("barlowtwins", "torchvision", "vissl"),
    "vissl": ("vissl",),
    "dino": ("dino", "timm", "torchvision", "xcit"),
    "dora": ("dino", "timm"),
    "timet": ("timet", "timm"),
    "ibot": ("dino", "timm"),
    "patchwise_dino": ("dino", "timm"),
    "mae": ("mae", "timm"),
    "mocov3": ("mocov3",),
    "torchvision": ("torchvision",),
}
SUFFIXES = (".pt", ".pth", ".safetensors")


def convert(source: Path, destination: Path, expect: str | None = None, checkpoint_key: str | None = None) -> str:
    """Reads, recognises and checks ``source`` as the loader does, and writes its encoder alone, in float32, whole or not at all. Returns
    one line that says what was done. ``expect``: a name of ``EXPECTED``; a file of another layout is a UserError.

    .safetensors and the .pt of vision transformers carry where they come from; the .pt of a ResNet is the flat dictionary of ViRB 2021
    (``model.conv1.weight`` ...), which that program reads too."""
    if destination.suffix not in SUFFIXES:
        raise UserError(f"{destination}: expected a name that ends in {', '.join(SUFFIXES)}")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UserError(f"{destination} is the file to be converted; name another one")
    checkpoint = checkpoints.read(source)
    known = bool(places(checkpoint, checkpoint_key))
    encoder = None if known else _build(*recognise(checkpoint, checkpoint_key))
    place = choose(checkpoint, checkpoint_key, () if encoder is None else encoder.network.state_dict())
    if expect is not None and place.rule.kind not in EXPECTED[expect]:
        raise UserError(f"{source} is no {expect} checkpoint: its layout is {place.rule.name}\n  try   virb convert {source} {destination}")
    architecture, arguments = recognise(checkpoint, checkpoint_key)
    encoder = encoder or _build(architecture, arguments)
    fill(encoder.network, checkpoint, encoder.spec.architecture, encoder.ignored or ("head.",), checkpoint_key)
    state = {name: tensor.contiguous() for name, tensor in encoder.network.state_dict().items()}
    digest = _sha256(checkpoint.path)
    metadata = {
        FORMAT: "1",
        "virb.source": source.name,
        "virb.sha256": digest,
        "virb.architecture": architecture,
        "virb.arguments": json.dumps(arguments),
        "virb.layout": ", ".join(part for part in (place.rule.name, str(place)) if part),
    }
    if checkpoint.training:
        metadata[TRAINING] = json.dumps(checkpoint.training)
    _write(destination, state, metadata, encoder.family == "resnet")
    left = f"; left out: {', '.join(sorted({*place.beside, *place.others}))}" if place.beside or place.others else ""
    where = f" ({place})" if str(place) else ""
    return (
        f"{source} -> {destination}: {place.rule.name}{where}, {encoder.spec.architecture}, {len(state)} tensors, "
        f"{encoder.spec.n_params:,} parameters{left}; sha256 of the source {digest[:16]}"
    )


def command(arguments: argparse.Namespace) -> int:
    """``virb convert IN OUT [--checkpoint_key KEY]``: attributes ``source``, ``destination``, ``checkpoint_key``."""
    line = convert(Path(arguments.source), Path(arguments.destination), checkpoint_key=arguments.checkpoint_key)
    sys.stdout.write(line + "\n")
    return 0


def main(expect: str, arguments: Sequence[str] | None = None) -> int:
    """A conversion script: IN OUT. Exit code 2 for a file that is not what the script is for."""
    parser = argparse.ArgumentParser(description=f"A {expect} checkpoint to ViRB weights (.pt or .safetensors).")
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("destination", metavar="OUT", type=Path)
    parser.add_argument("--checkpoint_key", help="another network of the file than the usual one: student, encoder_k ...")
    options = parser.parse_args(arguments)
    try:
        line = convert(options.source, options.destination, expect, options.checkpoint_key)
    except ViRBError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UserError) else 1
    sys.stdout.write(line + "\n")
    return 0


def _build(architecture: str, arguments: Mapping[str, Any]) -> Encoder:
    if architecture.startswith("timm:"):
        return timm.create(architecture.removeprefix("timm:"), arguments, pretrained=False)
    return build(architecture, arguments)


def _write(destination: Path, state: dict[str, Tensor], metadata: dict[str, str], as_in_2021: bool) -> None:
    if destination.suffix == ".safetensors":
        from safetensors.torch import save

        write_atomic(destination, _in_order(save(state, metadata)))
        return
    content: dict[str, Any] = (
        {f"model.{name}": tensor for name, tensor in state.items()} if as_in_2021 else {"state_dict": state, "virb": metadata}
    )

    def write(file: BinaryIO) -> None:
        torch.save(content, file)

    write_atomic(destination, write)


def _in_order(file: bytes) -> bytes:
    """safetensors writes metadata in another order in every process; in one order, the same weights are the same file."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[end:]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else hashlib.sha256(file.read()).hexdigest()
