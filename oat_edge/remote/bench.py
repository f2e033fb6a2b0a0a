"""One bench on one device: send what it lacks, start or find the job, follow it, fetch all."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.bench.latency import Progress
from oat_edge.bench.report import Report
from oat_edge.bench.request import BenchRequest
from oat_edge.bundle import MANIFEST, Bundle
from oat_edge.errors import DependencyError, InputError
from oat_edge.files import sha256_file
from oat_edge.remote.client import NotInstalledError, Session
from oat_edge.remote.engines import SUFFIXES, engines_for, formats_of
from oat_edge.remote.fetch import fetch
from oat_edge.remote.install import extras_of
from oat_edge.remote.jobs import job_name
from oat_edge.remote.ssh import StoppedError
from oat_edge.remote.wire import CHUNK, error_from_json
from oat_edge.runtime.engines import Say

WAIT_S = 10.0
# A job that dies so often dies of what it does, not of a device that was switched off.
MOST_STARTS = 3


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of a bundle that a device needs."""

    paths: dict[str, Path]
    """By sha256."""
    names: dict[str, str]
    """File name: sha256. The manifest is one of them."""

    @classmethod
    def of(cls, bundle: Bundle) -> Parcel:
        """Hashes are checked before anything is sent."""
        manifest = bundle.path / MANIFEST
        names = {MANIFEST: hashlib.sha256(manifest.read_bytes()).hexdigest()}
        for artifact in bundle.artifacts:
            if not artifact.deferred:
                bundle.checked_path(artifact)
                names[artifact.file] = artifact.sha256
        return cls({sha256: bundle.path / name for name, sha256 in names.items()}, names)


def bench_there(
    session: Session,
    bundle: Bundle,
    request: BenchRequest,
    *,
    name: str,
    bootstrap: bool,
    progress: Progress,
    say: Say,
) -> Report:
    """Measure on the other end of `session`; the report is saved beside the bundle's own.

    name: of the device, for report-NAME.json and what belongs to it. bootstrap: install oat-edge
    there if it lacks this version. Raises what the bench raises there, with the host in front,
    `DependencyError`, and `InputError` if the bundle cannot be written.
    """
    if not os.access(bundle.path, os.W_OK):
        raise InputError(f"{bundle.path} cannot be written, reports go there: copy the bundle")
    parcel = Parcel.of(bundle)
    connect(session, request, bootstrap=bootstrap, say=say)
    sent, here, num_bytes = send_missing(session, parcel.paths, say)
    say(f"sent {sent} files, {megabytes(num_bytes)}; {here} were there")
    keys = ask_keys(session, bundle)
    send_engines(session, bundle, name, keys, say)
    job = run_job(session, parcel, request, progress, say)
    report = fetch(session, job, parcel.names, bundle, name, keys)
    # What did not fail need not be measured again: `--resume` goes on there.
    session.call("done", job=job, keep=bool(report.failures))
    return report


def connect(session: Session, request: BenchRequest, *, bootstrap: bool, say: Say) -> None:
    """Open the session; with `bootstrap` install what the device lacks for this request."""
    runtime = request.config.device if request.config.on_gpu else "cpu"
    try:
        session.open()
        # None: a Python of the user's own, in which nothing is installed.
        have = session.hello["extras"]
        lacks = have is not None and extras_of(runtime, session.hello["machine"]) not in have
    except NotInstalledError:
        if not bootstrap:
            raise
        lacks = True
    if bootstrap and lacks:
        say("installing oat-edge there")
        session.bootstrap(runtime)
        session.open()
    hello = session.hello
    say(f"connected to {hello['board'] or hello['machine']}, Python {hello['python']}")


def send_missing(session: Session, paths: dict[str, Path], say: Say) -> tuple[int, int, int]:
    """Send files (by sha256) that the device lacks: how many, how many it had, bytes sent."""
    sizes = {sha256: path.stat().st_size for sha256, path in paths.items()}
    missing = session.call("have", sizes=sizes)[0]["missing"]
    num_bytes, total = 0, sum(sizes[sha256] - here for sha256, here in missing.items())
    if missing:
        say(f"sending {megabytes(total)}")
    for sha256, here in missing.items():
        with paths[sha256].open("rb") as file:
            while here < sizes[sha256] or not sizes[sha256]:
                file.seek(here)
                data = file.read(CHUNK)
                if not data and sizes[sha256]:
                    raise InputError(f"{paths[sha256]} has changed while it was sent: run again")
                answer, _ = session.call(
                    "put", sha256=sha256, total=sizes[sha256], offset=here, payload=data
                )
                num_bytes += len(data)
                here = answer["here"]
                say(f"sending {megabytes(total)}", min(num_bytes / max(total, 1), 1.0))
                if not data:
                    break
    return len(missing), len(paths) - len(missing), num_bytes


def ask_keys(session: Session, bundle: Bundle) -> list[str]:
    """What the device's engines for a bundle are built for; none for a bundle without engines."""
    formats = formats_of(bundle)
    if not formats:
        return []
    keys = session.call("keys", formats=formats)[0]["keys"]
    return [key for key in keys if isinstance(key, str)]


def send_engines(
    session: Session, bundle: Bundle, name: str, keys: Sequence[str], say: Say
) -> None:
    """Send back the engines in the bundle that the device `name` has built, unless it has them."""
    facts = {path.name: path for path in engines_for(bundle, name, keys)}
    if not facts:
        return
    there = session.call("engines", names=list(facts))[0]["missing"]
    missing = [path for file, path in facts.items() if file in there]
    for one in missing:
        for suffix in SUFFIXES:
            path = one.with_suffix(suffix)
            if path.is_file():
                sha256 = sha256_file(path)
                send_missing(session, {sha256: path}, say)
                session.call("engine", name=path.name, sha256=sha256)
    if missing:
        say(f"sent {len(missing)} engines that it had built before")


def run_job(
    session: Session, parcel: Parcel, request: BenchRequest, progress: Progress, say: Say
) -> str:
    """Start the job or find it, follow it to its end; returns its name.

    Raises the job's error. Ctrl-C here (`StoppedError`) stops it there.
    """
    fields: dict[str, Any] = {"request": request.to_json(), "files": parcel.names}
    job = job_name(fields["request"], parcel.names[MANIFEST])
    try:
        answer, _ = session.call("start", **fields)
        if answer["state"] != "none":
            say(_found(answer["state"], answer["started"], resume=request.resume))
        end = _follow(session, job, fields, progress, say)
    except StoppedError:
        stop(session, job, say)
        raise
    if end.get("ok"):
        return job
    session.call("done", job=job, keep=True)
    if "error" in end:
        raise error_from_json(end["error"], str(session.host))
    raise DependencyError(f"{session.host}: the bench was stopped there: run again")


def _follow(
    session: Session, job: str, fields: dict[str, Any], progress: Progress, say: Say
) -> dict[str, Any]:
    """Pass on what happens until the end, which is returned."""
    offset, starts = 0, 1
    while True:
        answer, _ = session.call("events", job=job, offset=offset, wait_s=WAIT_S)
        offset = answer["offset"]
        for event in answer["events"]:
            if "progress" in event:
                progress(*event["progress"])
            elif "say" in event:
                say(*event["say"])
        if "end" in answer:
            end: dict[str, Any] = answer["end"]
            return end
        if "output" in answer:
            if starts == MOST_STARTS:
                raise DependencyError(
                    f"{session.host}: the bench was ended {starts} times by something there "
                    f"({answer['output'] or 'it said nothing'}): look for what ends it"
                )
            say("the bench there was ended by something: starting it again")
            session.call("start", **fields)
            starts += 1


def _found(state: str, started_s: float, *, resume: bool) -> str:
    """In which state a job was found, in words."""
    then, now = time.localtime(started_s), time.localtime()
    clock = time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)
    if state == "old":
        anew = "going on with what it has" if resume else "measuring anew"
        return f"the bench of {clock} is too old: {anew}"
    words = {
        "running": "still running",
        "finished": "finished meanwhile; the next command measures anew",
        "died": "ended by something; it goes on with what it has",
    }
    return f"found the bench of {clock}, {words[state]}"


def stop(session: Session, job: str, say: Say) -> None:
    """Interrupt the job, on a connection of its own: the old one may be in the middle of a word."""
    with session.again() as other:
        say("stopping the bench there (Ctrl-C again: leave it running)")
        answer, _ = other.call("stop", job=job)
        if answer["stopped"]:
            other.call("done", job=job, keep=True)
        elif answer["followed"]:
            say("left running: another command follows it")
        else:
            say("it has not stopped yet")


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size >= 50_000 or not size else f"{size / 1e3:.1f} kB"
