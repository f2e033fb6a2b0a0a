"""Benches of one machine take turns, whoever runs them: side by side they would disturb each other.

The lock is a file's (flock): the system frees it however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oat_edge.device.machine_files import lock_dirs

NAME = "oat-edge-bench.lock"
# A link could name any file of whoever runs this.
FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def one_bench_at_a_time(say: Callable[[str], object]) -> Iterator[None]:
    """Wait until no other bench runs on this machine, of any user, and keep others waiting.

    Not to be entered twice by one process: it would wait for itself. Where no lock can be had
    it says so and goes on.
    """
    handle = None
    try:
        handle = _lock(say)
        yield
    finally:
        if handle is not None:
            # Closing is not enough while a forked child has the file open too.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def _lock(say: Callable[[str], object]) -> int | None:
    why = ""
    for folder in lock_dirs():
        try:
            handle = _open(folder)
        except OSError as error:
            why = why or f"{folder / NAME}: {error.strerror}"
            continue
        try:
            _wait(handle, say)
        except OSError as error:  # a file system without locks
            os.close(handle)
            why = why or f"{folder / NAME}: {error.strerror}"
            continue
        except BaseException:
            os.close(handle)
            raise
        return handle
    say(f"benches on this machine cannot take turns ({why}): run no other one meanwhile")
    return None


def _wait(handle: int, say: Callable[[str], object]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another bench on this machine to end")
        fcntl.flock(handle, fcntl.LOCK_EX)


def _open(folder: Path) -> int:
    path = folder / NAME
    try:
        # With O_CREAT the system refuses another user's file in a folder like /run/lock, even
        # to root (fs.protected_regular).
        handle = os.open(path, FLAGS)
    except FileNotFoundError:
        handle = _create(path)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "is no regular file")
    return handle


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Every user must be able to open it, from its first moment on.
    mask = os.umask(0)
    try:
        return os.open(path, FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another bench was faster
        return os.open(path, FLAGS)
    finally:
        os.umask(mask)
