from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from oat_edge import cli


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """Run `oat-edge` in this process, in an empty folder: no second import of torch."""
    handler = signal.getsignal(signal.SIGPIPE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["oat-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert isinstance(stopped.value.code, int | None)
        return Ended(stopped.value.code or 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGPIPE, handler)
