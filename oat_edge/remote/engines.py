"""Engines that travel: built on a device once, kept in the bundle, sent back to that device.

In a bundle they lie in `engines/DEVICE/` under the names that they have in the device's cache,
where a name stands for network, recipe, library and kind of device. An engine is executable code:
what one device has sent goes to no other, and is never loaded here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oat_edge.bundle import Bundle
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import read_json, sha256_file
from oat_edge.runtime.artifacts import ENGINES
from oat_edge.runtime.child import ChildFailedError, call_child
from oat_edge.runtime.engines import (
    build_target,
    engine_name,
    kept_folder,
    recipe_of,
    source_of,
)

# Folder of a bundle, with a folder for each device.
SHIPPED = "engines"
# The facts come last: without them an engine does not count.
SUFFIXES = (".engine", ".log", ".json")


def device_keys(formats: Sequence[str]) -> list[str]:
    """What this machine's engines of these formats are built for; those it cannot run are left out.

    Asked in a child: the libraries take memory that the bench is to have.
    """
    try:
        found: list[str] = call_child("oat_edge.remote.engines:find_keys", list(formats))
    except ChildFailedError:
        return []
    return found


def find_keys(formats: Sequence[str]) -> list[str]:
    """The same, in this process."""
    keys = []
    for format in formats:
        try:
            keys.append(build_target(format).key)
        except DependencyError:
            continue
    return keys


def formats_of(bundle: Bundle) -> list[str]:
    """Formats of a bundle's engines, sorted."""
    return sorted({artifact.format for artifact in bundle.artifacts} & set(ENGINES))


def names_for(bundle: Bundle, keys: Sequence[str]) -> list[str]:
    """Names, without suffix, of the engines that devices of these keys can build for a bundle."""
    names = set()
    for artifact in bundle.artifacts:
        if artifact.format in ENGINES:
            with contextlib.suppress(InputError):  # an entry that nothing can be built from
                source, recipe = source_of(bundle, artifact), recipe_of(artifact)
                names |= {engine_name(source.sha256, recipe, key) for key in keys}
    return sorted(names)


def names_of(bundle_path: str) -> list[str]:
    """Names, without suffix, that this bundle's engines have in the cache of this machine."""
    bundle = Bundle.open(bundle_path)
    return names_for(bundle, find_keys(formats_of(bundle)))


def files_of(bundle: Bundle) -> dict[str, Path]:
    """Files of this machine's kept engines that belong to a bundle, by name."""
    if not formats_of(bundle):
        return {}
    try:
        names = call_child("oat_edge.remote.engines:names_of", str(bundle.path))
    except ChildFailedError:
        return {}
    paths = [kept_folder() / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    return {path.name: path for path in paths if path.is_file()}


def engines_for(bundle: Bundle, device: str, keys: Sequence[str]) -> list[Path]:
    """Facts of the whole engines that the device of this name has built, if it is still such."""
    found = []
    for name in names_for(bundle, keys):
        facts = bundle.path / SHIPPED / device / f"{name}.json"
        try:
            value: dict[str, Any] = read_json(facts, what="engine", remedy="")
            engine = facts.with_suffix(".engine")
            if value.get("device_key") in keys and sha256_file(engine) == value.get("sha256"):
                found.append(facts)
        except (InputError, OSError):
            continue  # none, or damaged: it is built again
    return found


def is_name(name: str) -> bool:
    """Whether a file can be one of an engine's."""
    return re.fullmatch(r"[0-9a-f]{32}\.(engine|json|log)", name) is not None


def check_name(name: str) -> str:
    """A name that an engine's file can have (`InputError`)."""
    if not is_name(name):
        raise InputError(f"got file {name!r:.80}, expected an engine's")
    return name
