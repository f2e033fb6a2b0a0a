from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest

from oat_edge.bench import requests
from oat_edge.bench.requests import throughput_ips
from oat_edge.runtime import open_artifact
from tests.bench.conftest import QUICKEST


def images(*batches):
    return {batch: np.full((batch, 1, 4, 4), 0.5, dtype=np.float32) for batch in batches}


def test_each_batch_has_a_throughput_and_a_cpu_nothing_to_remark(bundle):
    config = dataclasses.replace(QUICKEST, batches=(1, 3), throughput_workers=2)
    artifact = bundle.select(format="onnx", width=0.5)
    found, remarks = throughput_ips(bundle, artifact, images(1, 3), config)
    assert set(found) == {1, 3} and min(found.values()) > 0 and remarks == ()


def test_what_the_runners_remark_while_they_run_is_told_once(bundle, monkeypatch):
    """A real runner, which says after a request what an engine says whose capture failed."""
    remark = "cuda_graph: not captured at batch 1 (one reason)"

    def open_and_remark(*arguments, **options):
        runner = open_artifact(*arguments, **options)
        run = runner._run

        def remarking(image, lam):
            runner.remarks = (remark,)
            return run(image, lam)

        runner._run = remarking
        return runner

    monkeypatch.setattr(requests, "open_artifact", open_and_remark)
    artifact = bundle.select(format="onnx", width=0.5)
    assert throughput_ips(bundle, artifact, images(1), QUICKEST)[1] == (remark,)


# Says when the workers are at it. Runners that are closed under them end the process (-6).
INTERRUPTED = """
import dataclasses, sys, threading, time
import numpy as np
from oat_edge.bench.requests import throughput_ips
from oat_edge.bundle import Bundle
from tests.bench.conftest import QUICKEST

bundle = Bundle.open(sys.argv[1])
config = dataclasses.replace(QUICKEST, throughput_workers=3, throughput_seconds=3600.0)

def tell():
    while sum(one.name.startswith("throughput") for one in threading.enumerate()) < 3:
        time.sleep(0.01)
    print("running", flush=True)

threading.Thread(target=tell, daemon=True).start()
try:
    image = np.full((64, 1, 4, 4), 0.5, dtype=np.float32)
    config = dataclasses.replace(config, batches=(64,))
    throughput_ips(bundle, bundle.select(format="onnx", width=1.0), {64: image}, config)
except KeyboardInterrupt:
    left = [one.name for one in threading.enumerate() if one.name.startswith("throughput")]
    print("interrupted, at work:", len(left), flush=True)
"""


@pytest.mark.parametrize("turn", range(3))
def test_ctrl_c_waits_for_the_workers_before_their_runner_is_closed(
    bundle, child_environment, turn
):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(bundle.path)],
        env=child_environment,
        # A suite that a shell runs in the background has inherited that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "running\n", process.communicate()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "interrupted, at work: 0\n", "")
