"""Where facts about a machine are read: below one root, so that a recorded tree can stand in.

A recorded tree holds files under their own paths (proc/…, sys/…, etc/…), and what commands said
in commands/, each in a file named by its command line ("nvpmodel -q").
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
COMMANDS = "commands"


@dataclass(frozen=True, slots=True)
class System:
    """This machine, or a recorded tree of one.  Names of files are relative: "proc/cpuinfo"."""

    root: Path = ROOT

    @property
    def recorded(self) -> bool:
        """Whether this is a tree of files and not the machine that runs this program."""
        return self.root.resolve() != ROOT

    def read(self, name: str) -> str | None:
        """A file's text without the blanks and NULs around it; None if it cannot be read."""
        try:
            return (self.root / name).read_text(errors="replace").strip("\0 \n\t")
        except OSError:
            return None

    def number(self, name: str) -> float | None:
        """The one number that a file holds; None if it holds none."""
        text = self.read(name)
        try:
            return None if text is None else float(text)
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[str]:
        """Names that match, sorted; links are followed where the pattern names them."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))

    def run(self, *command: str, timeout_s: float = 10.0) -> str | None:
        """What a command prints; None if it is not there, fails, or takes too long.

        It must only look: in a recorded tree its recorded output is read instead.
        """
        if self.recorded:
            return self.read(f"{COMMANDS}/{' '.join(command)}")
        if shutil.which(command[0]) is None:
            return None
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None
