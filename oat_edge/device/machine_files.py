"""Where what concerns the whole machine lies: for all of its users, and for root with any HOME."""

from __future__ import annotations

import os
from pathlib import Path

from oat_edge.errors import DependencyError
from oat_edge.files import cache_dir

VARIABLE = "OAT_EDGE_STATE_DIR"
"""Names another folder for all of it: for tests, and where / is read-only."""
STATE_DIR = Path("/var/lib/oat-edge")
LOCK_DIR = Path("/run/lock")


def state_dir() -> Path:
    """Where root notes what settings were; others read it."""
    return _named() or STATE_DIR


def make_state_dir() -> Path:
    """The same folder, made if need be; `DependencyError` if it cannot be written."""
    folder = state_dir()
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o755)  # whatever the umask: others must be able to look
        # Others must not hold root's lock.
        (folder / ".lock").touch(mode=0o600)
    except OSError as error:
        raise DependencyError(
            f"cannot write {folder} ({error.strerror}), where the settings to be put back are "
            f"noted: name another folder with {VARIABLE}"
        ) from None
    return folder


def lock_dirs() -> tuple[Path, ...]:
    """Where the lock of the whole machine may lie, best first; the last is the user's own."""
    return _named() or LOCK_DIR, cache_dir()


def _named() -> Path | None:
    text = os.environ.get(VARIABLE)
    return Path(text) if text else None
