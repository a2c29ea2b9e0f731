"""What was asked for, as an unchanging record: one entry of an experiment list, with short names and addresses resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from virb.encoders.download import check_sha256, weights_file
from virb.encoders.known import KNOWN
from virb.errors import UserError, did_you_mean
from virb.transfer import Tell, is_url

RANDOM, SUPERVISED, PRETRAINED = "random", "supervised", "pretrained"
WORDS = (RANDOM, SUPERVISED, PRETRAINED)
NETWORKS = ("arch", "timm", "module", "hub", "hf", "open_clip")  # which network; one of them at most
_TEXTS = ("weights", "url", "sha256", *NETWORKS, "checkpoint_key")
_KEYS = (*_TEXTS, "args", "input", "meta")
_PREFIXES = ("timm:", "hub:", "hf:", "open_clip:")  # of a text alone


@dataclass(frozen=True)
class Recipe:
    """One entry of an experiment list; texts are None where nothing was said."""

    weights: str | None = None
    url: str | None = None
    sha256: str | None = None
    arch: str | None = None
    timm: str | None = None
    module: str | None = None
    hub: str | None = None
    hf: str | None = None
    open_clip: str | None = None
    checkpoint_key: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)

    @property
    def networks(self) -> list[str]:
        return [key for key in NETWORKS if getattr(self, key) is not None]

    @property
    def default_name(self) -> str:
        """What an encoder is called that was given no name."""
        last = (self.hub or "").rpartition(":")[2] or (self.hf or "").partition("@")[0].rpartition("/")[2]
        label = self.timm or (self.module or "").rpartition(":")[2] or last or (self.open_clip or "").replace("/", "-") or self.arch
        return label or (Path(self.weights).stem if self.weights else "encoder")

    def weights_path(self) -> Path:
        """The file that ``weights`` names; UserError for a word that does not fit the network."""
        if self.weights in (SUPERVISED, PRETRAINED):
            valid = "timm models and hubs" if self.weights == PRETRAINED else "torchvision's ResNets"
            raise UserError(f"`weights: {self.weights}` is for {valid}; name a file, or `weights: random`")
        return Path(str(self.weights)).expanduser()


def read_recipe(what: Any) -> Recipe:
    """From a path, an address, a short name, ``timm:NAME`` (``hub:`` ...), or a mapping or object with the keys of an experiment list."""
    if isinstance(what, str | PathLike):
        text = str(what)
        prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), None)
        return replace(Recipe(), **{prefix[:-1]: text.removeprefix(prefix)}) if prefix else Recipe(weights=text)  # type: ignore[arg-type]
    if isinstance(what, Mapping):
        for key in what:
            if key not in _KEYS:
                raise UserError(f"unknown key {key!r} of an encoder{did_you_mean(str(key), _KEYS)} (keys: {', '.join(_KEYS)})")
        values = dict(what)
    elif any(hasattr(what, key) for key in ("weights", *NETWORKS)):
        values = {key: getattr(what, key, None) for key in _KEYS}
    else:
        raise UserError(f"expected a path, timm:NAME, a mapping, a torch.nn.Module or an encoder, but got {type(what).__name__}")
    texts = {key: _text(key, values.get(key)) for key in _TEXTS}
    recipe = Recipe(**texts, args=_mapping("args", values.get("args")), input=_mapping("input", values.get("input")))
    if len(recipe.networks) > 1:
        raise UserError(f"an encoder has one of {', '.join(NETWORKS[:-1])} and {NETWORKS[-1]}, but got {' and '.join(recipe.networks)}")
    prefix = next((prefix for prefix in _PREFIXES if (recipe.weights or "").startswith(prefix)), None)
    if prefix is not None:
        raise UserError(f"weights: {recipe.weights} is no file; write {prefix} {str(recipe.weights).removeprefix(prefix)}")
    return recipe


def resolve(recipe: Recipe, *, offline: bool = False, progress: Tell | None = None) -> Recipe:
    """The same with ``weights`` a word or a local file: a short name gives its address, network and input where nothing else was said;
    what has an address is downloaded unless it is there (``offline``: NotDownloaded). ``sha256`` is checked here."""
    known = KNOWN.get(recipe.weights or "")
    if known is not None:
        if not recipe.networks:
            recipe = replace(recipe, arch=known.arch, timm=known.timm, args={**known.args, **recipe.args})
        recipe = replace(recipe, weights=known.url, input={**known.input, **recipe.input})
    if recipe.weights is None or recipe.weights in ("", *WORDS):
        extra = next((key for key in ("url", "sha256") if getattr(recipe, key) is not None), None)
        if extra is not None:
            raise UserError(f"{extra} is of a weights file, but no file is given in weights")
        return recipe
    if recipe.sha256 is not None and (len(recipe.sha256) != 64 or not all(digit in "0123456789abcdef" for digit in recipe.sha256.lower())):
        raise UserError(f"sha256 is {recipe.sha256!r}; expected 64 hexadecimal digits")
    if is_url(recipe.weights):
        if recipe.url is not None:
            raise UserError("weights and url are both addresses; give a file name in weights")
        path = weights_file(recipe.weights, sha256=recipe.sha256, offline=offline, progress=progress)
        return replace(recipe, weights=str(path))
    path = Path(recipe.weights).expanduser()
    if recipe.url is not None:
        weights_file(recipe.url, path=path, sha256=recipe.sha256, offline=offline, progress=progress)
    elif path.is_file():
        check_sha256(path, recipe.sha256)
    return recipe


def _text(key: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, PathLike):
        return str(value)
    raise UserError(f"{key} is {value!r}; expected text")


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):  # a pydantic record: only what was set
        return value.model_dump(exclude_unset=True, exclude_none=True)
    raise UserError(f"{key} is {value!r}; expected a mapping")
