"""Machines whose settings can be changed: trees of files, and tools that are small scripts.

The scripts keep their state in files and do what NVIDIA documents of nvpmodel (developer guide,
"Supported Modes and Power Efficiency"), of jetson_clocks (its --help, and what its text asks about
an existing file) and of nvidia-smi (its manual): they stand in for the tools, not for what is
tested.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oat_edge.device.system import System

NVPMODEL = """#!/bin/sh
cd "$TOOLS" && echo "nvpmodel $*" >> log
case "$1" in
  -q) echo "NV Fan Mode:quiet"; echo "NV Power Mode: $(cut -d' ' -f2 mode)"; cut -d' ' -f1 mode ;;
  -m)
    case "$2" in
      0) echo "0 15W" > mode ;;
      1) echo "1 MODE_25W" > mode ;;
      2) echo "NVPM WARN: Reboot required for changing to this power mode: 2"
         echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
         read answer || echo "NVPM ERROR: bad input!"
         test "$answer" = yes && echo rebooted >> log ;;
    esac ;;
esac
exit 0
"""
JETSON_CLOCKS = """#!/bin/sh
cd "$TOOLS" && echo "jetson_clocks $1" >> log
case "$1" in
  --store)
    if [ -e "$2" ]; then
      echo "File $2 already exists. Can I overwrite it? Y/N:"
      read answer || { echo "Error: file $2 already exists!"; exit 1; }
    fi
    cat clocks > "$2" ;;
  --restore)
    [ -e "$2" ] || { echo "Error: $2 file not found !"; exit 1; }
    cat "$2" > clocks ;;
  "") echo "$(cut -d' ' -f2 mode) highest" > clocks ;;
esac
"""
NVIDIA_SMI = """#!/bin/sh
cd "$TOOLS" && echo "nvidia-smi $*" >> log
case "$3" in
  --query-gpu=*) cat clocks_known ;;
  -lgc) echo "$4" > clocks ;;
  -rgc) echo free > clocks ;;
esac
"""
MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MODE_25W >\n" + (
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
)


class Live(System):
    """A tree that stands for the running machine: it may be changed, tools are really run."""

    __slots__ = ()

    @property
    def recorded(self) -> bool:
        return False


@dataclass
class Machine:
    root: Path
    tools: Path
    state: Path

    @property
    def system(self) -> System:
        return Live(self.root)

    def has(self, tool: str) -> str:
        return (self.tools / tool).read_text().strip()

    def log(self) -> list[str]:
        log = self.tools / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line != "nvpmodel -q"]

    @property
    def record(self) -> Path:
        return self.state / "before.json"

    def is_as_it_was(self) -> bool:
        as_was = (self.has("mode"), self.has("clocks")) == ("0 15W", "free")
        return as_was and not self.record.exists()


def governors(machine: Machine) -> list[str]:
    files = sorted(machine.root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"))
    return [file.read_text().strip() for file in files]


def silent(text: str) -> None:
    pass


# A bench in a process of its own: it holds the machine until it is told to end.
BENCH = """
import os, sys
from pathlib import Path
from oat_edge.device.control import held
from oat_edge.device.system import System

class Live(System):
    __slots__ = ()
    recorded = property(lambda self: False)

os.geteuid = lambda: 0
with held(
    Live(Path(sys.argv[1])), lock_clocks=True, power_mode="25W", on_gpu=True,
    say=lambda text: print(text, file=sys.stderr),
):
    print("held", flush=True)
    sys.stdin.readline()
"""


def start_bench(
    machine: Machine, prepare: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH, str(machine.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert bench.stdout is not None
    assert bench.stdout.readline() == "held\n"
    assert machine.has("mode") == "1 MODE_25W" and machine.has("clocks") == "MODE_25W highest"
    return bench


def kill(bench: subprocess.Popen[str]) -> None:
    bench.kill()
    bench.communicate(timeout=30)
