"""What is known of an int8 file, in one line."""

from __future__ import annotations

from oat_edge.bundle import Artifact


def int8_line(artifact: Artifact) -> str:
    """How it was calibrated, what it cost, and which layers stayed in float32."""
    facts = artifact.calibration or {}
    images = facts["images"]
    lambdas = ", ".join(f"{lam:g}" for lam in images["lambdas"])
    kept = f"{len(facts['kept_in_float32'])} of {facts['num_layers']} layers in float32"
    how = f"{images['num_images']} training images at λ {lambdas}, {facts['method']}"
    return f"{artifact.file}: calibrated on {how}; {kept}; {_cost(facts['accuracy'])}"


def _cost(accuracy: dict[str, object] | None) -> str:
    if accuracy is None:
        return "its cost in accuracy was not measured"
    changes = accuracy["changes"]
    assert isinstance(changes, (list, tuple))
    points, name, lam = max(
        (
            (-100 * change[which]["lost"], short, change["lam"])
            for change in changes
            for which, short in (("standard", "SA"), ("robust", "RA"))
        ),
        key=lambda one: abs(one[0]),
    )
    found = f"largest change {points:+.1f} points of {name} at λ={lam:g}" if points else "no change"
    images = f"{accuracy['num_images']} images"
    if "detectable" in accuracy:
        images += f", on which changes below {accuracy['detectable']:.1f} points may be chance"
    return f"{found} ({images})"
