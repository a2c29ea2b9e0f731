"""Image towers of open_clip: ``{open_clip: ViT-B-32/laion2b_s34b_b79k}``, ``{open_clip: hf-hub:owner/name}``. Needs ``virb[open_clip]``.

``embedding`` is the tower's image feature in the space that it shares with text (not normalised); the text tower is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from virb.encoders.base import Encoder, InputSpec
from virb.encoders.offline import only_cached
from virb.encoders.towers import check_finite, wrap
from virb.errors import UserError, did_you_mean


def parse(text: str, random: bool) -> tuple[str, str | None]:
    """(model, tag); the tag is None for models that bring their own weights, and for random ones."""
    if text.startswith(("hf-hub:", "local-dir:")):
        return text, None
    model, _, tag = text.partition("/")
    if not tag and not random:
        raise UserError(f"open_clip: {text!r} should be MODEL/WEIGHTS such as ViT-B-32/laion2b_s34b_b79k")
    return model, None if random else tag


def create(
    text: str, arguments: Mapping[str, Any], changes: Mapping[str, Any], *, random: bool = False, offline: bool = False
) -> tuple[Encoder, str, dict[str, Any]]:
    """An unsealed encoder, one line about its weights, and what identifies the model."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"open_clip: encoders need open_clip ({error}): pip install 'virb[open_clip]'") from error
    model_name, tag = parse(text, random)
    if ":" not in model_name:
        _check_names(open_clip, model_name, tag)
    address, advice = _where(open_clip, model_name, tag)
    try:
        with only_cached(offline, address, advice):
            model = open_clip.create_model(
                model_name, pretrained=tag, load_weights=not random, require_pretrained=not random, precision="fp32", **arguments
            )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        what = f"open_clip:{text} cannot be loaded: {(str(error).strip().splitlines() or [''])[0][:200]}"
        raise UserError(f"{what}\n  {advice}" if tag or ":" in model_name else what) from error
    tower = model.visual.float().eval()
    label = f"open_clip:{text}"
    check_finite(tower, label)
    spec = _input_spec(open_clip.get_model_preprocess_cfg(model)).override(changes)
    source = f"{label}, {'random weights' if random else f'weights of {address}'}"
    return wrap(tower, label, arguments, spec), source, {"model": open_clip.get_model_config(model_name) or model_name}


def _check_names(open_clip: Any, model: str, tag: str | None) -> None:
    models = open_clip.list_models()
    if model not in models:
        raise UserError(f"open_clip has no model {model!r}{did_you_mean(model, models)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag is not None and tag not in tags:
        raise UserError(f"open_clip has no weights {tag!r} of {model}{did_you_mean(tag, tags)} (weights: {', '.join(tags) or 'none'})")


def _where(open_clip: Any, model: str, tag: str | None) -> tuple[str, str]:
    """The address of the weights, and which cache to fill."""
    from huggingface_hub import constants

    cfg = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    repository = cfg.get("hf_hub") or (model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else "")
    if repository:
        owner_name = "/".join(repository.split("/")[:2])
        advice = f"without a network, fill the cache {constants.HF_HUB_CACHE} from a machine that has one (hf download {owner_name})"
        return f"https://huggingface.co/{owner_name}", advice
    url = cfg.get("url") or model
    return url, f"without a network, put {url.rpartition('/')[2]} in ~/.cache/clip"


def _input_spec(cfg: Mapping[str, Any]) -> InputSpec:
    size = cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = cfg.get("resize_mode") == "squash"
    interpolation: Any = cfg.get("interpolation", "bicubic")
    return InputSpec(
        size=(int(height), int(width)),
        resize="squash" if squash else "shorter",
        crop="none" if squash else "center",
        crop_pct=1.0,
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        mean=tuple(map(float, cfg["mean"])),  # type: ignore[arg-type]
        std=tuple(map(float, cfg["std"])),  # type: ignore[arg-type]
    )
