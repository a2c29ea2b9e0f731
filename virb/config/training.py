"""Training configs of heads that are trained by gradients: optimizer, learning rate, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from virb.config.check import MissingKey, Strict

Optimizer = Literal["sgd", "adam", "adamw"]
ScheduleType = Literal["none", "StepLR", "OneCycle", "Poly", "cosine"]

_REQUIRED = object()
# Which parameters a schedule takes, and their defaults. OneCycle is ViRB 2021's (linear, per epoch) with torch's defaults for the rest.
_PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {},
    "StepLR": {"per": "epoch", "step_size": _REQUIRED, "gamma": _REQUIRED},
    "OneCycle": {
        "per": "epoch",
        "pct_start": 0.3,
        "div_factor": 25.0,
        "final_div_factor": 1e4,
        "anneal": "linear",
        "cycle_momentum": True,
        "base_momentum": 0.85,
        "max_momentum": 0.95,
    },
    "Poly": {"per": "step", "exponent": _REQUIRED, "warmup": 0},
    "cosine": {"per": "epoch", "min_lr": 0.0, "warmup": 0},
}


def word(*words: str) -> Callable[[Any], Any]:
    """Accepts one of ``words`` in any case; anything else is passed on for the record to refuse."""
    folded = {valid.casefold(): valid for valid in words}
    return lambda value: folded.get(value.casefold(), value) if isinstance(value, str) else value


Fraction = Annotated[float, Field(ge=0, lt=1)]


class SchedulerConfig(Strict):
    """A learning-rate schedule. Parameters of the other types are None; those of its own type always have a value.

    ``per`` says what one step of the schedule is: an optimizer step or an epoch. ``step_size`` and ``warmup`` count in that unit.
    """

    type: Annotated[ScheduleType, BeforeValidator(word(*_PARAMETERS))]
    per: Literal["step", "epoch"] | None = None
    step_size: Annotated[int, Field(ge=1)] | None = None
    gamma: Annotated[float, Field(gt=0)] | None = None
    exponent: Annotated[float, Field(ge=0)] | None = None
    pct_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    div_factor: Annotated[float, Field(gt=0)] | None = None
    final_div_factor: Annotated[float, Field(gt=0)] | None = None
    anneal: Literal["linear", "cos"] | None = None
    cycle_momentum: bool | None = None
    base_momentum: Fraction | None = None
    max_momentum: Fraction | None = None
    min_lr: Annotated[float, Field(ge=0)] | None = None
    warmup: Annotated[int, Field(ge=0)] | None = None  # units in which the rate rises to the schedule's own

    @field_validator(*sorted({name for parameters in _PARAMETERS.values() for name in parameters}))
    @classmethod
    def _belongs_to_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind, name = info.data.get("type"), str(info.field_name)
        if kind is None:  # the type itself is wrong, which is reported there
            return value
        if name not in _PARAMETERS[kind]:
            if value is None:
                return None
            owners = [owner for owner, parameters in _PARAMETERS.items() if name in parameters]
            raise ValueError(f"the schedule {kind} takes no {name}; it belongs to {', '.join(owners)}")
        if value is None and _PARAMETERS[kind][name] is _REQUIRED:
            raise MissingKey(f"missing key; {kind} needs it")
        return _PARAMETERS[kind][name] if value is None else value


def _schedule_by_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _no_schedule(value: SchedulerConfig | None) -> SchedulerConfig | None:
    return None if value is None or value.type == "none" else value


class OptimizerConfig(Strict):
    """How the parameters of a head are trained. ``lr`` is the peak for OneCycle; ``momentum`` and ``nesterov`` are sgd's alone."""

    optimizer: Annotated[Optimizer, BeforeValidator(word("sgd", "adam", "adamw"))]
    lr: Annotated[float, Field(gt=0)]
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    scheduler: Annotated[SchedulerConfig | None, BeforeValidator(_schedule_by_name), AfterValidator(_no_schedule)] = None

    @field_validator("momentum", "nesterov")
    @classmethod
    def _only_sgd(cls, value: Any, info: ValidationInfo) -> Any:
        optimizer = info.data.get("optimizer")
        if value and optimizer not in (None, "sgd"):
            raise ValueError(f"{optimizer} takes no {info.field_name}; it belongs to sgd")
        return value

    @field_validator("nesterov")
    @classmethod
    def _nesterov_needs_momentum(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("optimizer") == "sgd" and info.data.get("momentum") == 0:
            raise ValueError("nesterov needs momentum above 0")
        return value


class GradientConfig(OptimizerConfig):
    """One training config of a linear head."""

    head: Literal["concat", "mean", "attention"] = "concat"  # what becomes of the several images of a sample
    init: Literal["torch", "normal0.01"] = "torch"  # of the weights: as torch.nn.Linear, or N(0, 0.01) with zero biases (DINO)
    standardise: bool = False  # of each feature: minus its mean over the fit samples, divided by its standard deviation over them

    @model_serializer(mode="wrap")
    def _as_before(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``standardise`` where it is false, as before there was the key: keys of jobs and results on disk stay as they are."""
        values: dict[str, Any] = written(self)
        return values if self.standardise else {key: value for key, value in values.items() if key != "standardise"}


class MlpConfig(GradientConfig):
    """One training config of the mlp head; ``hidden`` is the width of its one hidden layer."""

    hidden: Annotated[int, Field(ge=1)] = 512
