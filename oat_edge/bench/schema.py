"""Dataclasses to JSON and strictly back: any damage is an `InputError` that names the place."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, TypeVar

from oat_edge.errors import InputError

T = TypeVar("T")

# `lambda` is a reserved word of Python, but the name that reports use.
JSON_NAMES = {"lam": "lambda"}


def dump(value: Any) -> Any:
    """Plain JSON values of a dataclass, deeply. NaN and infinity are bugs: `ValueError`."""
    if dataclasses.is_dataclass(value):
        return {
            json_name(field.name): dump(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a report cannot hold {value}: a figure that is not known is null")
    return value


def load(cls: type[T], value: Any, where: str) -> T:
    """Build dataclass `cls` from JSON: exactly its fields, each of its annotated type.

    A field with a default came later than the schema: files from before lack it.
    """
    hints = _hints(typing.cast(Any, cls))
    names = {json_name(name): name for name in hints}
    if not isinstance(value, dict):
        raise InputError(f"{where} is {value!r:.60}: expected an object")
    missing, extra = sorted(_required(cls) - set(value)), sorted(set(value) - set(names))
    if missing or extra:
        raise InputError(f"{where} lacks {missing} and has unknown {extra}: measure again")
    return cls(
        **{names[key]: _convert(hints[names[key]], item, f"{where}.{key}")
           for key, item in value.items()}
    )  # fmt: skip


def json_name(name: str) -> str:
    """A field's name in JSON and CSV."""
    return JSON_NAMES.get(name, name)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of the fields; to read them again for every row of a report takes most of the time."""
    return typing.get_type_hints(cls)


def _required(cls: Any) -> set[str]:
    unset = dataclasses.MISSING
    return {
        json_name(field.name)
        for field in dataclasses.fields(cls)
        if field.default is unset and field.default_factory is unset
    }


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # only X | None is in use
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return load(typing.cast("type[Any]", hint), value, where)
    if origin is typing.Literal and value in arguments:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    expected = hint.__name__ if isinstance(hint, type) else hint
    raise InputError(f"{where} is {value!r:.60}: expected {expected}")
