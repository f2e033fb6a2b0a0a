"""Policy on real engines: tiny ONNX files, and a report with made-up figures of them."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oat_edge.bench.report import Report, save_report
from oat_edge.bundle import Bundle
from oat_edge.errors import InputError
from oat_edge.runtime import open_runner
from oat_edge.runtime.policy import Policy, Result
from oat_edge.runtime.policy_figures import choose_files
from oat_edge.runtime.policy_rules import Chooser
from tests.bench.conftest import make_bundle
from tests.bench.made_up import change, latency
from tests.runtime.reports import report_of

IMAGES = np.random.default_rng(0).random((3, 1, 4, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With its report. Do not change it."""
    made = make_bundle(tmp_path_factory.mktemp("bundles") / "tiny-run")
    save_report(report_of(made), [], made.path / "report.json")
    return made


def test_logits_are_those_of_the_chosen_point(bundle: Bundle) -> None:
    with Policy.open(bundle.path, threads=1) as policy:
        assert policy.widths == (0.5, 1.0)
        assert policy.precisions == {0.5: "fp32", 1.0: "fp32"}
        points = set()
        for threat in (0.0, 0.5, 1.0, None):
            for deadline_ms in (1e-9, 1e9, None):
                choice = policy.choose(deadline_ms=deadline_ms, threat=threat, batch=3)
                result = policy.infer(IMAGES, deadline_ms=deadline_ms, threat=threat)
                point = result.choice.point
                points.add(point)
                with open_runner(bundle.path, point.width, threads=1) as runner:
                    expected = runner.infer(IMAGES, point.lam)
                np.testing.assert_array_equal(result.logits, expected)
                assert result.latency_ms > 0 and result.waited_ms > 0
                if deadline_ms == 1e-9:
                    assert not result.met and result.choice.reason == "nothing fits"
                else:
                    assert result.met and point == choice.point
        assert points


def test_a_request_that_names_nothing_gets_the_policys_deadline_and_threat(bundle: Bundle) -> None:
    with Policy.open(bundle, threads=1, deadline_ms=1e9, threat=0.25) as policy:
        usual, named = policy.choose(), policy.choose(deadline_ms=7.0, threat=0.75)
        assert (usual.deadline_ms, usual.threat) == (1e9, 0.25)
        assert (named.deadline_ms, named.threat) == (7.0, 0.75)
    with Policy.open(bundle, threads=1) as policy:
        unknown = policy.choose()
        assert (unknown.deadline_ms, unknown.threat) == (math.inf, 1.0)


def test_it_learns_from_what_it_runs(bundle: Bundle) -> None:
    report = Report.load(bundle.path / "report.json")
    slow = change(report, lambda row: True, latency_ms=latency(p50=1e6))
    with Policy.open(bundle, report=slow, threads=1) as policy:
        before_ms = policy.predicted_ms(3)
        for _ in range(25):
            used = policy.infer(IMAGES, threat=0.0).choice.point.width
        assert policy.predicted_ms(3)[used] < before_ms[used] / 100


@pytest.mark.parametrize(("asked", "taken"), [(None, 1), (2, 2)])
def test_engines_get_as_many_threads_as_in_the_bench(
    bundle: Bundle, asked: int | None, taken: int
) -> None:
    report = report_of(bundle)
    report = dataclasses.replace(report, settings={**report.settings, "threads": 1})
    with Policy.open(bundle, report=report, threads=asked) as policy:
        options = [runner._session.get_session_options() for runner in policy._runners.values()]
        assert [one.intra_op_num_threads for one in options] == [taken, taken]


def test_threads_take_turns_and_each_gets_its_own_answer(bundle: Bundle) -> None:
    images = np.random.default_rng(1).random((40, 2, 1, 4, 4), dtype=np.float32)
    with Policy.open(bundle, threads=1) as policy, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda one: policy.infer(one, threat=0.5), images))
        runners = {width: open_runner(bundle.path, width, threads=1) for width in policy.widths}
        for one, result in zip(images, results, strict=True):
            point = result.choice.point
            expected = runners[point.width].infer(one, point.lam)
            np.testing.assert_array_equal(result.logits, expected)


def test_waiting_for_another_thread_counts_against_the_deadline(bundle: Bundle) -> None:
    with Policy.open(bundle, threads=1) as policy:
        answers = []
        waiting = threading.Thread(
            target=lambda: answers.append(policy.infer(IMAGES, deadline_ms=20.0))
        )
        with policy._turn:
            waiting.start()
            waiting.join(timeout=0.1)
            assert waiting.is_alive()
            policy.choose()  # to look is not to wait
        waiting.join()
        (result,) = answers
        assert result.waited_ms >= 20.0 and not result.met
        assert result.choice.deadline_ms < 0 and result.choice.reason == "nothing fits"


def test_who_waits_counts_with_those_that_the_application_holds_back(bundle: Bundle) -> None:
    num, held, together = 4, 3, threading.Barrier(5)

    def ask() -> Result:
        together.wait()
        return policy.infer(IMAGES, waiting=held)

    with Policy.open(bundle, threads=1) as policy, ThreadPoolExecutor(num) as pool:
        with policy._turn:
            answers = [pool.submit(ask) for _ in range(num)]
            together.wait()
            while policy._waiting < num:
                time.sleep(0.001)
        found = sorted(answer.result().choice.waiting for answer in answers)
        # Those before had the others behind them, the last one nobody.
        assert found == [held + behind for behind in range(num)]
        assert policy.infer(IMAGES).choice.waiting == 0


def test_close_releases_every_engine(bundle: Bundle) -> None:
    with Policy.open(bundle, threads=1) as policy:
        runners = dict(policy._runners)
        policy.infer(IMAGES)
    assert policy.closed and all(runner.closed for runner in runners.values())
    with pytest.raises(InputError, match="this policy is closed"):
        policy.infer(IMAGES)
    policy.close()


def test_what_cannot_be_opened_leaves_nothing_open(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_bundle(tmp_path / "tiny-run")
    (other.path / "w1.00-fp32.onnx").write_bytes(b"damaged")
    closed = []
    from oat_edge.runtime.ort import OrtRunner

    close = OrtRunner.close
    monkeypatch.setattr(OrtRunner, "close", lambda self: (closed.append(self.path), close(self)))
    with pytest.raises(InputError, match="is damaged"):
        Policy.open(other, report=bundle.path / "report.json", threads=1)
    assert [path.name for path in closed] == ["w0.50-fp32.onnx"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"deadline_ms": 0.0}, "deadline_ms is 0.0: expected a number of ms above 0"),
        ({"deadline_ms": -1.0}, "deadline_ms is -1.0"),
        ({"deadline_ms": math.nan}, "deadline_ms is nan"),
        ({"threat": -0.1}, r"threat is -0.1: expected a probability in \[0, 1\]"),
        ({"threat": 1.1}, "threat is 1.1"),
        ({"threat": math.nan}, "threat is nan"),
        ({"deadline_ms": "5"}, "deadline_ms is 5"),
        ({"threat": "high"}, "threat is high"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    bundle: Bundle, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Policy.open(bundle, threads=1, **request_)
    with Policy.open(bundle, threads=1) as policy:
        for ask in (policy.choose, lambda **wrong: policy.infer(IMAGES, **wrong)):
            with pytest.raises(InputError, match=message):
                ask(**request_)
        with pytest.raises(InputError, match="batch is 0"):
            policy.choose(batch=0)
        for waiting in (-1, 0.5):
            with pytest.raises(InputError, match=f"waiting is {waiting}: expected a number of"):
                policy.infer(IMAGES, waiting=waiting)  # type: ignore[arg-type]
        for images in (IMAGES[0], IMAGES[:0], IMAGES.tolist(), np.float32(1.0)):
            with pytest.raises(InputError, match="image"):
                policy.infer(images)
        policy.infer(IMAGES)


def test_runners_must_be_those_of_the_figures(bundle: Bundle) -> None:
    report = Report.load(bundle.path / "report.json")
    chooser = Chooser([figures for _, figures in choose_files(bundle, report, device="cpu")])
    with (
        open_runner(bundle.path, 0.5, threads=1) as runner,
        pytest.raises(InputError, match=r"runners are of widths \[0\.5\], figures of \[0\.5, 1"),
    ):
        Policy({0.5: runner}, chooser)
