"""The device's end of a connection: answers requests on standard input until it is closed.

Requests and answers are messages (`oat_edge.remote.wire`). No text of a request is ever part of
a command line or, unless it is a hash, of a path.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oat_edge import __version__
from oat_edge.bundle import MANIFEST
from oat_edge.device.jetson import board_name
from oat_edge.device.system import System
from oat_edge.errors import InputError, OatEdgeError
from oat_edge.files import atomic_path, cache_dir, exclusive_lock
from oat_edge.remote.engines import check_name, device_keys, files_of, is_name
from oat_edge.remote.install import installed_extras
from oat_edge.remote.jobs import Jobs
from oat_edge.remote.output import read_piece
from oat_edge.remote.store import Store, check_sha256, mark_used
from oat_edge.remote.wheel import code_digest
from oat_edge.remote.wire import MAGIC, Stream, error_to_json, pack
from oat_edge.runtime.engines import kept_folder

Fields = dict[str, Any]
Answer = tuple[Fields, bytes]


def main() -> None:
    """Greet, then answer."""
    # Whatever a library prints must not get between the messages.
    answers = os.dup(1)
    os.dup2(2, 1)
    # On a line of its own, whatever a start-up file has printed.
    send_all(answers, b"\n" + MAGIC + pack(hello()))
    mark_used(Path(sys.prefix))
    stream = Stream(lambda: os.read(0, 1 << 18))
    agent = Agent()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            fields, payload = stream.message()
            send_all(answers, pack(*agent.answer(fields, payload)))


def hello() -> Fields:
    """What this machine is and which code it runs; what --bootstrap brought, if that made it."""
    return {
        "version": __version__,
        "code_digest": code_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "board": board_name(System()),
        "extras": installed_extras(Path(sys.prefix)),
    }


def send_all(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Agent:
    """Answers one client."""

    def __init__(self, root: Path | None = None) -> None:
        root = root or cache_dir()
        self._store = Store(root)
        self._jobs = Jobs(root / "jobs", client="unnamed")
        self._verbs: dict[str, Callable[[Fields, bytes], Answer]] = {
            "client": self._client,
            "have": lambda f, _: ({"missing": self._store.missing(f["sizes"])}, b""),
            "put": self._put,
            "keys": lambda f, _: ({"keys": device_keys(f["formats"])}, b""),
            "engines": self._missing_engines,
            "engine": self._engine,
            "start": self._start,
            "events": lambda f, _: (
                self._jobs.events(f["job"], f["offset"], min(f["wait_s"], 30.0)), b""
            ),
            "files": self._files,
            "get": self._get,
            "stop": lambda f, _: (self._jobs.stop(f["job"]), b""),
            "done": self._done,
        }  # fmt: skip

    def answer(self, fields: Fields, payload: bytes) -> Answer:
        """One answer; what goes wrong is an answer too."""
        try:
            return self._verbs[fields["verb"]](fields, payload)
        except OatEdgeError as error:
            return {"error": error_to_json(error)}, b""
        except OSError as error:
            where = error.filename or "the cache folder"
            text = f"cannot use {where} ({error.strerror}): make room or another XDG_CACHE_HOME"
            return {"error": error_to_json(InputError(text))}, b""
        except Exception as error:
            return {"error": error_to_json(error)}, b""

    def _client(self, fields: Fields, _: bytes) -> Answer:
        self._jobs = Jobs(self._jobs.root, client=check_sha256(fields["token"]))
        return {}, b""

    def _put(self, fields: Fields, payload: bytes) -> Answer:
        here = self._store.put(fields["sha256"], fields["total"], fields["offset"], payload)
        return {"here": here}, b""

    def _missing_engines(self, fields: Fields, _: bytes) -> Answer:
        names = [check_name(name) for name in fields["names"]]
        return {"missing": [name for name in names if not (kept_folder() / name).exists()]}, b""

    def _engine(self, fields: Fields, _: bytes) -> Answer:
        """Keep a file that came as a blob; `keep_engine` checks it against its facts."""
        folder = kept_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        blob = self._store.blobs / check_sha256(fields["sha256"])
        with exclusive_lock(folder), atomic_path(folder / check_name(fields["name"])) as temporary:
            shutil.copyfile(blob, temporary)
        blob.unlink(missing_ok=True)
        return {}, b""

    def _start(self, fields: Fields, _: bytes) -> Answer:
        bundle = self._store.assemble(fields["files"])
        manifest = fields["files"][MANIFEST]
        return self._jobs.start(fields["request"], bundle.path, manifest), b""

    def _files(self, fields: Fields, _: bytes) -> Answer:
        """The result's files, and this machine's engines of the bundle if they are asked for."""
        engines = {}
        if fields["engines"]:
            engines = files_of(self._store.assemble(fields["files"]))
        return {"files": self._jobs.files(fields["job"], engines)}, b""

    def _get(self, fields: Fields, _: bytes) -> Answer:
        name, offset = fields["name"], fields["offset"]
        if is_name(name):
            return {}, read_piece(kept_folder() / name, offset)
        return {}, self._jobs.read(fields["job"], name, offset)

    def _done(self, fields: Fields, _: bytes) -> Answer:
        self._jobs.done(fields["job"], keep=fields["keep"])
        return {}, b""


if __name__ == "__main__":
    main()
