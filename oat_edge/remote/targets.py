"""Which machines a bench is for: `--host`, `--hosts` and `--device` made into destinations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oat_edge.device.jetson import board_name, is_jetson
from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.remote.devices import FLEET, KINDS, Device, known, load_devices
from oat_edge.remote.ssh import Host, check_host

THIS = System()


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One machine to measure on."""

    name: str
    """For files and tables: a device's own, else the host's."""
    host: Host
    device: str
    """"cpu", "cuda" or "jetson"."""
    python: str | None = None


def targets_from(
    hosts: Sequence[str] = (),
    hosts_file: Path | None = None,
    device: str | None = None,
    *,
    system: System = THIS,
) -> tuple[Target, ...]:
    """The machines that the options mean; none: it is this one.

    hosts: destinations or names of devices. hosts_file: the same, one a line, # begins a comment.
    device: None, one of KINDS, or a device's name. "jetson" on a machine that is none means the
    one Jetson that has a name. Raises `InputError`, and `DependencyError` if there is no Jetson.
    """
    wanted = [(text, "") for text in hosts]
    if hosts_file is not None:
        wanted += _lines(hosts_file)
    kind = device if device in KINDS else None
    devices: dict[str, Device] = {}
    if device is not None and kind is None:
        devices = load_devices()
        if device not in devices:
            raise InputError(
                f"device is {device!r:.80}: expected {', '.join(KINDS)} or a device's name; "
                f"{known(tuple(devices))}"
            )
        if wanted:
            raise InputError(
                f"--device {device} names a machine, and so does --host {wanted[0][0]}: say "
                "one of them"
            )
        wanted = [(device, "")]
    elif kind == "jetson" and not wanted and not is_jetson(system):
        wanted = [(_only_jetson(system), "")]
    if not wanted:
        return ()
    devices = devices or load_devices()
    found = [_target(text, where, kind, devices) for text, where in wanted]
    return _named(list(dict.fromkeys(found)), tuple(devices))


def _target(text: str, where: str, kind: str | None, devices: dict[str, Device]) -> Target:
    device = devices.get(text)
    if device is not None:
        return Target(
            name=device.name,
            host=device.host,
            device=kind or device.device,
            python=device.python,
        )
    try:
        host = check_host(text)
    except InputError as error:
        raise InputError(f"{where}{error}") from None
    return Target(name="", host=host, device=kind or "cpu")


def _named(targets: list[Target], devices: tuple[str, ...]) -> tuple[Target, ...]:
    """With names that are different file names: the host's, longer where two have the same.

    devices: all names of devices, which another host's files and engines must not have.
    """
    short = [target.name or _file_name(target.host.name) for target in targets]
    taken = {name.casefold() for name in (*devices, FLEET)}  # on some disks "A" is "a"
    own, names = set[str](), []
    for target, name in zip(targets, short, strict=True):
        if target.name and name.casefold() not in own:
            own.add(name.casefold())
            names.append(name)
            continue
        if not target.name and (short.count(name) > 1 or name.casefold() in taken):
            name = _file_name(str(target.host).removeprefix("ssh://"))
        number = 1
        unique = name
        while unique.casefold() in taken:  # one machine with two Pythons
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        names.append(unique)
    return tuple(replace(target, name=name) for target, name in zip(targets, names, strict=True))


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "host"


def _lines(path: Path) -> list[tuple[str, str]]:
    """(text, where it stands) of each host in a file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is no text"
        raise InputError(f"hosts {path} cannot be read ({why}): expected one a line") from None
    texts = [line.partition("#")[0].strip() for line in lines]
    found = [(text, f"{path}:{number}: ") for number, text in enumerate(texts, 1) if text]
    if not found:
        raise InputError(f"{path} names no host: expected one a line")
    return found


def _only_jetson(system: System) -> str:
    """Name of the one Jetson among the devices."""
    jetsons = [one.name for one in load_devices().values() if one.device == "jetson"]
    if len(jetsons) > 1:
        names = ", ".join(jetsons)
        raise InputError(f"device is 'jetson', and there are {names}: say --device {jetsons[0]}")
    if not jetsons:
        board = board_name(system)
        detected = f"board '{board}'" if board else "no Jetson board"
        raise DependencyError(
            f"device is 'jetson', but this machine is none (detected: {detected}): name yours "
            "with `oat-edge devices add orin user@orin`, say --host user@orin, or use --device cpu "
            "or cuda here"
        )
    return jetsons[0]
