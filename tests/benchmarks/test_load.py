from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common, load, load_traffic
from oat_edge.bench.report import save_report
from oat_edge.operating_point import OperatingPoint
from tests.bench.conftest import make_bundle
from tests.runtime.reports import report_of


@pytest.mark.usefixtures("frozen_heap")
def test_every_candidate_serves_the_same_requests_in_every_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    save_report(report_of(bundle), [], bundle.path / "report.json")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = ["--bundle", bundle.path, "--seconds", "0.14", "--batch", "2", "--busy", "1"]
    arguments += ["--slot", "0.02"]
    monkeypatch.setattr(sys, "argv", ["load", *map(str, arguments)])
    load.main()
    saved = json.loads((tmp_path / "load-tiny.json").read_text())
    assert (tmp_path / "load-tiny.png").stat().st_size > 10_000
    assert set(saved["summary"]) == {"policy", "width 0.5", "width 1"}
    assert len(saved["phases"]) == len(load.PHASES)
    for part in (saved["summary"], *saved["phases"]):
        candidates = [one for name, one in part.items() if name != "phase"]
        assert len({one["num_requests"] for one in candidates}) == 1
        for one in candidates:
            assert 0 <= one["right_in_time"] <= min(one["met"], one["right"]) <= 1
    assert list(saved["summary"]["width 1"]["width_shares"]) == ["1"]
    assert saved["summary"]["width 1"]["switches"] == 0 < saved["decision_us"]


def test_a_summary_is_of_its_requests() -> None:
    def served(width: float, right: float, met: bool, reason: str = "fits") -> load_traffic.Served:
        return load_traffic.Served(
            phase=0, at_s=0.0, response_ms=2.0 if met else 8.0,
            point=OperatingPoint(width, 0.0), reason=reason, right=right, met=met, overhead_us=5.0,
        )  # fmt: skip

    requests = [
        served(1.0, 1.0, True), served(1.0, 0.5, False), served(0.5, 0.5, True),
        served(1.0, 1.0, True, "probe"), served(0.5, 0.0, True), served(1.0, 1.0, True),
    ]  # fmt: skip
    found = load.summarise(requests)
    assert (found["met"], found["right"]) == pytest.approx((5 / 6, 4 / 6))
    assert found["right_in_time"] == pytest.approx(3.5 / 6)
    assert (found["switches"], found["probes"]) == (2, 1)  # a probe is no switch
    assert found["width_shares"] == {"0.5": 0.4, "1": 0.6}
    assert found["response_ms"]["p50"] == 2.0


def test_requests_arrive_as_often_as_asked() -> None:
    setting = load_traffic.Load(batch=3, widest_ms=0.1, deadline_ms=1.0, seed=0)
    phase = load_traffic.Phase(name="test", utilisation=0.5, threat=0.25)
    drawn = [load_traffic.Requests.drawn(setting, phase, 7, (0, slot)) for slot in range(20)]
    num = sum(len(one.arrivals_s) for one in drawn)
    expected = 20 * setting.slot_s * 0.5 / 0.1e-3
    assert num == pytest.approx(expected, abs=5 * expected**0.5)
    assert np.mean(np.concatenate([one.attacked for one in drawn])) == pytest.approx(0.25, abs=0.02)
    for one in drawn:
        assert (np.diff(one.arrivals_s) > 0).all() and one.arrivals_s[-1] < setting.slot_s
        assert one.images.shape == (len(one.arrivals_s), 3) and one.images.max() < 7


def test_competing_processes_end_with_the_one_that_is_killed() -> None:
    """SIGKILL runs no clean-up: cores would be burnt for ever."""
    script = (
        "import subprocess, time\n"
        "from benchmarks.load_traffic import competing\n"
        "started = []\n"
        "popen = subprocess.Popen\n"
        "subprocess.Popen = lambda *a, **k: started.append(popen(*a, **k)) or started[-1]\n"
        "with competing(1):\n"
        "    print(started[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        process.kill()
        process.wait()
    try:
        deadline = time.monotonic() + 10
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
