"""What a bench on a device has made, brought into the bundle.

The device is another machine: only files of known names are taken, up to a size, and none of them
is loaded as code here (`oat_edge.remote.engines`).
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from oat_edge.bench.report import Report
from oat_edge.bench.request import REPORT, RESULTS
from oat_edge.bundle import Bundle
from oat_edge.errors import InputError
from oat_edge.files import (
    TEMPORARY,
    atomic_path,
    exclusive_lock,
    read_json,
    sha256_file,
    write_json,
)
from oat_edge.remote.client import Session
from oat_edge.remote.engines import SHIPPED, SUFFIXES, is_name, names_for
from oat_edge.remote.wire import WireError, plain

SAMPLES = "report-samples.npz"
# Several times what the largest have: a device must not fill the disk here.
MOST_BYTES, MOST_ENGINE_BYTES = 256 << 20, 1 << 30


def fetch(
    session: Session,
    job: str,
    files: dict[str, str],
    bundle: Bundle,
    name: str,
    keys: Sequence[str],
) -> Report:
    """Bring the result into the bundle: the report last, so that it is there only when all is.

    files: of the bundle there (name: sha256). name: of the device. keys: what its engines are
    built for.
    """
    engines = [f"{one}{suffix}" for one in names_for(bundle, keys) for suffix in SUFFIXES]
    answer, _ = session.call("files", job=job, engines=bool(engines), files=files)
    listed = _listed(answer["files"], {REPORT, SAMPLES, RESULTS, *engines})
    if REPORT not in listed:
        raise InputError(f"{session.host} has no report of the bench: run again")
    # Not in the bundle: that is locked only while what has come is put there.
    with tempfile.TemporaryDirectory() as temporary:
        folder, new = Path(temporary), {}
        for file in listed.values():
            path = bundle.path / local_name(file["name"], name)
            here = path.is_file() and sha256_file(path) == file["sha256"]
            if file["name"] == REPORT or not here:
                fetch_file(session, job, file, folder / file["name"])
                new[path] = folder / file["name"]
        report = _load(new.pop(bundle.path / local_name(REPORT, name)))
        samples = local_name(SAMPLES, name) if report.samples_file and SAMPLES in listed else None
        report = dataclasses.replace(report, samples_file=samples)
        _put(new, bundle.path / local_name(REPORT, name), report, bundle)
    return report


def fetch_file(session: Session, job: str, file: dict[str, Any], path: Path) -> None:
    """One file, whole or not at all; after a lost connection it goes on where it was."""
    name, size = file["name"], file["size"]
    most = MOST_ENGINE_BYTES if is_name(name) else MOST_BYTES
    if not isinstance(size, int) or not 0 <= size <= most:
        raise InputError(
            f"{name} on {session.host} has {size!r:.30} bytes, expected at most {most}: look what "
            "has written it"
        )
    with atomic_path(path) as temporary:
        with temporary.open("wb") as out:
            while (here := out.tell()) < size:
                _, data = session.call("get", job=job, name=name, offset=here)
                if not data or here + len(data) > size:
                    break
                out.write(data)
        if sha256_file(temporary) != file["sha256"]:
            raise InputError(f"{name} from {session.host} arrived damaged: run again")


def local_name(file: str, name: str) -> str:
    """Where a file of the result of device `name` lies in the bundle, such as "report-orin.json".

    Different devices have different files: a report and its samples differ in their suffix too.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise InputError(f"name is {name!r:.80}: expected letters, digits and . _ -")
    own = {
        REPORT: f"report-{name}.json",
        SAMPLES: f"report-{name}-samples.npz",
        RESULTS: f"results-{name}.jsonl",
    }
    if is_name(file):
        return f"{SHIPPED}/{name}/{file}"
    if file not in own:
        raise InputError(f"got file {file!r:.80}, expected {', '.join(own)} or an engine's")
    return own[file]


def _listed(files: Any, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
    """The files that are wanted, by name; the facts of an engine come after it.

    Without them it does not count.
    """
    named = [file for file in files if isinstance(file, dict) and file.get("name") in wanted]
    ordered = sorted(named, key=lambda file: str(file["name"]).endswith(".json"))
    return {file["name"]: file for file in ordered}


def _load(path: Path) -> Report:
    """A device's report, whose texts can be shown."""
    remedy = "run again"
    try:
        return Report.from_json(plain(read_json(path, what="bench report", remedy=remedy)))
    except WireError as error:
        raise InputError(f"bench report cannot be read ({error}): {remedy}") from None


def _put(new: dict[Path, Path], to: Path, report: Report, bundle: Bundle) -> None:
    """Put files (where they go: where they are) and at last the report into the bundle."""
    with exclusive_lock(bundle.path):
        for path in (*new, to):
            # What a killed command left of this very file. Others write other names, unlocked.
            for left in path.parent.glob(f"{TEMPORARY}{path.stem}-????????{path.suffix}"):
                left.unlink(missing_ok=True)
        for path, source in new.items():
            with atomic_path(path) as temporary:
                shutil.copyfile(source, temporary)
        write_json(to, report.to_json())
