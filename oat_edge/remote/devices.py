"""Devices by name: a small TOML file of the user's, whose comments are kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from oat_edge.bench.config import DeviceName
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import exclusive_lock, write_bytes
from oat_edge.remote.client import check_python
from oat_edge.remote.ssh import Host, check_host
from oat_edge.require import require

KINDS: tuple[str, ...] = get_args(DeviceName)
PURPOSE = "the file of devices"
# The name of the report of several devices.
FLEET = "fleet"
FIELDS = ("host", "device", "python")


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device as the user named it."""

    name: str
    host: Host
    device: str = "jetson"
    """What is measured there, of KINDS."""
    python: str | None = None
    """Its Python, if that is not the `python3` found there."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_kind(self.device)
        if self.python is not None:
            check_python(self.python)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "host": str(self.host),
            "device": self.device,
            "python": self.python,
        }


def devices_file() -> Path:
    """$XDG_CONFIG_HOME/oat-edge/devices.toml, by default below ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "oat-edge" / "devices.toml"


def check_name(text: str) -> str:
    """A device's name; `InputError` for what would not do in a file name or an option."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", text):
        raise InputError(f"name is {text!r:.80}: expected letters, digits and . _ -, up to 64")
    if text in (*KINDS, FLEET):
        raise InputError(f"name is '{text}', which has a meaning of its own: choose another")
    return text


def check_kind(text: str) -> str:
    """What can be measured (`InputError`)."""
    if text not in KINDS:
        raise InputError(f"device is {text!r:.80}: expected {', '.join(KINDS)}")
    return text


def load_devices(path: Path | None = None) -> dict[str, Device]:
    """All devices by name, in the order of the file; no file is no device.

    Raises `InputError` that names the file, and the line or the device.
    """
    path = path or devices_file()
    return {name: _device(path, name, value) for name, value in _tables(_read(path), path).items()}


def add_device(device: Device, path: Path | None = None) -> bool:
    """Add a device, or replace the one of its name. Returns whether there was one."""
    with _changing(path or devices_file()) as document:
        tomlkit = require("tomlkit", purpose=PURPOSE)
        if "devices" not in document:
            document["devices"] = tomlkit.table(is_super_table=True)
        there = device.name in document["devices"]
        table = document["devices"][device.name] if there else tomlkit.table()
        for key, value in device.to_json().items():
            if key == "name":
                continue
            if value is not None:
                table[key] = value
            elif key in table:
                del table[key]
        if not there:
            document["devices"][device.name] = table
    return there


def remove_device(name: str, path: Path | None = None) -> None:
    """Remove a device; `InputError` if there is none of this name."""
    path = path or devices_file()
    _check_there(name, _tables(_read(path), path))  # before a folder is made for nothing
    with _changing(path) as document:
        _check_there(name, document.get("devices", {}))
        del document["devices"][name]


def known(names: tuple[str, ...]) -> str:
    """What there is, and how to add to it."""
    have = f"there are {', '.join(names)}" if names else "none is named yet"
    return f"{have} (add one with `oat-edge devices add NAME user@host`)"


@contextmanager
def _changing(path: Path) -> Iterator[Any]:
    """The document, to be changed by one command at a time; written back at the end.

    The file may be a link into a folder of settings: it stays one.
    """
    with exclusive_lock(path.parent):
        document = _read(path)
        _tables(document, path)
        yield document
        text = require("tomlkit", purpose=PURPOSE).dumps(document)
        write_bytes(path.resolve(), text.encode())


def _check_there(name: str, tables: dict[str, Any]) -> None:
    if name not in tables:
        raise InputError(f"there is no device {name!r:.80}: {known(tuple(tables))}")


def _read(path: Path) -> Any:
    """The document, with its comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): mend it or take it away") from None
    if not text:
        # So that a machine without devices needs no TOML to say so.
        try:
            return require("tomlkit", purpose=PURPOSE).document()
        except DependencyError:
            return {}
    tomlkit = require("tomlkit", purpose=PURPOSE)
    try:
        return tomlkit.parse(text)
    except ValueError as error:  # of all its errors; the text ends in "at line 3 col 5"
        raise InputError(f"{path} is damaged ({error}): mend it") from None


def _tables(document: Any, path: Path) -> dict[str, Any]:
    tables = document.get("devices", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise InputError(f"{path} has devices that are no tables: expected [devices.NAME]")
    return dict(tables)


def _device(path: Path, name: str, value: dict[str, Any]) -> Device:
    unknown = sorted(set(value) - set(FIELDS))
    wrong = [key for key, item in value.items() if not isinstance(item, str)]
    if unknown or wrong or "host" not in value:
        which = unknown[0] if unknown else wrong[0] if wrong else "host"
        what = "unknown" if unknown else "no text" if wrong else "missing"
        raise InputError(f"{path}, device {name!r:.80}: {which} is {what}: expected host = \"…\", "
                         "device = \"…\", python = \"…\"")  # fmt: skip
    try:
        return Device(
            name=name,
            host=check_host(str(value["host"])),
            device=str(value.get("device", "jetson")),
            python=str(value["python"]) if "python" in value else None,
        )
    except InputError as error:
        raise InputError(f"{path}, device {name!r:.80}: {error}") from None
