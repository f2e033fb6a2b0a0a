"""Policy: in front of the engines of all widths, gives each request the operating point it needs.

    with Policy.open("bundles/latest", deadline_ms=5.0) as policy:
        result = policy.infer(images, threat=0.2)

All widths are opened once and stay resident, with λ as an input: another λ is another number, and
another width another engine that is loaded already. `policy_rules` has the decisions.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from oat_edge.bundle import Bundle
from oat_edge.errors import InputError
from oat_edge.runtime.policy_figures import choose_files, load_report
from oat_edge.runtime.policy_rules import Choice, Chooser, Rules
from oat_edge.runtime.runner import Float32, Runner

if TYPE_CHECKING:
    from oat_edge.bench.report import Report

NS_PER_MS = 1e6
# The first requests of a fresh engine allocate memory and choose kernels.
WARMUP_RUNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """An answer and how it came about."""

    logits: Float32
    """(N, K)"""
    choice: Choice
    latency_ms: float
    """What the engine took."""
    waited_ms: float
    """From the call of `infer` to the engine's start: other threads' requests, and the choice."""
    met: bool
    """Whether the answer was there before the deadline, counted from the call of `infer`."""


class Policy:
    """A context manager around the runners of all widths of one bundle.

    Threads may share it. Requests run one at a time: engines side by side would slow each other
    down, and what each takes would say nothing of the next. A thread that had to wait chooses
    when its turn has come, with what is left of its deadline, which it shares with the threads
    that still wait. An application with a queue of its own tells how many are `waiting`. (On a
    GPU, keep to the same threads: ONNX Runtime captures its CUDA graphs anew for each.)
    """

    def __init__(
        self,
        runners: Mapping[float, Runner],
        chooser: Chooser,
        *,
        deadline_ms: float | None = None,
        threat: float | None = None,
    ) -> None:
        """runners: by width, λ as an input, for every width of the chooser. Closed with this.

        deadline_ms, threat: for requests that name none.
        """
        if set(runners) != set(chooser.widths):
            raise InputError(
                f"runners are of widths {sorted(runners)}, figures of {sorted(chooser.widths)}: "
                "expected the same"
            )
        self._runners = dict(runners)
        self._chooser = chooser
        self._deadline_ms = math.inf if deadline_ms is None else _checked_deadline(deadline_ms)
        # Who does not know is attacked: robustness is not given away unasked.
        self._threat = 1.0 if threat is None else _checked_threat(threat)
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._waiting = 0
        """Threads in `infer` whose turn has not come."""
        self.closed = False

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        report: Report | str | Path | None = None,
        device: str = "cpu",
        format: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        cuda_graph: bool = True,
        deadline_ms: float | None = None,
        threat: float | None = None,
        rules: Rules | None = None,
    ) -> Policy:
        """Open all widths of a bundle that a bench report has latency and accuracies of.

        report: of this bundle on this device; None takes report.json in the bundle.
        device, format, precision, cuda_graph: as `open_runner` takes them. threads: CPU threads of
        a request; None takes as many as the bench did, so that its latencies hold.
        deadline_ms, threat: for requests that name none; None: no deadline, always attacked.
        Raises `InputError` (no such bundle, a report of another checkpoint or device, or without
        accuracies) and what `open_runner` raises.
        """
        # Here, because the package exports this class.
        from oat_edge.runtime import open_artifact

        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        found = load_report(opened, report, device)
        files = choose_files(opened, found, device=device, format=format, precision=precision)
        if threads is None and isinstance(benched := found.settings.get("threads"), int):
            threads = benched
        with ExitStack() as stack:
            runners = {}
            for artifact, figures in files:
                runner = stack.enter_context(
                    open_artifact(
                        opened, artifact, device=device, threads=threads, cuda_graph=cuda_graph
                    )
                )
                _warm_up(runner, figures.quiet_ms)
                runners[figures.width] = runner
            chooser = Chooser([figures for _, figures in files], rules)
            policy = cls(runners, chooser, deadline_ms=deadline_ms, threat=threat)
            stack.pop_all()
        return policy

    @property
    def widths(self) -> tuple[float, ...]:
        """Widths that are resident."""
        return self._chooser.widths

    @property
    def precisions(self) -> dict[float, str]:
        """By width, the precision that really runs."""
        return {width: runner.precision for width, runner in self._runners.items()}

    def predicted_ms(self, batch: int = 1) -> dict[float, float]:
        """By width, what a request of `batch` images is predicted to take at most."""
        with self._state:
            return self._chooser.predicted_ms(batch)

    def choose(
        self,
        *,
        deadline_ms: float | None = None,
        threat: float | None = None,
        batch: int = 1,
        waiting: int = 0,
    ) -> Choice:
        """What `infer` would take now for such a request; nothing runs, nothing changes.

        deadline_ms: above 0, for the whole request. threat: in [0, 1], how likely it is that the
        request is attacked. None takes what the policy was opened with. batch: images.
        waiting: as `infer` takes it. Raises `InputError` on other values.
        """
        if not _is(Integral, batch) or batch < 1:
            raise InputError(f"batch is {batch}: expected 1 or more")
        return self._choose(*self._request(deadline_ms, threat), batch, _checked_waiting(waiting))

    def infer(
        self,
        images: Float32,
        *,
        deadline_ms: float | None = None,
        threat: float | None = None,
        waiting: int = 0,
    ) -> Result:
        """Choose an operating point, run it, and learn what that took.

        images: (N, C, H, W) float32 in [0, 1]. deadline_ms: above 0, from this call to the answer.
        threat: in [0, 1], how likely it is that the request is attacked. None takes what the
        policy was opened with. waiting: requests that the application holds back until this one is
        answered; threads that wait in `infer` are counted anyway. A late answer is an answer: see
        `Result.met`.
        Raises `InputError` on other values, on images that `Runner.infer` refuses, and after
        `close`.
        """
        called = time.perf_counter_ns()
        limit_ms, share = self._request(deadline_ms, threat)
        held = _checked_waiting(waiting)
        with self._my_turn():
            if self.closed:
                raise InputError("this policy is closed: open it again")
            # The runner says what is wrong with other images.
            batch = len(images) if isinstance(images, np.ndarray) and images.ndim else 0
            left_ms = limit_ms - (time.perf_counter_ns() - called) / NS_PER_MS
            choice = self._choose(left_ms, share, max(batch, 1), held)
            runner = self._runners[choice.point.width]
            start = time.perf_counter_ns()
            logits = runner.infer(images, choice.point.lam)
            end = time.perf_counter_ns()
            latency_ms = (end - start) / NS_PER_MS
            with self._state:
                self._chooser.observe(choice, latency_ms)
        return Result(
            logits=logits,
            choice=choice,
            latency_ms=latency_ms,
            waited_ms=(start - called) / NS_PER_MS,
            met=(end - called) / NS_PER_MS <= limit_ms,
        )

    def close(self) -> None:
        """Release all engines, after the request that is running; `infer` is over."""
        with self._turn, ExitStack() as stack:
            self.closed = True
            # All are closed, also if one of them fails to.
            for runner in self._runners.values():
                stack.callback(runner.close)

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, deadline_ms: float | None, threat: float | None) -> tuple[float, float]:
        """What is asked for, checked."""
        return (
            self._deadline_ms if deadline_ms is None else _checked_deadline(deadline_ms),
            self._threat if threat is None else _checked_threat(threat),
        )

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """One thread at a time; those that wait for it are counted."""
        with self._state:
            self._waiting += 1
        try:
            self._turn.acquire()
        finally:
            with self._state:
                self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _choose(self, deadline_ms: float, threat: float, batch: int, held: int) -> Choice:
        with self._state:
            return self._chooser.choose(
                deadline_ms=deadline_ms, threat=threat, batch=batch, waiting=held + self._waiting
            )


def _warm_up(runner: Runner, batches: Mapping[int, float]) -> None:
    """Run each batch that was measured; a policy's first requests are to tell of the later ones."""
    for batch in batches:
        images = np.zeros((batch, *runner.io.image_shape), dtype=np.float32)
        for _ in range(WARMUP_RUNS):
            runner.infer(images, runner.io.lambdas[0])


def _is(kind: type, value: object) -> bool:
    # For callers that no type checker looks at.
    return isinstance(value, kind)


def _checked_deadline(deadline_ms: float) -> float:
    # Written so that NaN fails too.
    if not _is(Real, deadline_ms) or not deadline_ms > 0.0:
        raise InputError(f"deadline_ms is {deadline_ms}: expected a number of ms above 0")
    return deadline_ms


def _checked_threat(threat: float) -> float:
    if not _is(Real, threat) or not 0.0 <= threat <= 1.0:
        raise InputError(f"threat is {threat}: expected a probability in [0, 1]")
    return threat


def _checked_waiting(waiting: int) -> int:
    if not _is(Integral, waiting) or waiting < 0:
        raise InputError(f"waiting is {waiting}: expected a number of requests, 0 or more")
    return waiting
