from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import oat_edge
from oat_edge.bench.request import BenchRequest
from oat_edge.bundle import Bundle
from oat_edge.remote.ssh import CONFIG_VARIABLE, check_host
from oat_edge.remote.targets import Target
from tests.bench.conftest import QUICKEST, make_bundle
from tests.remote.sshd import Proxy, Sshd

# One file to measure: about as short as a bench can be.
REQUEST = BenchRequest(config=dataclasses.replace(QUICKEST, idle_seconds=0.0), width="1.0")


class Told:
    """What a bench said and how far it got."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.progress: list[tuple[Any, ...]] = []
        self.on_text: Callable[[str], object] = lambda text: None

    def say(self, text: str, share: float = 0.0) -> None:
        if not share:
            self.texts.append(text)
        self.on_text(text)

    def __contains__(self, part: str) -> bool:
        return any(part in text for text in self.texts)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("remote") / "tiny-run")


@pytest.fixture
def bundle(template: Bundle, tmp_path: Path) -> Bundle:
    """A bundle of tiny networks, its own to write to."""
    return Bundle.open(shutil.copytree(template.path, tmp_path / "tiny-run"))


def make_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> Iterator[Sshd]:
    """A running device, which `ssh` reaches with its keys and no others."""
    # No bytecode: what a device with a full disk cuts off would stay beside the shared sources.
    own = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    server = Sshd(folder, {**own, **environment})
    server.start()
    monkeypatch.setenv(CONFIG_VARIABLE, str(server.client_config))
    try:
        yield server
    finally:
        server.kill_jobs()
        server.stop()


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A device on which this very oat-edge is found by `sys.executable`."""
    (tmp_path / "device").mkdir()
    root = str(Path(oat_edge.__file__).parents[1])
    yield from make_device(tmp_path / "device", monkeypatch, PYTHONPATH=root)


@pytest.fixture
def proxy(device: Sshd) -> Iterator[Proxy]:
    """A cable to the device that can be cut."""
    one = Proxy(device.port)
    yield one
    one.close()


def target_of(device: Sshd, *, port: int | None = None, name: str = "orin") -> Target:
    """A device's target, through a proxy's port if one is given."""
    host = check_host(f"ssh://{device.user}@127.0.0.1:{port or device.port}")
    return Target(name=name, host=host, device="cpu", python=sys.executable)
