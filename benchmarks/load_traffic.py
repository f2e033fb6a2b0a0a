"""The traffic of the load test: phases, requests that arrive at random, one server, competitors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from oat_edge.evaluation.accuracy import to_float
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.operating_point import OperatingPoint
from oat_edge.runtime.policy import Policy

# A deadline that has passed while the request queued; the policy then takes what is fastest.
NO_TIME_MS = 1e-3
# A process that competes for cores, caches and memory as another network would; it ends with the
# one that started it, also if that is killed.
BUSY = """import os
import sys

import numpy as np

a = np.ones((256, 256), np.float32)
while os.getppid() == int(sys.argv[1]):
    for _ in range(100):
        a @ a
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of the test."""

    name: str
    utilisation: float
    """Arrivals, as the share of time that the widest network needs for them on a quiet machine."""
    busy: bool = False
    """Other processes compete for the cores."""
    threat: float = 0.02
    """Share of requests that are attacked; the policy is told."""


PHASES = (
    Phase(name="calm", utilisation=0.3),
    Phase(name="burst", utilisation=1.1),
    Phase(name="calm", utilisation=0.3),
    Phase(name="busy", utilisation=0.3, busy=True),
    Phase(name="attacked", utilisation=0.3, threat=0.5),
    Phase(name="busy, attacked", utilisation=0.3, busy=True, threat=0.5),
    Phase(name="calm", utilisation=0.3),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One request."""

    phase: int
    at_s: float
    """Arrival, on the candidate's own clock, which stands still while others have their turn."""
    response_ms: float
    """From arrival to answer."""
    point: OperatingPoint
    reason: str
    right: float
    """Share of its images."""
    met: bool
    overhead_us: float
    """Of the call, beside the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What all phases have in common."""

    batch: int
    widest_ms: float
    """Median latency of the widest network when the test began."""
    deadline_ms: float
    """From the arrival of a request."""
    seed: int
    slot_s: float = 0.25
    """For so long one candidate has its turn."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of one slot, the same for all candidates."""

    arrivals_s: Any
    """(n,) from the beginning of the slot."""
    images: Any
    """(n, batch) places in the packs."""
    attacked: Any
    """(n,) bool"""

    @classmethod
    def drawn(cls, load: Load, phase: Phase, num_images: int, place: tuple[int, int]) -> Requests:
        """Poisson arrivals of random images."""
        rng = np.random.default_rng([load.seed, *place])
        gap_s = load.widest_ms / 1e3 / phase.utilisation
        arrivals_s = np.cumsum(rng.exponential(gap_s, size=int(3 * load.slot_s / gap_s) + 10))
        arrivals_s = arrivals_s[arrivals_s < load.slot_s]
        images = rng.integers(num_images, size=(len(arrivals_s), load.batch))
        return cls(arrivals_s, images, rng.random(len(arrivals_s)) < phase.threat)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What may be asked: clean and attacked images as the engine takes them."""

    packs: PackSet
    clean: Any
    attacked: dict[OperatingPoint, Any]

    @classmethod
    def of(cls, packs: PackSet) -> Traffic:
        """Clean images, and of each point those of its first attack."""
        attacks = {point: attack for attack, point in reversed(packs.sources)}
        crafted = {p: to_float(packs.adversarial(attack, p)) for p, attack in attacks.items()}
        return cls(packs, to_float(packs.images), crafted)


def serve(
    policy: Policy,
    traffic: Traffic,
    requests: Requests,
    deadline_ms: float,
    place: int,
    begin_s: float,
) -> Iterator[Served]:
    """The requests of one slot, in their order, as one server does; the queue is emptied."""
    start = time.perf_counter()
    for i, (arrival_s, chosen, attack) in enumerate(
        zip(requests.arrivals_s, requests.images, requests.attacked, strict=True)
    ):
        if (ahead_s := start + arrival_s - time.perf_counter()) > 0:
            time.sleep(ahead_s)
        now_s = time.perf_counter() - start
        left_ms = deadline_ms - (now_s - arrival_s) * 1e3
        arrived = int(np.searchsorted(requests.arrivals_s, now_s, side="right"))
        asked: dict[str, Any] = {
            "deadline_ms": max(left_ms, NO_TIME_MS),
            "threat": PHASES[place].threat,
            "waiting": max(0, arrived - i - 1),
        }
        images = traffic.clean
        if attack:  # who knows the point, and makes the images for it
            images = traffic.attacked[policy.choose(**asked, batch=len(chosen)).point]
        images = images[chosen]
        called = time.perf_counter()
        result = policy.infer(images, **asked)
        end = time.perf_counter()
        response_ms = (end - start - arrival_s) * 1e3
        yield Served(
            phase=place,
            at_s=begin_s + arrival_s,
            response_ms=response_ms,
            point=result.choice.point,
            reason=result.choice.reason,
            right=float((result.logits.argmax(axis=1) == traffic.packs.labels[chosen]).mean()),
            met=response_ms <= deadline_ms,
            overhead_us=(end - called) * 1e6 - result.latency_ms * 1e3,
        )


@contextmanager
def competing(num: int) -> Iterator[None]:
    """`num` processes that use a core each, as far as they get one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUSY, str(os.getpid())]
    with ExitStack() as stack:
        for _ in range(num):
            process = subprocess.Popen(command, env=environment)
            stack.callback(process.wait)
            stack.callback(process.kill)
        if num:
            time.sleep(0.5)  # until they have started
        yield
