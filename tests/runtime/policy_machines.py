"""Figures of widths, and simulated machines that a policy's decisions run on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from oat_edge.runtime.policy_figures import Setting, WidthFigures
from oat_edge.runtime.policy_rules import Choice, Chooser, Rules

LAMBDAS = (0.0, 0.1, 0.4, 1.0)
# Three widths as networks have them: wider is slower and better.
QUIET_MS = {0.5: 1.0, 0.75: 1.6, 1.0: 2.5}
RULES = Rules()

shares = st.integers(0, 50).map(lambda k: k / 50)
threats = st.integers(0, 20).map(lambda k: k / 20)
milliseconds = st.floats(0.1, 20.0)


@st.composite
def any_figures(draw: st.DrawFn) -> list[WidthFigures]:
    """One to four widths of any latency and accuracy whatever; the wider take longer."""
    widths = draw(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1, unique=True))
    quiet_ms = sorted(draw(milliseconds) for _ in widths)
    return [
        WidthFigures(
            width=width,
            settings=tuple(
                Setting(lam=lam, standard=draw(shares), robust=draw(shares)) for lam in LAMBDAS
            ),
            quiet_ms={1: ms},
        )
        for width, ms in zip(sorted(widths), quiet_ms, strict=True)
    ]


def ladder(quiet_ms: dict[float, float] = QUIET_MS) -> list[WidthFigures]:
    """Widths of which the wider is better at every threat."""
    return [
        WidthFigures(
            width=width,
            settings=tuple(
                Setting(
                    lam=lam, standard=0.6 + 0.3 * width - 0.2 * lam, robust=0.4 * lam + 0.3 * width
                )
                for lam in LAMBDAS
            ),
            quiet_ms={1: ms},
        )
        for width, ms in quiet_ms.items()
    ]


def run(
    chooser: Chooser,
    num: int,
    latency_ms: Callable[[float], float],
    *,
    deadline_ms: float | Callable[[], float] = 3.0,
    threat: float = 0.3,
) -> list[Choice]:
    """`num` requests in a row on a machine whose widths take `latency_ms(width)`."""
    choices = []
    for _ in range(num):
        limit_ms = deadline_ms() if callable(deadline_ms) else deadline_ms
        choice = chooser.choose(deadline_ms=limit_ms, threat=threat)
        chooser.observe(choice, latency_ms(choice.point.width))
        choices.append(choice)
    return choices


def steady(scale: float) -> Callable[[float], float]:
    """Every request takes `scale` times what the report says."""
    return lambda width: scale * QUIET_MS[width]


def noisy(seed: int, scale: float, spread: float) -> Callable[[float], float]:
    rng = np.random.default_rng(seed)
    return lambda width: scale * QUIET_MS[width] * rng.uniform(1.0 - spread, 1.0)


def switches(choices: list[Choice]) -> int:
    widths = [choice.point.width for choice in choices]
    return sum(a != b for a, b in itertools.pairwise(widths))


def probes(choices: list[Choice]) -> int:
    return sum(choice.reason == "probe" for choice in choices)
