"""Makes this version's environment on a device. It runs there alone, before oat-edge is there.

Its text is sent to the device's Python (3.10 or later): it imports the standard library only.
Standard input holds a line of JSON and the wheel; the answer is a line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MARKER = "ready"  # oat_edge.remote.client looks for it too
MAGIC = "oat-edge agent 1 "  # as in oat_edge.remote.wire, which is not there yet
OFFLINE = re.compile(
    "name resolution|NewConnectionError|Network is unreachable|timed out|ProxyError|"
    "No matching distribution|Could not find a version"
)


class RefusedError(Exception):
    """Why there can be no environment, and what to do: one line."""


def main() -> None:
    """Answer one request: whether the environment had to be made, or why it cannot be."""
    stdin = sys.stdin.buffer
    request = json.loads(stdin.readline().decode())
    wheel = stdin.read(request["wheel_size"])
    answer: dict[str, Any]
    try:
        if len(wheel) < request["wheel_size"]:
            raise RefusedError("the connection was lost while the wheel was sent: run again")
        answer = {"made": make(request, wheel)}
    except RefusedError as error:
        answer = {"refused": str(error)}
    except OSError as error:
        where = error.filename or "its cache folder"
        answer = {
            "refused": f"cannot write {where} ({error.strerror}): make room, or name another "
            "place with XDG_CACHE_HOME"
        }
    sys.stdout.write("\n" + MAGIC + json.dumps(answer) + "\n")
    sys.stdout.flush()


def make(request: dict[str, Any], wheel: bytes) -> bool:
    """Build the environment unless it is there. Returns whether it had to be built."""
    check_venv()
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "oat-edge" / "env"
    env = folder / request["name"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / (request["name"] + ".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, another finds it built
        extras = extras_of(request["device"], platform.machine())
        have = installed_extras(env)
        if have is not None and extras in have:
            return False
        if have is None:
            if env.is_dir():
                shutil.rmtree(env)  # of a build that was cut short: it has no marker
            build(request, wheel, env)
        # The file itself is named again: an index must not be asked for a package of this name.
        run([*pip(env), str(env / request["wheel_name"]) + (extras and "[" + extras + "]")])
        mark(env, sorted({*(have or ()), "", extras}))
    return True


def installed_extras(env: Path) -> list[str] | None:
    """What was installed into an environment besides the package; None if it is not whole."""
    try:
        found: list[str] = json.loads((env / MARKER).read_text())["extras"]
        return found
    except (OSError, ValueError, KeyError):
        return None


def mark(env: Path, extras: list[str]) -> None:
    """Write the file that makes an environment count; it comes last."""
    temporary = env / (MARKER + ".new")
    with temporary.open("w") as out:
        json.dump({"extras": extras}, out)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(env / MARKER)


def check_venv() -> None:
    """Refuse a Python that cannot make environments (Debian's packages leave that out)."""
    try:
        import ensurepip
        import venv
    except ImportError:
        raise RefusedError(f"its Python cannot make environments: {apt_venv()}") from None
    assert ensurepip and venv


def build(request: dict[str, Any], wheel: bytes, env: Path) -> None:
    """Make the environment, with the package and not yet what that needs."""
    # What is installed in the system (a Jetson's TensorRT) is to be seen.
    run([sys.executable, "-m", "venv", "--system-site-packages", str(env)])
    file = env / request["wheel_name"]
    file.write_bytes(wheel)
    # By itself first: an oat-edge of the same number in the system must not count as this one.
    run([*pip(env), "--no-deps", "--force-reinstall", str(file)])
    check = (
        "import sys; sys.path[:] = filter(None, sys.path); "
        "from oat_edge.remote.wheel import code_digest; print(code_digest())"
    )
    found = run([str(env / "bin" / "python"), "-c", check])
    if found.strip() != request["code_digest"]:
        path = os.environ.get("PYTHONPATH", "")
        raise RefusedError(
            f"another oat-edge comes before the new one (PYTHONPATH is {path!r}): take it away"
        )


def pip(env: Path) -> list[str]:
    """The environment's own pip, which asks nothing."""
    options = ["--no-input", "--disable-pip-version-check", "-q"]
    return [str(env / "bin" / "python"), "-m", "pip", "install", *options]


def extras_of(device: str, machine: str) -> str:
    """What brings the device's runtime, "" for nothing. A Jetson has TensorRT from JetPack."""
    if device == "cuda" and machine == "x86_64":
        return "trt"
    return "cpu" if device == "cpu" else ""


def apt_venv() -> str:
    """What brings the module venv on Debian and Ubuntu."""
    return f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"


def run(command: list[str]) -> str:
    """The output of a command; raises with its last words if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = done.stdout.decode(errors="replace")
    if done.returncode == 0:
        return said
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no message"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    if "ensurepip" in said:
        remedy = apt_venv()
    elif OFFLINE.search(said):
        remedy = "give it network access, or install numpy, typer, rich and the runtime there"
    elif "No space left" in said:
        remedy = "make room, or name another place with XDG_CACHE_HOME"
    else:
        remedy = "see what it says when it is run there by hand"
    words = " ".join(command[1:4])
    raise RefusedError(f"`{words} …` failed there ({last:.200}): {remedy}")
