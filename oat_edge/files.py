"""Files on disk: written whole or not at all, hashed, locked, and named by a `latest` link."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oat_edge.errors import InputError

TEMPORARY = ".writing-"


def check_replaceable(path: Path) -> None:
    """Raise `InputError` if `path` is there and is no regular file.

    Renaming a file onto a device such as /dev/null would replace it for the whole system.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a folder or a device: name a regular file")


def check_folder(folder: Path) -> None:
    """Raise `InputError` where `folder` is no folder, or none can be made or written there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{folder} cannot be a folder, {there} is a file: name another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} cannot be written: name another --out")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush it to disk and rename it to `path`.

    A reader sees the old file or the new one, never a part. On an exception nothing is left.
    Raises `InputError` where the system does not let `path` be written.
    """
    temporary = None
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept: some writers (numpy, matplotlib) look at it.
        handle, name = tempfile.mkstemp(
            prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left. Only for a folder that nobody else is writing."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is a bug here, so it is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path, *, what: str, remedy: str) -> dict[str, Any]:
    """Read a JSON object; any damage becomes one line that names `what` and the `remedy`."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"there is no {what} at {path}: {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} cannot be read ({error}): {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{what} {path} holds {type(value).__name__}, not an object: {remedy}")
    return value


def cache_dir() -> Path:
    """Folder of what can be had again: $XDG_CACHE_HOME/oat-edge, by default ~/.cache/oat-edge."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "oat-edge"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def exclusive_lock(
    folder: Path, *, wait: bool = True, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold `folder`/.lock, so that commands that write one folder take turns.

    The system releases it when the process ends, however it ends. wait=False: `InputError` if
    another command holds it. waiting: called before waiting for another command.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise InputError(
                    f"another oat-edge command is writing {folder}: wait for it, or name another "
                    "--out"
                ) from None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def point_latest(target: Path) -> None:
    """Make `latest` beside `target` a relative link to it, replacing an older link atomically."""
    target = Path(os.path.abspath(target))  # noqa: PTH100 ("." needs a name, links stay links)
    link = target.parent / "latest"
    if target == link and link.is_symlink():
        return  # the newest was named by its link: it still is the newest
    if link.exists() and not link.is_symlink():
        raise InputError(f"{link} is not a link but a file or folder: move it away")
    temporary = target.parent / f".latest-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def _cannot_write(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"cannot write {path} ({reason}): name a place that can be written")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
