"""What the λ input costs: files with it against pinned ones that are alike in all else."""

from __future__ import annotations

from collections.abc import Sequence

from oat_edge.bench.report import LambdaCost
from oat_edge.bundle import Artifact
from oat_edge.runtime.recipe import Recipe


def lambda_cost(
    files: Sequence[tuple[Artifact, str]], p50_ms: dict[tuple[str, int], float]
) -> tuple[LambdaCost, ...]:
    """One entry per (width, format, precision, batch, pinned file); one with a reason where a

    side is missing, or where an engine was built in another way than the other.
    files: with the precision that they run in. p50_ms: by file and batch.
    """
    groups: dict[tuple[float, tuple[str, str]], list[Artifact]] = {}
    for artifact, precision in files:
        kind = artifact.format, precision
        groups.setdefault((artifact.width, kind), []).append(artifact)
    costs: list[LambdaCost] = []
    for (width, kind), group in sorted(groups.items(), key=lambda item: item[0]):
        batches = sorted({batch for file, batch in p50_ms if file == group[0].file})
        for batch in batches:
            for knob, pinned in _pairs(group):
                costs.append(_one_cost(width, kind, batch, knob, pinned, p50_ms))
    return tuple(costs)


def _pairs(files: Sequence[Artifact]) -> list[tuple[Artifact | None, Artifact | None]]:
    """(λ-input, pinned) files of one width and kind; engines of one recipe where there are such.

    Every file is in one pair at least.
    """
    knobs = [file for file in files if file.pinned_lambda is None]
    pairs: list[tuple[Artifact | None, Artifact | None]] = []
    for pinned in files:
        if pinned.pinned_lambda is not None:
            alike = [knob for knob in knobs if _built_alike(knob, pinned)]
            pairs.append((next(iter(alike or knobs), None), pinned))
    paired = [knob for knob, _ in pairs]
    return pairs + [(knob, None) for knob in knobs if knob not in paired]


def _built_alike(one: Artifact, other: Artifact) -> bool:
    """Of engines: whether only the network differs. ONNX files are not built."""
    return _recipe(one) == _recipe(other)


def _recipe(artifact: Artifact) -> Recipe | None:
    return None if artifact.recipe is None else Recipe.from_json(artifact.recipe)


def _one_cost(
    width: float,
    kind: tuple[str, str],
    batch: int,
    knob: Artifact | None,
    pinned: Artifact | None,
    p50_ms: dict[tuple[str, int], float],
) -> LambdaCost:
    knob_ms = p50_ms[knob.file, batch] if knob else None
    pinned_ms = p50_ms[pinned.file, batch] if pinned else None
    reason = None
    if knob_ms is None:
        reason = f"no file with a λ input; {_export(width, knob or pinned)}"
    elif pinned is None or not pinned_ms:
        reason = f"no pinned file; {_export(width, knob)} --pin-lambda 0.3"
    elif knob is not None and not _built_alike(knob, pinned):
        reason = (
            f"{pinned.file} was built with other options than {knob.file}; "
            f"{_export(width, knob)} --pin-lambda {pinned.pinned_lambda:g}"
        )
    return LambdaCost(
        width=width,
        batch=batch,
        artifact=knob.file if knob else None,
        pinned_artifact=pinned.file if pinned else None,
        pinned_lambda=pinned.pinned_lambda if pinned else None,
        lambda_input_p50_ms=knob_ms,
        pinned_p50_ms=pinned_ms,
        ratio=knob_ms / pinned_ms if reason is None and knob_ms and pinned_ms else None,
        reason=reason,
        format=kind[0],
        precision=kind[1],
    )


def _export(width: float, like: Artifact | None) -> str:
    """The command that adds a file of the same kind; ONNX in float32 is what it makes anyway."""
    command = f"oat-edge export --width {width:g}"
    if like is not None and (like.format, like.precision_requested) != ("onnx", "fp32"):
        command += f" --format {like.format} --precision {like.precision_requested}"
    recipe = None if like is None else _recipe(like)
    return command if recipe is None else command + _options(recipe)


def _options(recipe: Recipe) -> str:
    """The options of `export` by which a recipe differs from what it does anyway."""
    usual = Recipe()
    options = ""
    if recipe.batches != usual.batches:
        same = len(set(recipe.batches)) == 1
        options += f" --batch {','.join(map(str, recipe.batches[:1] if same else recipe.batches))}"
    for name in ("opt_level", "workspace_mb"):
        if (value := getattr(recipe, name)) is not None:
            options += f" --{name.replace('_', '-')} {value}"
    for name in ("version_compatible", "refit"):
        if getattr(recipe, name):
            options += f" --{name.replace('_', '-')}"
    return options
