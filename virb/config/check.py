"""Data against a pydantic record, with messages for people: what is wrong in one line, and the nearest valid word."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from virb.config.tree import KeyPath, Report, Where
from virb.errors import did_you_mean


class Strict(BaseModel):
    """Base of our records: unknown keys are errors, nothing is converted silently ("32" is not a number), objects do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class MissingKey(ValueError):
    """Raised by a validator of a record for a key that another value makes necessary."""


class Locate(Protocol):
    """Place of a path inside the checked data."""

    def __call__(self, path: KeyPath, *, missing: bool = False) -> Where: ...


Model = TypeVar("Model", bound=BaseModel)


def check(model: type[Model], data: Any, locate: Locate, report: Report) -> Model | None:
    """The record made from ``data``; None when something is wrong with it, every mistake being in ``report``."""
    if not isinstance(data, Mapping):
        report.add(locate(()), f"expected a mapping, got {describe(data)}")
        return None
    before = len(report)
    if model.model_config.get("extra") not in ("forbid", "allow"):  # a user's own record: unknown keys are never ignored
        for key in data:
            if key not in valid_keys(model):
                report.add(locate((key,)), unknown_key(str(key), valid_keys(model)))
    try:
        record = model.model_validate(dict(data))
    except ValidationError as failure:
        for error in failure.errors(include_url=False):
            path = tuple(error["loc"])
            cause = error.get("ctx", {}).get("error")
            missing = error["type"] == "missing" or isinstance(cause, MissingKey)
            message = _message(model, path, error["type"], error["input"], error.get("ctx", {}), error["msg"])
            report.add(locate(path, missing=missing), message)
        return None
    return record if len(report) == before else None


def unknown_key(key: str, words: Iterable[str]) -> str:
    words = list(words)
    suggestion = did_you_mean(key, words)
    if not suggestion and 0 < len(words) <= 12:
        suggestion = f"; known are {', '.join(words)}"
    return f"unknown key{suggestion}"


def none_of(word: Any, words: Iterable[str]) -> str:
    words = list(words)
    suggestion = did_you_mean(word, words) if isinstance(word, str) else ""
    return f"{describe(word)} is none of {', '.join(words)}{suggestion}"


def describe(value: Any) -> str:
    """A value as the user wrote it, short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (str, bool, int, float, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= 60 else text[:57] + "..."
    return type(value).__name__


def valid_keys(model: type[BaseModel], path: KeyPath = ()) -> list[str]:
    """Keys of the record that stands at ``path`` inside ``model``; nothing when there is none."""
    found: type[BaseModel] | None = model
    for part in path:
        field = found.model_fields.get(str(part)) if found else None
        found = _record_in(field.annotation) if field else None
    return list(found.model_fields) if found else []


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for found in map(_record_in, get_args(annotation)) if found), None)
    return None


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}
_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda context: f"more than {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']:g}",
    "less_than": lambda context: f"less than {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']:g}",
    "too_short": lambda context: f"at least {context['min_length']} values",
    "string_too_short": lambda context: "text",
}


def _message(model: type[BaseModel], path: KeyPath, kind: str, value: Any, context: Mapping[str, Any], text: str) -> str:
    if kind == "extra_forbidden":
        return unknown_key(str(path[-1]), valid_keys(model, path[:-1]))
    if kind == "missing":
        return "missing key"
    if kind == "literal_error":
        words = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return none_of(value, words)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {describe(value)}"
    if kind in _BOUNDS:
        return f"expected {_BOUNDS[kind](context)}, got {describe(value)}"
    if kind in ("value_error", "assertion_error") and "error" in context:
        return str(context["error"])
    return f"{text[:1].lower()}{text[1:]}, got {describe(value)}"
