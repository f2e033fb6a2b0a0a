"""What an evaluation does. Validation only."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from oat_edge.errors import InputError
from oat_edge.evaluation.pack import levels

# PGD-20 made on the quantised file itself; on files of another precision one more replayed attack.
GRAPH_ATTACK = "pgd20-int8"
# As reports call them, weakest first. All but Square are white-box.
ATTACKS = ("pgd20", "apgd", "autoattack", "square")
"""Of a run."""
BUNDLE_ATTACKS = ("pgd20", GRAPH_ATTACK, "apgd", "autoattack", "square")
"""Of a bundle, if its packs hold them."""
ALIASES = {"pgd": "pgd20", "pgd-int8": GRAPH_ATTACK}
NUM_SAMPLES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """One evaluation."""

    attacks: tuple[str, ...] | None = None
    """Some of `ATTACKS`, or of `BUNDLE_ATTACKS`; None: all, of a bundle all that its packs hold."""
    num_samples: int | None = None
    """Test images, a seeded choice; None: 100 of a run's data, all that a bundle's packs hold."""
    eps: float | None = None
    """Radius in pixel scale; None: the one the network was trained for."""
    num_queries: int = 5000
    """Of Square, per image."""
    transfer: bool = True
    """Also replay what was crafted at every other operating point."""
    seed: int = 0
    """Chooses the images and draws the attacks' random starts."""
    batch_size: int = 250
    """Images per pass; AutoAttack's own."""

    def __post_init__(self) -> None:
        if self.attacks is not None and not self.attacks:
            raise InputError(f"attacks are empty: expected some of {', '.join(ATTACKS)}")
        for attack in self.attacks or ():
            if attack not in BUNDLE_ATTACKS:
                raise InputError(f"attack is '{attack}': expected {', '.join(BUNDLE_ATTACKS)}")
        if self.num_samples is not None and self.num_samples < 1:
            raise InputError(f"samples is {self.num_samples}: expected 1 or more")
        if self.eps is not None:
            check_eps(self.eps)
        if self.num_queries < 1:
            raise InputError(f"queries is {self.num_queries}: expected 1 or more")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: expected 1 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}: expected a whole number in [0, 2^63)")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def check_eps(eps: float) -> None:
    """Raise `InputError` unless 0 < ε <= 1; a number of levels gets a hint."""
    if not 0.0 < eps <= 1.0:
        hint = f": did you mean {eps:g}/255?" if 1.0 < eps <= 255.0 else ""
        raise InputError(f"eps is {eps:g}: expected a number in (0, 1]{hint}")


def check_levels(eps: float) -> None:
    """Raise `InputError` unless Square, which moves in whole levels, can move at all."""
    if levels(eps) < 1:
        raise InputError(
            f"eps is {eps:g}, under one 8-bit level (1/255), and Square moves in whole levels: "
            "name the other attacks with --attack"
        )


def level_warnings(eps: float, attacks: tuple[str, ...]) -> tuple[str, ...]:
    """Square attacks on the 8-bit grid: it cannot use the part of ε that is no whole level."""
    whole = levels(eps)
    if "square" not in attacks or abs(eps * 255 - whole) < 1e-6:
        return ()
    return (f"square: ε is {eps * 255:g}/255, Square attacks within {whole}/255 (8-bit levels)",)


def parse_attacks(text: str) -> tuple[str, ...] | None:
    """Read "pgd,square" into names as reports have them, weakest first; None for "all"."""
    names = [ALIASES.get(name, name) for name in (part.strip().lower() for part in text.split(","))]
    for name in names:
        if name not in (*BUNDLE_ATTACKS, "all"):
            close = difflib.get_close_matches(name, (*BUNDLE_ATTACKS, *ALIASES), n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise InputError(
                f"attack is '{name}': expected a list of {', '.join(BUNDLE_ATTACKS)}, or all{hint}"
            )
    if "all" in names:
        return None
    return tuple(attack for attack in BUNDLE_ATTACKS if attack in names)


def check_run_attacks(attacks: tuple[str, ...] | None) -> None:
    """Raise `InputError` for an attack that only exported files know."""
    if GRAPH_ATTACK in (attacks or ()):
        raise InputError(
            f"attack is '{GRAPH_ATTACK}', which is made on an int8 file: evaluate the bundle, for "
            f"a run choose from {', '.join(ATTACKS)}"
        )


def mode(attacks: tuple[str, ...], *, replayed: bool = False) -> str:
    """How far the robust accuracy may be trusted, in one line.

    attacks: all that were made. replayed: white-box ones come from packs.
    """
    white_box = [attack for attack in attacks if attack != "square"]
    crafted_on = (
        "the network" if GRAPH_ATTACK not in attacks else "the network and on the int8 file"
    )
    where = f" packs (8-bit, crafted on {crafted_on}), replayed" if replayed and white_box else ""
    if "autoattack" in attacks:
        return f"PGD-20 and AutoAttack{where}" if replayed else "AutoAttack standard"
    made = " and ".join(white_box) + where if white_box else ""
    fast = "; ".join([*([made] if made else []), *(["square"] if "square" in attacks else [])])
    return f"fast mode ({fast}): without AutoAttack, which may well find less robustness"
