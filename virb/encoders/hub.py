"""Encoders from torch.hub: ``{hub: facebookresearch/dinov2:dinov2_vits14}``, ``{hub: ./my_folder:entry}``.

Like ``module:``, this runs code: that of the repository, which is trusted because its name is in the experiment list (nobody is asked).
Name a commit (``owner/repo:<commit>:entry``) where it matters that the code stays the same. The entry's own weights are used; ``args:``
go to the entry. Nothing in a repository tells how images should be prepared: ImageNet's way is taken unless ``input:`` says otherwise.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.hub
from torch import nn

from virb.encoders import identity
from virb.encoders.base import Encoder, InputSpec
from virb.encoders.download import NotDownloaded
from virb.encoders.offline import only_cached
from virb.encoders.towers import check_finite, wrap
from virb.errors import UserError, ViRBError

_GITHUB = re.compile(r"(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)(:(?P<ref>[\w./-]+))?")
_HEADS = ("head", "heads", "fc", "classifier")
_BRANCHES = ("main", "master")
_modules: dict[str, Path] = {}  # what hub repositories have imported -> their folder


@dataclass(frozen=True)
class Entry:
    """A parsed ``hub:`` text. ``folder`` for one on this machine, else owner, repo and ref (None: the default branch)."""

    text: str
    name: str
    folder: Path | None = None
    owner: str = ""
    repo: str = ""
    ref: str | None = None

    @property
    def address(self) -> str:
        return f"https://github.com/{self.owner}/{self.repo}"

    @property
    def label(self) -> str:
        return f"hub:{self.folder.resolve().name}:{self.name}" if self.folder else f"hub:{self.text}"

    def cached(self) -> Path | None:
        """The repository's folder on this machine."""
        if self.folder is not None:
            return self.folder
        refs = (self.ref,) if self.ref else _BRANCHES
        folders = (Path(torch.hub.get_dir()) / f"{self.owner}_{self.repo}_{ref.replace('/', '_')}" for ref in refs)
        return next((folder for folder in folders if folder.is_dir()), None)


def parse(text: str) -> Entry:
    """UserError unless the text is owner/repo:entry, owner/repo:ref:entry or ./folder:entry."""
    where, _, name = text.rpartition(":")
    if name.isidentifier():
        if where.startswith((".", "/", "~")):
            return Entry(text, name, folder=Path(where).expanduser())
        found = _GITHUB.fullmatch(where)
        if found:
            return Entry(text, name, owner=found["owner"], repo=found["repo"], ref=found["ref"])
    raise UserError(f"hub: {text!r} should be owner/repo:entry, owner/repo:ref:entry or ./folder:entry")


def create(text: str, arguments: Mapping[str, Any], spec: InputSpec, *, offline: bool = False) -> tuple[Encoder, dict[str, Any]]:
    """An unsealed encoder, and what identifies its code. ``offline``: NotDownloaded instead of a download."""
    entry = parse(text)
    folder, network = _build(entry, arguments, offline)
    check_finite(network, entry.label)
    record = {
        "class": type(network).__qualname__,
        "settings": identity.settings_of(network),
        "repository": _hash_sources(folder),
    }
    return _encoder(network, entry, arguments, spec), record


def _build(entry: Entry, arguments: Mapping[str, Any], offline: bool) -> tuple[Path, nn.Module]:
    folder = entry.cached()
    place = Path(torch.hub.get_dir()) / f"{entry.owner}_{entry.repo}_{(entry.ref or 'main').replace('/', '_')}"
    if folder is None and offline:
        advice = f"a run puts it in torch.hub's cache; without a network, put a clone of it at {place}"
        raise NotDownloaded(f"not downloaded yet: {entry.address}\n  {advice}", entry.address)
    if folder is not None and not (folder / "hubconf.py").is_file():
        raise UserError(f"{entry.label}: {folder} has no hubconf.py")
    source, repository = ("local", str(folder)) if folder else ("github", entry.text.rpartition(":")[0])
    _forget_others(folder)
    before = set(sys.modules)
    weights = f"a run puts its weights in {Path(torch.hub.get_dir()) / 'checkpoints'}; without a network, put them there yourself"
    try:
        with only_cached(offline, entry.address, weights):
            network = torch.hub.load(
                repository, entry.name, source=source, trust_repo=True, skip_validation=True, verbose=False, **arguments
            )
    except ViRBError:
        raise
    except Exception as error:  # the repository's code may raise anything
        arrived = folder or entry.cached()
        if arrived is None or isinstance(error, OSError):  # torch.hub may say with a RuntimeError that it cannot get the repository
            clone = "" if entry.folder else f"a clone of {entry.address} at {place} and "
            raise UserError(
                f"cannot get {entry.label} ({type(error).__name__}: {error})\n"
                f"  without a network, put {clone}its weights in {Path(torch.hub.get_dir()) / 'checkpoints'}"
            ) from error
        raise UserError(f"{entry.label} cannot be built with {dict(arguments)}: {type(error).__name__}: {error}") from error
    finally:
        _remember(folder or entry.cached(), before)
    if not isinstance(network, nn.Module):
        raise UserError(f"{entry.label} gives a {type(network).__name__}; expected a torch.nn.Module")
    found = folder or entry.cached()
    if found is None:
        raise ViRBError(f"{entry.label}: torch.hub did not put the repository at {place}")
    return found, network.eval()


def _encoder(network: Any, entry: Entry, arguments: Mapping[str, Any], spec: InputSpec) -> Encoder:
    """With the adapter that knows most about the network. Classifiers are taken off: an encoder gives features."""
    from timm.data import resolve_model_data_config
    from torchvision.models import ResNet

    from virb.encoders.resnet import ResNetEncoder
    from virb.encoders.timm import TimmEncoder

    label = entry.label
    if hasattr(network, "forward_intermediates") and hasattr(network, "forward_head") and resolve_model_data_config(network):
        encoder: Encoder = TimmEncoder(network, label, arguments)
        encoder.spec = replace(encoder.spec, architecture=label)
    elif isinstance(network, ResNet):
        if not isinstance(network.fc, nn.Linear):
            network.fc = nn.Linear(network.layer4[-1].conv1.in_channels, 1)  # what ResNetEncoder takes off
        encoder = ResNetEncoder(network, label)
    else:
        for head in _HEADS:
            part = getattr(network, head, None)
            if isinstance(part, nn.Linear) or (isinstance(part, nn.Sequential) and len(part) and isinstance(part[-1], nn.Linear)):
                setattr(network, head, nn.Identity())
        return wrap(network, label, arguments, spec)
    return encoder


# Repositories call their packages models, utils ...: without this, the second one would get the first one's.


def _forget_others(folder: Path | None) -> None:
    for name, owner in list(_modules.items()):
        if folder is None or owner != folder.resolve():
            sys.modules.pop(name, None)
            del _modules[name]


def _remember(folder: Path | None, before: set[str]) -> None:
    if folder is None:
        return
    inside = folder.resolve()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and inside in Path(file).resolve().parents:
            _modules[name] = inside


def _hash_sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()
