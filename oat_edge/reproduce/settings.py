"""Settings of training as text, "epochs=6", each read by the type of its field."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from oat_edge.config import TrainConfig
from oat_edge.errors import InputError
from oat_edge.operating_point import parse_list, parse_number

BOOLS = {"true": True, "false": False}


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Read "epochs=6", "eps=8/255", "widths=0.5,1", "flip=true", "train_samples=none"."""
    hints = typing.get_type_hints(TrainConfig)
    settings = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value:
            raise InputError(f"setting is '{text}': expected NAME=VALUE such as epochs=6")
        name = name.replace("-", "_")
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise InputError(
                f"'{name}' is no setting of training{hint}: expected an option of `oat-edge train`"
            )
        settings[name] = _parse(name, value, hints[name])
    return settings


def _parse(name: str, text: str, hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if type(None) in typing.get_args(hint):
        if text.lower() == "none":
            return None
        (hint,) = kinds
    if typing.get_origin(hint) is tuple:
        return parse_list(text, name)
    if hint is bool:
        if text.lower() not in BOOLS:
            raise InputError(f"{name} is '{text}': expected true or false")
        return BOOLS[text.lower()]
    if hint not in (int, float):
        return text  # a name: the configuration checks it
    value = parse_number(text, name)
    if hint is int and value != int(value):
        raise InputError(f"{name} is '{text}': expected a whole number")
    return hint(value)
