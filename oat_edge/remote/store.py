"""What a device keeps: files by their hash, bundles made of them, and environments.

Nothing half-written counts: a file is `blobs/<sha256>` only once its hash was right, a bundle is
one only once its manifest is there, and that comes last. A part of a broken upload is kept so
that the upload can go on, for a week.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.errors import InputError
from oat_edge.files import atomic_path, exclusive_lock, sha256_file
from oat_edge.remote.install import MARKER

PART = ".part"
DAY_S = 86400.0
KEEP_PARTS_S = 7 * DAY_S
KEEP_BUNDLES_S = 30 * DAY_S
KEEP_ENVIRONMENTS_S = 30 * DAY_S


def check_sha256(text: str) -> str:
    """A SHA-256 in hex digits; anything else could be a path (`InputError`)."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputError(f"got {text!r:.80}, expected a sha256")
    return text


@dataclass(frozen=True, slots=True)
class Store:
    """Files and bundles below one folder."""

    root: Path

    @property
    def blobs(self) -> Path:
        """Folder of the files."""
        return self.root / "blobs"

    def missing(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Of these files (sha256: bytes) those not here, with the bytes that have come already.

        A file that is here is read again: one that was damaged since is missing.
        """
        self.clean()
        missing = {}
        for sha256, size in sizes.items():
            blob = self.blobs / check_sha256(sha256)
            if blob.is_file():
                if blob.stat().st_size == size and sha256_file(blob) == sha256:
                    os.utime(blob)  # still in use
                    continue
                blob.unlink()
            part = self.blobs / f"{sha256}{PART}"
            missing[sha256] = min(part.stat().st_size, size) if part.is_file() else 0
        return missing

    def put(self, sha256: str, total: int, offset: int, data: bytes) -> int:
        """Write a piece of a file; returns how many bytes from its start are here now.

        A piece beyond that is not taken. Two senders of one file write the same bytes. Raises
        `InputError` if the whole has another hash: nothing of it is kept.
        """
        blob = self.blobs / check_sha256(sha256)
        part = self.blobs / f"{sha256}{PART}"
        with exclusive_lock(self.blobs):
            if blob.exists():
                return total
            with part.open("r+b" if part.exists() else "w+b") as file:
                size = file.seek(0, os.SEEK_END)
                if offset > size:
                    return size
                file.seek(offset)
                file.write(data)
                size = max(size, offset + len(data))
                if size < total:
                    return size
                file.flush()
                os.fsync(file.fileno())
            if size > total or sha256_file(part) != sha256:
                part.unlink()
                raise InputError("a file arrived damaged (its sha256 differs): run again")
            part.replace(blob)
            return total

    def assemble(self, files: Mapping[str, str]) -> Bundle:
        """A bundle of files that are here (name: sha256), one of them its manifest."""
        manifest = check_sha256(files[MANIFEST])
        folder = self.root / "bundles" / manifest[:32]
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder):
            for name, sha256 in files.items():
                if Path(name).name != name or name in ("", "..") or name.startswith("."):
                    raise InputError(f"got file {name!r:.80}, expected a plain file name")
                if name != MANIFEST:
                    _place(self.blobs / check_sha256(sha256), folder / name)
            _place(self.blobs / manifest, folder / MANIFEST)
            os.utime(folder)
        return Bundle.open(folder)

    def clean(self) -> None:
        """Remove parts that nobody went on with, and what else was not asked for lately."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # of another command that cleans
            _remove_old(self.blobs.glob(f"*{PART}"), KEEP_PARTS_S)
            _remove_old((self.root / "bundles").glob("*"), KEEP_BUNDLES_S)
            unused = (path for path in self.blobs.glob("[0-9a-f]*") if path.stat().st_nlink == 1)
            _remove_old(unused, KEEP_BUNDLES_S)
        for env in (self.root / "env").glob("*"):
            with contextlib.suppress(OSError):
                if env.is_dir():
                    _remove_old_environment(env)


def mark_used(env: Path) -> None:
    """Note that an environment that --bootstrap made is in use; any other stays as it is."""
    with contextlib.suppress(OSError):
        os.utime(env / MARKER)


def _remove_old_environment(env: Path) -> None:
    """Remove one, of another version's code, that has not been used lately."""
    marker = env / MARKER
    # Without a marker it is being built, or its build was cut short.
    used = (marker if marker.exists() else env).stat().st_mtime
    if env.samefile(sys.prefix) or time.time() - used <= KEEP_ENVIRONMENTS_S:
        return
    with env.with_name(f"{env.name}.lock").open("w") as lock:
        # `install.make` holds it while it builds. The file stays: another may wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        marker.unlink(missing_ok=True)  # first: a half of an environment must not count
        shutil.rmtree(env)


def _place(blob: Path, path: Path) -> None:
    """Make `path` a file with the content of `blob`: a second name, or a copy."""
    if path.exists() and path.samefile(blob):
        return
    with atomic_path(path) as temporary:
        try:
            temporary.unlink()
            os.link(blob, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(blob, temporary)


def _remove_old(paths: Iterable[Path], age_s: float) -> None:
    for path in paths:
        if time.time() - path.stat().st_mtime > age_s:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
