"""Where the files of a named data set are: found in a folder, or downloaded and checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.errors import InputError
from oat_edge.files import cache_dir, sha256_file
from oat_edge.require import require


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file that can be downloaded, with the hash that it must then have."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Last part of the address, the name on disk."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The files of one data set and the places they may lie in."""

    name: str
    """Name of the data set; also the sub-folder that is looked into."""
    remote: tuple[RemoteFile, ...]
    """What is downloaded; their names are the first layout."""
    layouts: tuple[tuple[str, ...], ...] = ()
    """Other sets of relative paths that hold the same data (an unpacked archive)."""
    system_dir: Path | None = None
    """Folder of an operating system package."""
    system_package: str | None = None
    """Name of that package."""
    known_sha256: frozenset[str] = frozenset()
    """Hashes of other files that are known to hold the same data."""


def find_files(source: Source, *, data_dir: Path | None, download: bool) -> list[Path]:
    """Paths of one layout, all in one folder.  The first folder that holds a whole one wins.

    Order: `data_dir`, the system package, the cache, and then the download into the cache.
    Raises `InputError` that names every place.
    """
    cache = cache_dir() / source.name
    places = [cache] if source.system_dir is None else [source.system_dir, cache]
    if data_dir is not None:
        places = [data_dir.expanduser(), data_dir.expanduser() / source.name, *places]
    names = tuple(file.name for file in source.remote)
    for place in places:
        for layout in (names, *source.layouts):
            paths = [place / name for name in layout]
            if all(path.is_file() for path in paths):
                return paths
    if download:
        return [_download(file, cache, source.name) for file in source.remote]
    package = f"apt install {source.system_package}, or " if source.system_package else ""
    raise InputError(
        f"{source.name} is not on this machine: looked for {', '.join(names)} in "
        f"{', '.join(str(place) for place in places)}: {package}give --data-dir or --download"
    )


def describe_files(source: Source, paths: Collection[Path]) -> dict[str, Any]:
    """Path and hash of every file, for the record; `published` tells a hash that is known."""
    known = source.known_sha256 | {file.sha256 for file in source.remote}
    digests = [(path, sha256_file(path)) for path in paths]
    return {
        "files": [
            {"path": str(path.absolute()), "sha256": digest, "published": digest in known}
            for path, digest in digests
        ]
    }


def _download(file: RemoteFile, folder: Path, what: str) -> Path:
    pooch = require("pooch", purpose=f"downloading {what}")
    try:
        pooch.retrieve(file.url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder)
    # requests' errors are OSErrors; a wrong hash is a ValueError.
    except (OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{what}: {file.url} could not be downloaded ({reason:.200}): check the network, "
            "or fetch the file yourself and give its folder as --data-dir"
        ) from None
    return folder / file.name
