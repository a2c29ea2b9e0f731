"""What the YAML files become: encoders and tasks as checked, unchanging records."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator

from virb.config.check import Strict, describe
from virb.config.tree import Where

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
NETWORKS = ("arch", "timm", "module", "hub", "hf", "open_clip")  # keys that say which network an encoder is
WEIGHT_WORDS = ("random", "supervised", "pretrained")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
OBJECT_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # package.module:Name

_REPOSITORY = r"[\w.-]+/[\w.-]+"
_FOLDER = r"[./~].*"
_FORMS = {
    "module": (OBJECT_NAME, "package.module:Class"),
    "hub": (re.compile(rf"({_REPOSITORY}(:[\w./-]+)?|{_FOLDER}):[A-Za-z_]\w*"), "owner/repo:entry, owner/repo:ref:entry or ./folder:entry"),
    "hf": (re.compile(rf"{_REPOSITORY}(@[\w./-]+)?|{_FOLDER}"), "owner/name, owner/name@revision or ./folder"),
    "open_clip": (re.compile(r"[\w.-]+(/[\w.-]+)?|(hf-hub|local-dir):.+"), "MODEL/WEIGHTS such as ViT-B-32/laion2b_s34b_b79k"),
}


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(value: Any) -> Any:
    if value is None:
        return None
    sides = [value, value] if _whole(value) else list(value) if isinstance(value, (list, tuple)) else []
    if len(sides) != 2 or not all(_whole(side) and side >= 1 for side in sides):
        raise ValueError(f"expected a size in pixels or [height, width], got {describe(value)}")
    return tuple(sides)


def _three_numbers(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_number, value)):
        raise ValueError(f"expected three numbers (red, green, blue), got {describe(value)}")
    return tuple(float(number) for number in value)


def _views(value: Any) -> Any:
    if value is None or value == "fresh" or (_whole(value) and value >= 1):
        return value
    raise ValueError(f"expected a whole number of at least 1, or fresh, got {describe(value)}")


def _seeds(value: Any) -> Any:
    if value is None:
        return None
    if _whole(value) and value >= 1:
        return tuple(range(value))
    if isinstance(value, (list, tuple)) and value and all(_whole(seed) and seed >= 0 for seed in value):
        if len(set(value)) < len(value):
            raise ValueError(f"a seed is given twice in {describe(value)}")
        return tuple(value)
    raise ValueError(f"expected how many seeds, or a list of seeds (whole numbers from 0), got {describe(value)}")


def _features(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) and item.strip() for item in value):
        if len(set(value)) < len(value):
            raise ValueError(f"a request is given twice in {describe(value)}")
        return tuple(value)
    raise ValueError(f"expected a request such as embedding, or a list of requests, got {describe(value)}")


def _only_finite(value: Any) -> Any:
    """Free-form values are hashed and written as strict JSON, which knows neither NaN nor infinity."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _only_finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {describe(value)}")
    return value


class InputOverride(Strict):
    """How images reach an encoder; what is None stays the encoder's own. ``size`` is (height, width) in pixels."""

    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    resize: Literal["squash", "shorter"] | None = None
    crop: Literal["center", "none"] | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    mean: Annotated[tuple[float, float, float] | None, BeforeValidator(_three_numbers)] = None
    std: Annotated[tuple[float, float, float] | None, BeforeValidator(_three_numbers)] = None
    channels: Literal["rgb", "bgr"] | None = None

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and min(value) <= 0:
            raise ValueError(f"expected three numbers above 0, got {describe(value)}")
        return value


class EncoderKeys(Strict):
    """The keys of one entry of an experiment list. At most one of ``NETWORKS``."""

    weights: Text | None = None  # a file, an address, a short name, or one of WEIGHT_WORDS
    url: Text | None = None  # where the file that weights names is downloaded from when it is not there
    sha256: Text | None = None  # of the weights file
    arch: Text | None = None
    timm: Text | None = None
    module: Text | None = None  # package.module:Class
    hub: Text | None = None  # owner/repo:entry, owner/repo:ref:entry or ./folder:entry
    hf: Text | None = None  # owner/name, owner/name@revision or ./folder
    open_clip: Text | None = None  # MODEL/WEIGHTS
    checkpoint_key: Text | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    input: InputOverride | None = None
    meta: dict[str, Any] = Field(default_factory=dict)

    @field_validator("args", "meta")
    @classmethod
    def _finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _only_finite(value)

    @field_validator(*NETWORKS)
    @classmethod
    def _one_kind(cls, value: str | None, info: ValidationInfo) -> str | None:
        other = next((key for key in NETWORKS if key != info.field_name and info.data.get(key) is not None), None)
        if value is not None and other is not None:
            raise ValueError(f"{other} is given too; give one of {', '.join(NETWORKS[:-1])} and {NETWORKS[-1]}")
        pattern, form = _FORMS.get(str(info.field_name), (None, ""))
        if value is not None and pattern is not None and not pattern.fullmatch(value):
            raise ValueError(f"expected {form}, got {describe(value)}")
        return value

    @field_validator("url")
    @classmethod
    def _address_of_a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not is_url(value):
            raise ValueError(f"expected an address that starts with https://, got {describe(value)}")
        if value is not None and "weights" in info.data:
            weights = info.data["weights"]
            if weights is None or weights in WEIGHT_WORDS:
                raise ValueError("is where a file is from, but no file is given in weights")
            if is_url(weights):
                raise ValueError("weights is an address too; give a file name there")
        return value

    @field_validator("sha256")
    @classmethod
    def _digits(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not SHA256.fullmatch(value):
            raise ValueError(f"expected 64 hexadecimal digits, got {describe(value)}")
        if value is not None and "weights" in info.data and info.data["weights"] in (None, *WEIGHT_WORDS):
            raise ValueError("is of a weights file, but no file is given in weights")
        return value

    @field_validator("checkpoint_key")
    @classmethod
    def _needs_a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and "weights" in info.data and info.data["weights"] in (None, *WEIGHT_WORDS):
            raise ValueError("names a part of a weights file, but no file is given in weights")
        return value


class EncoderConfig(EncoderKeys):
    """One encoder. The torchvision-supervised ResNet-50 of an empty ViRB 2021 path is arch ``resnet50`` with weights ``supervised``."""

    name: str
    where: Where = Field(exclude=True, repr=False)  # not part of equality

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncoderConfig) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.name)


class WindowKeys(Strict):
    """Sliding windows over images that are scored: ``size`` and ``stride`` in pixels of the image brought to ``shorter``, where given."""

    size: Annotated[tuple[int, int], BeforeValidator(_size)]
    stride: Annotated[tuple[int, int], BeforeValidator(_size)]
    shorter: Count | None = None

    @field_validator("stride")
    @classmethod
    def _no_gaps(cls, value: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        size = info.data.get("size")
        if size is not None and (value[0] > size[0] or value[1] > size[1]):
            raise ValueError(f"leaves gaps between windows of {size[0]} x {size[1]}; expected at most that")
        return value


class TaskSettings(Strict):
    """What the YAML schema of a task and its record share; None means not given."""

    task: Text  # an id, or package.module:attribute
    probe: Text | None = None
    protocol: Text | None = None
    num_epochs: Count | None = None
    batch_size: Count | None = None
    test_batch_size: Count | None = None
    pre_encode: bool | None = None
    task_head_weights_path: Text | None = None  # a glob; %s stands for the encoder's name
    head_layout: Literal["interleaved", "concatenated"] | None = None  # of such heads on two vectors, where others trained them
    heads_from: Text | None = None  # the label whose heads are scored
    class_map: dict[str, Text] | None = None  # class of this task -> class of the heads, where the names differ
    selection: Literal["val", "test-last", "test-best"] | None = None
    seeds: Annotated[tuple[int, ...] | None, BeforeValidator(_seeds)] = None
    data: dict[str, Any] | None = None
    limit: dict[str, Count] | None = None  # split -> how many of its samples take part
    features: Annotated[str | tuple[str, ...] | None, BeforeValidator(_features)] = None
    refit: bool | None = None
    train_encoder: bool | None = None
    on_bad_image: Literal["error", "skip"] | None = None
    windows: WindowKeys | None = None  # pixelwise: scored images are seen through sliding windows
    score_size: Count | None = (
        None  # pixelwise: longer side, in the frame of the input, at which predictions meet targets; not given: native size
    )
    augment: Literal["none", "crop-flip", "scale-crop-flip", "scale-crop-flip-colour"] | None = None

    @field_validator("task_head_weights_path")
    @classmethod
    def _one_placeholder(cls, value: str | None) -> str | None:
        if value is not None and value.count("%s") > 1:
            raise ValueError(f"expected at most one %s (the encoder's name), got {describe(value)}")
        return value

    @field_validator("heads_from")
    @classmethod
    def _heads_once(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("task_head_weights_path") is not None:
            raise ValueError("task_head_weights_path gives the heads already; leave out one of them")
        return value

    @field_validator("class_map", "limit")
    @classmethod
    def _not_empty(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and not value:
            raise ValueError("is empty")
        return value

    @field_validator("train_encoder")
    @classmethod
    def _no_fine_tuning_yet(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("fine-tuning is not available yet")
        return value

    @field_validator("data")
    @classmethod
    def _root_is_a_path(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        _only_finite(value)
        if value and "root" in value and not (isinstance(value["root"], str) and value["root"]):
            raise ValueError(f"root: expected a path, got {describe(value['root'])}")
        return value


class TaskKeys(TaskSettings):
    """The keys of one task in YAML."""

    num_dataset_repeats: Count | None = None  # ViRB 2021's name of views
    views: Annotated[int | Literal["fresh"] | None, BeforeValidator(_views)] = None
    training_configs: dict[str, Any] | None = None
    grid: dict[str, Any] | None = None

    @field_validator("views")
    @classmethod
    def _not_twice(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("num_dataset_repeats") is not None:
            raise ValueError("given twice: num_dataset_repeats is its old name")
        return value

    @field_validator("views", "num_dataset_repeats")
    @classmethod
    def _fits_pre_encode(cls, value: Any, info: ValidationInfo) -> Any:
        pre_encode = info.data.get("pre_encode")
        if value == "fresh" and pre_encode is True:
            raise ValueError("fresh views cannot be encoded in advance; leave out pre_encode: true")
        if value not in (None, 1, "fresh") and pre_encode is False:
            raise ValueError(f"{value} views are encoded in advance; leave out pre_encode: false")
        return value

    @field_validator("training_configs", "grid")
    @classmethod
    def _some_use(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and not value:
            raise ValueError("is empty")
        for key in ("task_head_weights_path", "heads_from"):
            if value is not None and info.data.get(key) is not None:
                raise ValueError(f"nothing is trained when {key} gives the head; leave out one of them")
        return value


class TaskConfig(TaskSettings):
    """One task of a file. ``training_configs`` are checked by the probe's own record and include those of ``grid``.

    ``explicit`` has the place of every key that was given (``views`` also when written as num_dataset_repeats; a key of the file's
    ``defaults`` points there), ``by_defaults`` the keys that were given there, ``config_where`` the place of every training config. Neither
    they nor ``where`` are part of equality.
    """

    label: str
    views: int | Literal["fresh"] | None = None
    training_configs: dict[str, SerializeAsAny[BaseModel]] | None = None
    explicit: dict[str, Where] = Field(exclude=True, repr=False)
    by_defaults: frozenset[str] = Field(default=frozenset(), exclude=True, repr=False)
    config_where: dict[str, Where] = Field(default_factory=dict, exclude=True, repr=False)
    where: Where = Field(exclude=True, repr=False)

    def on_task(self, key: str) -> bool:
        """Whether the task itself gives the key, not the file's ``defaults`` for all of its tasks."""
        return key in self.explicit and key not in self.by_defaults

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskConfig) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.label)
