"""An aarch64 Debian in a folder, run by an emulator: the light install without a board.

It shows that the packages, the formats and the figures hold on aarch64. Its times mean nothing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from oat_edge.files import cache_dir, exclusive_lock

VARIABLE = "OAT_EDGE_AARCH64_ROOT"
"""Environment variable that names a root made before, of any distribution with Python and pip."""
CHECKOUT = Path(__file__).resolve().parents[1]
INSTALL = "apt-get install qemu-user-static debootstrap binfmt-support"
BOOTSTRAP = (
    "debootstrap", "--arch=arm64", "--variant=minbase",
    "--include=python3,python3-pip,python3-venv", "bookworm",
)  # fmt: skip
# A mount and process namespace: what is mounted in it is seen by nobody else, and is gone with
# its last process. All of them end with this one, however it ends: nothing is left to unmount.
APART = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
# $1 is the root, $2 the folder in it, the rest the command. The shell stays as process 1: signals
# that a program sends to itself do not reach a process 1, so that one that crashed would hang.
ENTER = """
mount -t proc proc "$1/proc" && mount -t sysfs sysfs "$1/sys" && mount --rbind /dev "$1/dev" || exit
if [ -e "$1$2/cpuinfo" ]; then mount --bind "$1$2/cpuinfo" "$1/proc/cpuinfo" || exit; fi
root=$1 folder=$2 && shift 2
chroot "$root" /usr/bin/env -i --chdir="$folder" HOME=/root LANG=C.UTF-8 OMP_NUM_THREADS=1 \
    PATH=/usr/bin:/bin QEMU_CPU=cortex-a76 "$@"
exit $?
"""
# What a kernel says of a Cortex-A76. qemu before version 8.2 shows the /proc/cpuinfo of the machine
# below it: ONNX Runtime, which looks there for Arm's fields, crashes when it is imported.
CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A root that runs, with a folder of its own that goes when the test is done."""

    root: Path
    folder: Path
    """As this system sees it; commands start in it."""

    def command(self, *command: object) -> list[str]:
        """The arguments with which this system runs `command` inside."""
        inside = Path("/") / self.folder.relative_to(self.root)
        return [*APART, "sh", "-c", ENTER, "sh", str(self.root), str(inside), *map(str, command)]

    def run(self, *command: object, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run it inside, to its end or to its time limit."""
        return subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def output(self, *command: object, timeout_s: float = 300.0) -> str:
        """What it prints; it must succeed."""
        return _checked(self.run(*command, timeout_s=timeout_s))


def lacking(proc: Path = Path("/proc")) -> str | None:
    """What this machine lacks to run programs for aarch64 in a root, and what mends it."""
    if os.geteuid() != 0:
        return f"chroot needs root rights: sudo -E {sys.executable} -m pytest -m slow tests"
    needed = ["chroot", "mount", "setpriv", "unshare"]
    if not os.environ.get(VARIABLE):
        needed.append("debootstrap")
    if absent := [name for name in needed if shutil.which(name) is None]:
        return f"{', '.join(absent)} not installed: {INSTALL}"
    if not _native() and (reason := _lacking_handler(proc / "sys/fs/binfmt_misc")):
        return reason
    probe = subprocess.run([*APART, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        return (
            f"no mounts of one's own here ({probe.stderr.strip()}): give the container "
            "CAP_SYS_ADMIN (docker run --privileged)"
        )
    return None


@contextmanager
def emulated() -> Iterator[Machine]:
    """The root that the environment names, or one made once below the user's cache folder.

    Skips with what is missing and the command that mends it.
    """
    if reason := lacking():
        pytest.skip(reason)
    named = os.environ.get(VARIABLE)
    root = Path(named).resolve() if named else _made_root(cache_dir().resolve() / "aarch64")
    if not (root / "usr/bin/python3").exists():
        make = " ".join([*BOOTSTRAP, str(root)])
        pytest.fail(f"there is no python3 in {root}, which {VARIABLE} names: {make}")
    with tempfile.TemporaryDirectory(dir=root / "tmp", prefix="oat-edge-") as folder:
        if not _native():
            texts = [CPUINFO.format(number=number) for number in range(os.cpu_count() or 1)]
            Path(folder, "cpuinfo").write_text("".join(texts))
        yield Machine(root=root, folder=Path(folder))


def _native() -> bool:
    return platform.machine() == "aarch64"


def _lacking_handler(binfmt: Path) -> str | None:
    """Why the kernel does not give programs for aarch64 to qemu, and what mends it."""
    if not (binfmt / "register").exists():
        return f"binfmt_misc is not mounted: mount -t binfmt_misc binfmt_misc {binfmt}"
    handler = binfmt / "qemu-aarch64"
    said = handler.read_text() if handler.exists() else ""
    if not said and shutil.which("qemu-aarch64-static") is None:
        return f"no qemu for programs of aarch64: {INSTALL}"
    if not said.startswith("enabled"):
        return "programs for aarch64 are not given to qemu: update-binfmts --enable qemu-aarch64"
    if not re.search(r"^flags: .*F", said, re.MULTILINE):
        return f"{handler} has no flag F, qemu is not found from inside a root: {INSTALL}"
    return None


def _made_root(cache: Path) -> Path:
    """Make the root if it is not there: minutes, 330 MB."""
    if cache.is_relative_to(CHECKOUT):
        pytest.fail(f"{cache} lies in the checkout: set {VARIABLE} or XDG_CACHE_HOME elsewhere")
    root, partial = cache / "root", cache / "root.partial"
    with exclusive_lock(cache):
        if not root.exists():
            # Where one is left, its maker was killed, and its mounts went with it.
            shutil.rmtree(partial, ignore_errors=True)
            command = [*APART, *BOOTSTRAP, str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            if done.returncode != 0:
                said = (done.stdout + done.stderr).strip().splitlines()[-1:]
                shutil.rmtree(partial, ignore_errors=True)
                pytest.skip(f"{' '.join(BOOTSTRAP)} failed ({''.join(said)}): name a root made "
                            f"elsewhere in {VARIABLE}")  # fmt: skip
            partial.rename(root)
    return root


def install(machine: Machine) -> None:
    """Make venv/ in the machine's folder with oat-edge[cpu] in it, from wheels alone."""
    version = machine.output("python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')")
    fetch_wheels(version.strip(), machine.folder / "wheels")
    machine.output("python3", "-m", "venv", "venv")
    machine.output(
        "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-index", "--find-links=wheels", "oat-edge[cpu]", timeout_s=1200,
    )  # fmt: skip


def fetch_wheels(python: str, folder: Path) -> None:
    """Put the wheel of this checkout and all that oat-edge[cpu] needs on aarch64 into `folder`.

    Skips without setuptools and where pip reaches no index; any other failure is ours.
    """
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77'")
    with tempfile.TemporaryDirectory() as scratch:
        # A copy: building leaves folders beside the sources, and packs what older ones hold.
        source = Path(scratch) / "source"
        source.mkdir()
        for name in ("oat_edge", "exporters", "calib"):
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, source / name, symlinks=True, ignore=unwanted)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CHECKOUT / name, source)
        _checked(_pip(
            "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", scratch, source
        ))  # fmt: skip
        (wheel,) = Path(scratch).glob("*.whl")
        probe = _pip("download", "--no-deps", "--only-binary=:all:", "-d", scratch, "typer")
        if probe.returncode != 0:
            last = probe.stderr.strip().splitlines()[-1]
            pytest.skip(f"pip reaches no index ({last}): set PIP_INDEX_URL to one")
        # pip chooses among the pins by the Python that runs it.
        same = python == f"{sys.version_info[0]}.{sys.version_info[1]}"
        pins = ["-c", CHECKOUT / "constraints.txt"] if same else []
        _checked(_pip(
            "download", "-d", folder, *pins, "--only-binary=:all:",
            "--implementation=cp", f"--python-version={python}", "--platform=manylinux2014_aarch64",
            *(f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 29)),
            f"{wheel}[cpu]",
        ))  # fmt: skip


def _pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}"
    return done.stdout
