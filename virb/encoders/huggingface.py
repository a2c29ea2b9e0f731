"""Vision models of Hugging Face: ``{hf: facebook/dinov2-small}``, ``{hf: owner/name@revision}``, ``{hf: ./folder}``. Needs ``virb[hf]``.

Only models that transformers itself has: code from a repository is never run. Of models with a text tower the vision tower is taken.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from virb.encoders.base import Encoder, InputSpec
from virb.encoders.custom import CustomEncoder
from virb.encoders.offline import only_cached
from virb.encoders.towers import check_finite, is_tower, wrap
from virb.errors import UserError

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers; lanczos (1) is not offered, bicubic is nearest to it
_EXEMPT = ("mask_token", "position_ids", "num_batches_tracked")  # last parts of names that no output depends on


class HuggingFaceModel(nn.Module):
    """``forward``: a dict with ``embedding``, the model's own pooled feature, else [CLS] after the final norm, else the mean token; with
    ``maps`` also ``tokens`` and ``pyramid``, where the model gives maps."""

    def __init__(self, model: Any, pooled: bool, maps: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.pooled = pooled
        self.maps = maps
        accepted = inspect.signature(model.forward).parameters
        self.options: dict[str, Any] = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self.takes_noise = "noise" in accepted  # MAE drops and shuffles patches in the order of a noise
        if self.takes_noise:
            self.model.config.mask_ratio = 0.0

    def forward(self, images: Tensor) -> dict[str, Any]:
        options = dict(self.options)
        if self.takes_noise:
            patch = self.model.config.patch_size
            count = (images.shape[2] // patch) * (images.shape[3] // patch)
            options["noise"] = torch.arange(count, device=images.device).expand(len(images), -1).float()
        answer = self.model(pixel_values=images, output_hidden_states=self.maps, **options)
        last = answer.last_hidden_state
        pooled = getattr(answer, "pooler_output", None) if self.pooled else None
        if pooled is None:
            pooled = last.mean(dim=(2, 3)) if last.ndim == 4 else last[:, 0] if self._has_cls() else last.mean(dim=1)
        found: dict[str, Any] = {"embedding": pooled.flatten(1)}
        if self.maps:
            levels = getattr(answer, "reshaped_hidden_states", None) or answer.hidden_states or ()
            pyramid = [level for level in levels if level.ndim == 4]
            if pyramid:
                found |= {"pyramid": pyramid, "tokens": last if last.ndim == 4 else pyramid[-1]}
        return found

    def _has_cls(self) -> bool:
        return any(name.endswith(("cls_token", "class_embedding")) for name, _ in self.model.named_parameters())


def create(
    name: str, arguments: Mapping[str, Any], spec_changes: Mapping[str, Any], *, random: bool = False, offline: bool = False
) -> tuple[Encoder, str, dict[str, Any]]:
    """An unsealed encoder, one line about its weights, and what identifies the model. ``random``: its config, with weights drawn."""
    _transformers()
    where, _, revision = name.partition("@")
    local = Path(where).expanduser() if where.startswith((".", "/", "~")) else None
    if local is not None and not local.is_dir():
        raise UserError(f"hf: there is no folder {where}")
    advice = f"a run downloads it; {_fill_cache(where)}"
    with only_cached(offline, f"https://huggingface.co/{where}", advice):
        network, missing, config = _model(name, str(local or where), revision or None, arguments, random, offline)
        spec = _input_spec(name, str(local or where), revision or None, offline, config, spec_changes)
    unfilled = [key for key in missing if key.rpartition(".")[2] not in _EXEMPT]
    pooled = not any(key.startswith("pooler.") for key in unfilled)  # ViT's pooler is not in DINO's files: it would be random
    unfilled = [key for key in unfilled if not key.startswith("pooler.")]
    if unfilled:
        raise UserError(f"hf:{name}: its files do not fill {len(unfilled)} parameters ({', '.join(unfilled[:3])} ...)")
    if not pooled:
        network.pooler = None
    label = f"hf:{local.resolve().name if local else where}"
    check_finite(network, label)
    commit = getattr(config, "_commit_hash", None)
    source = f"{label}{f' at {commit[:12]}' if commit else ''}, {type(network).__name__}" + (", random weights" if random else "")
    record = {"class": type(network).__name__, "config": _plain(config), "pooled": pooled}
    model = HuggingFaceModel(network, pooled, maps=False)
    if is_tower(network):
        encoder = wrap(model, label, arguments, spec)
        if not isinstance(encoder, CustomEncoder):
            return encoder, source, record
    return CustomEncoder(HuggingFaceModel(network, pooled, maps=True), label, arguments, spec), source, record


def _model(
    name: str, where: str, revision: str | None, arguments: Mapping[str, Any], random: bool, offline: bool
) -> tuple[Any, list[str], Any]:
    """The vision network, which of its tensors the files did not fill, and its config."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    options: dict[str, Any] = {"revision": revision, "local_files_only": offline, "trust_remote_code": False}
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what it would warn of is checked here
    logging.disable_progress_bar()
    try:
        config, unknown = AutoConfig.from_pretrained(where, return_unused_kwargs=True, **options, **arguments)
        unknown = [key for key in unknown if key in arguments]
        if unknown:
            raise UserError(f"hf:{name}: its config has no {', '.join(unknown)}")
        if random:
            model, info = AutoModel.from_config(config), {}
        else:
            model, info = AutoModel.from_pretrained(where, config=config, output_loading_info=True, dtype=torch.float32, **options)
    except OSError as error:
        if offline:
            raise
        raise UserError(f"cannot get hf:{name} ({str(error).strip().splitlines()[0][:160]})\n  {_fill_cache(where)}") from error
    except (ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        raise UserError(f"hf:{name} cannot be loaded: {(str(error).strip().splitlines() or [''])[0][:200]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = [str(key) for key in info.get("missing_keys", ())] + [str(item[0]) for item in info.get("mismatched_keys", ())]
    inner = getattr(model, "vision_model", None)
    if isinstance(inner, nn.Module) and hasattr(config, "vision_config"):
        missing = [key.removeprefix("vision_model.") for key in missing if key.startswith("vision_model.")]
        model, config = inner, config.vision_config
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        raise UserError(f"hf:{name} is no vision model: {type(model).__name__} reads {model.main_input_name}")
    return model.float().eval(), missing, config


def _input_spec(name: str, where: str, revision: str | None, offline: bool, config: Any, changes: Mapping[str, Any]) -> InputSpec:
    """What the repository's image processor does, as an InputSpec, changed by what the user says."""
    processor = _processor(where, revision, offline)
    if processor is None:
        if {"mean", "std"} <= changes.keys():
            size = getattr(config, "image_size", 224)
            return InputSpec(size=(size, size) if isinstance(size, int) else tuple(size), interpolation="bicubic").override(changes)
        raise UserError(f"hf:{name} has no preprocessor_config.json; say how images are prepared: input: {{size: …, mean: …, std: …}}")
    return read_processor(processor).override(changes)


def read_processor(processor: Mapping[str, Any]) -> InputSpec:
    """A ``preprocessor_config.json`` as an InputSpec."""
    resized, cropped = _sides(processor.get("size")), _sides(processor.get("crop_size"))
    crops = bool(processor.get("do_center_crop", cropped is not None)) and cropped is not None
    size = cropped if crops and cropped else resized or cropped or (224, 224)
    shorter = isinstance(processor.get("size"), int) or "shortest_edge" in (processor.get("size") or {})
    if "crop_pct" in processor and min(size) >= 384:  # ConvNeXt's rule
        shorter = crops = False
    crop_pct = processor.get("crop_pct") or (min(size) / min(resized) if crops and resized else 1.0)
    normalises = processor.get("do_normalize", True)
    scale = float(processor.get("rescale_factor") or 1 / 255) * 255 if processor.get("do_rescale", True) else 255.0
    mean, std = (
        (processor.get("image_mean") or [0.0] * 3, processor.get("image_std") or [1.0] * 3) if normalises else ([0.0] * 3, [1.0] * 3)
    )
    interpolation: Any = _INTERPOLATIONS.get(processor.get("resample", 3), "bicubic")
    return InputSpec(
        size=size,
        resize="shorter" if shorter or crops else "squash",
        crop="center" if shorter or crops else "none",
        crop_pct=min(1.0, float(crop_pct)) if shorter or crops else 1.0,
        interpolation=interpolation,
        mean=tuple(float(value) / scale for value in mean),  # type: ignore[arg-type]
        std=tuple(float(value) / scale for value in std),  # type: ignore[arg-type]
    )


def _sides(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        return (int(edge), int(edge)) if edge else (int(value["height"]), int(value["width"])) if value.get("height") else None
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) and len(value) == 2 else None


def _processor(where: str, revision: str | None, offline: bool) -> dict[str, Any] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in ("preprocessor_config.json", "processor_config.json"):
        path = Path(where) / file
        if not Path(where).is_dir():
            try:
                path = Path(hf_hub_download(where, file, revision=revision, local_files_only=offline))
            except EntryNotFoundError:  # or, offline, not in the cache
                continue
        with suppress(FileNotFoundError):
            content = json.loads(path.read_text(encoding="utf-8"))
            return content.get("image_processor", content)
    return None


def _plain(config: Any) -> dict[str, Any]:
    told = json.loads(json.dumps(config.to_dict(), default=repr))
    return {key: value for key, value in told.items() if key not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype")}


def _transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"hf: encoders need transformers ({error}): pip install 'virb[hf]'") from error


def _fill_cache(where: str) -> str:
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    return f"without a network, fill the cache {cache}\n  from a machine that has one (hf download {where}), or name a folder"
