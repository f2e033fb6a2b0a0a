from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from oat_edge import cli
from oat_edge.bench.config import BenchConfig
from oat_edge.bundle import Bundle
from oat_edge.files import point_latest
from tests.calib.points import make_bundle, report_of, save


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


REAL_QUICK = vars(BenchConfig)["quick"]


def quickest(cls: type[BenchConfig], **changes: Any) -> BenchConfig:
    """What --quick means in these tests: what is measured for how long, others test."""
    short: dict[str, Any] = {
        "min_seconds": 0.1,
        "min_iterations": 30,
        "rounds": 3,
        "warmup_min_s": 0.05,
        "warmup_cap_s": 0.2,
        "rewarm_s": 0.0,
        "throughput_seconds": 0.1,
        "idle_seconds": 0.1,
    }
    return cls(**{**short, **changes})


@pytest.fixture
def main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Ended]]:
    """Run `oat-edge` in this process, in an empty folder: no second import of torch."""
    handler = signal.getsignal(signal.SIGPIPE)
    monkeypatch.setattr(BenchConfig, "quick", classmethod(quickest))
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


@pytest.fixture(scope="module")
def measured_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with its report, as `export` and `bench` leave them."""
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")
    save(report_of(bundle), bundle.path / "report.json")
    return bundle


@pytest.fixture
def here(measured_bundle: Bundle, main: Callable[..., Ended]) -> Bundle:
    """The same as bundles/latest of the present folder."""
    shutil.copytree(measured_bundle.path, "bundles/tiny-run")
    point_latest(Path("bundles/tiny-run"))
    return Bundle.open("bundles/latest")
