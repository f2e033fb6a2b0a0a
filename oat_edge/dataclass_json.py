"""Frozen dataclasses as JSON objects and back, and the checks that their fields share."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_args

from oat_edge.errors import InputError

T = TypeVar("T")


def to_json(config: Any, later: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Plain JSON values of a dataclass.

    later: fields that came after the first files. With its default such a field is not written:
    files are what they have always been, and so are their hashes.
    """
    value = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if field.name in later and value[field.name] == field.default:
            del value[field.name]
    return value


def from_json(cls: type[T], value: Any, what: str) -> T:
    """Build dataclass `cls` from a JSON object: lists become tuples, names must match exactly."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or not fields.issuperset(value):
        raise InputError(f"{what} is {value!r:.80}: expected an object with keys {sorted(fields)}")
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
    try:
        return cls(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise InputError(f"{what} has a wrong or missing value ({error})") from None


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `InputError` unless low <= value <= high (NaN fails)."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value}: expected a number in [{low:g}, {high:g}]")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise `InputError` unless `value` is one of a Literal's."""
    if value not in get_args(choices):
        *others, last = get_args(choices)
        raise InputError(f"{name} is '{value}': expected {', '.join(others)} or {last}")
