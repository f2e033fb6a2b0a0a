"""What is evaluated of a bundle: which attacks its packs hold, on which images, at which points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oat_edge.bench.inputs import read_packs
from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.evaluation.config import BUNDLE_ATTACKS, GRAPH_ATTACK, EvalConfig
from oat_edge.evaluation.pack import AttackPack
from oat_edge.evaluation.pack_set import PackSet
from oat_edge.operating_point import OperatingPoint, grid

SQUARE = "square"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Packs, attacks and operating points that fit together."""

    packs: PackSet
    """Those of the attacks; for Square alone all, it takes only their clean images."""
    attacks: tuple[str, ...]
    """Of packs, and "square"."""
    points: tuple[tuple[Artifact, OperatingPoint], ...]
    warnings: tuple[str, ...]


def choose(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    config: EvalConfig,
    *,
    widths: Sequence[float],
    lambdas: Sequence[float],
) -> Choice:
    """Everything an evaluation of these files needs, checked before it starts.

    An attack that was named must have a pack for every width and λ; where none was named, those
    that have are taken, and the warnings say which are left out. Of the attack on int8 files
    packs for some of the widths do: not every width need have such a file. Raises `InputError`.
    """
    read = read_packs(bundle)
    if not read:
        raise InputError(
            f"bundle {bundle.path.name} has no attack packs, and so no images: "
            "oat-edge export --attack-samples 500"
        )
    _check_eps(bundle, config)
    wanted = grid(tuple(widths), tuple(lambdas))
    held = {
        attack: {
            OperatingPoint(pack.width, lam)
            for pack in read
            if pack.attack == attack
            for lam in pack.lambdas
        }
        for attack in BUNDLE_ATTACKS
        if attack != SQUARE
    }
    if not held[GRAPH_ATTACK] and GRAPH_ATTACK not in (config.attacks or ()):
        del held[GRAPH_ATTACK]  # a bundle without int8 files lacks nothing
    if config.attacks is None:
        needed = {attack: _needed(attack, points, wanted) for attack, points in held.items()}
        attacks = tuple(
            a for a in BUNDLE_ATTACKS if a == SQUARE or (needed.get(a) and held[a] >= needed[a])
        )
    else:
        attacks = config.attacks
        _check_held(bundle, held, attacks, wanted)
    packs = _pack_set(bundle, [pack for pack in read if pack.attack in attacks] or read)
    shrunk = packs.warnings
    if config.num_samples is not None:
        packs = packs.cut(config.num_samples, config.seed)
    points = tuple(
        (artifact, point)
        for artifact in artifacts
        for point in _points_of(artifact, lambdas)
        if artifact.pinned_lambda is None or point in packs.points or attacks == (SQUARE,)
    )
    warnings = (*shrunk, *_left_out(config, held, attacks, artifacts, points))
    warnings += tuple(
        f"{artifact.file}: not attacked by {attack}, of which no pack holds λ={point.lam:g}"
        for artifact, point in points
        for attack in attacks
        if artifact.pinned_lambda is not None and attack != SQUARE
        if _needed(attack, held[attack], [point]) - held[attack]
    )
    if config.num_samples is not None and config.num_samples > len(packs):
        warnings += (f"samples: {config.num_samples} asked for, the packs hold {len(packs)}",)
    if not points:
        raise InputError(
            f"bundle {bundle.path.name} has nothing that can be evaluated "
            f"({'; '.join(warnings) or 'no files'}): oat-edge export"
        )
    return Choice(packs=packs, attacks=attacks, points=points, warnings=warnings)


def _needed(
    attack: str, points: set[OperatingPoint], wanted: Sequence[OperatingPoint]
) -> set[OperatingPoint]:
    """Those of the wanted points that packs of an attack must hold; `points` are those they do."""
    if attack != GRAPH_ATTACK:
        return set(wanted)
    widths = {point.width for point in points}
    return {point for point in wanted if point.width in widths}


def _points_of(artifact: Artifact, lambdas: Sequence[float]) -> list[OperatingPoint]:
    """A file with a pinned λ has that one only."""
    pinned = artifact.pinned_lambda
    own = lambdas if pinned is None else (pinned,)
    return [OperatingPoint(artifact.width, lam) for lam in own]


def _pack_set(bundle: Bundle, packs: list[AttackPack]) -> PackSet:
    return PackSet(packs, checkpoint_sha256=bundle.checkpoint_sha256, eps=bundle.spec.eps)


def _check_eps(bundle: Bundle, config: EvalConfig) -> None:
    eps = bundle.spec.eps
    if config.eps is not None and not math.isclose(config.eps, eps, rel_tol=1e-9):
        raise InputError(
            f"eps is {config.eps:g}: the packs of bundle {bundle.path.name} were made at "
            f"{eps * 255:g}/255, evaluate the run for another"
        )


def _check_held(
    bundle: Bundle,
    held: dict[str, set[OperatingPoint]],
    attacks: Sequence[str],
    wanted: Sequence[OperatingPoint],
) -> None:
    for attack in attacks:
        if attack == SQUARE:
            continue
        if not held[attack]:
            names = ", ".join(name for name, points in held.items() if points)
            raise InputError(
                f"bundle {bundle.path.name} has no {attack} pack (it has {names}): "
                f"oat-edge export {_option(attack)}"
            )
        for point in wanted:
            if point not in held[attack]:
                lambdas = sorted(p.lam for p in held[attack] if p.width == point.width)
                have = (
                    f"has λ {', '.join(f'{lam:g}' for lam in lambdas)}" if lambdas else "has none"
                )
                raise InputError(
                    f"no {attack} pack is for width {point.width:g} at λ={point.lam:g} (that "
                    f"width {have}): choose from them, or oat-edge export "
                    f"--width {point.width:g} {_option(attack)}"
                )


def _option(attack: str) -> str:
    """What makes `export` craft a pack of it."""
    return "--precision int8" if attack == GRAPH_ATTACK else f"--attack {attack}"


def _left_out(
    config: EvalConfig,
    held: dict[str, set[OperatingPoint]],
    attacks: Sequence[str],
    artifacts: Sequence[Artifact],
    points: Sequence[tuple[Artifact, OperatingPoint]],
) -> tuple[str, ...]:
    """What "all" does not include, and why."""
    evaluated = {artifact.file for artifact, _ in points}
    warnings = [
        f"{attack}: left out, "
        + (
            f"its packs are for {', '.join(map(str, sorted(places)))} alone"
            if places
            else f"the bundle has no pack of it (oat-edge export {_option(attack)})"
        )
        for attack, places in held.items()
        if config.attacks is None and attack not in attacks
    ]
    warnings += [
        f"{artifact.file}: left out, no attack pack holds λ={artifact.pinned_lambda:g}"
        for artifact in artifacts
        if artifact.file not in evaluated
    ]
    return tuple(warnings)
