"""Which files of a bundle a device runs."""

from __future__ import annotations

from collections.abc import Sequence

from oat_edge.bundle import Artifact, Bundle
from oat_edge.errors import InputError
from oat_edge.operating_point import select
from oat_edge.runtime.recipe import LIBRARIES, PRECISIONS

DEVICES = ("cpu", "cuda")
ENGINES = tuple(LIBRARIES)
FORMATS = ("onnx", *ENGINES)
# ONNX Runtime's CPU provider computes half precision in float32 between casts: slower than fp32,
# and not what the name says.
CPU_PRECISIONS = ("fp32", "int8")
# The target of int8 files that suits a device. ONNX Runtime's GPU provider has no int8 kernels, but
# an engine's own file shows there what the engine should compute.
INT8_TARGET = {"cpu": "cpu", "cuda": "trt"}
# An error line names no more files than these.
MAX_NAMES = 4


def artifacts_for(
    bundle: Bundle,
    widths: Sequence[float],
    *,
    device: str = "cpu",
    formats: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
) -> list[Artifact]:
    """What runs on `device` of these widths, by width, λ-input before pinned.

    formats, precisions: None takes on a CPU the ONNX files in float32 and int8, on a GPU the
    engines, or the ONNX files of a width that has no engine. An int8 file that was made for
    another kind of device is never taken. Raises `InputError` for a width without any, saying
    what there is.
    """
    chosen: list[Artifact] = []
    for width in widths:
        fitting = [a for a in _fitting(bundle, device, formats, precisions) if a.width == width]
        engines = [artifact for artifact in fitting if artifact.format in ENGINES]
        found = engines if engines and formats is None else fitting
        if not found:
            raise _nothing(bundle, device, width, formats, precisions)
        chosen += found
    return chosen


def widths_for(
    bundle: Bundle,
    *,
    device: str = "cpu",
    formats: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
) -> tuple[float, ...]:
    """Widths that have something for `device`, growing."""
    return _widths(_fitting(bundle, device, formats, precisions))


def choose_widths(
    bundle: Bundle,
    text: str,
    *,
    device: str = "cpu",
    formats: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Widths that "0.5,1.0" or "all" means, and those that "all" leaves out.

    It leaves out widths of the bundle that have nothing for `device`, unless that is all of them.
    Raises `InputError` for a width that the bundle has not.
    """
    there = _widths(_networks(bundle)) or bundle.spec.widths
    fitting = widths_for(bundle, device=device, formats=formats, precisions=precisions)
    if text.strip() == "all" and fitting:
        return fitting, tuple(width for width in there if width not in fitting)
    return select(text, there, "width", every="all"), ()


def pick(
    bundle: Bundle,
    *,
    device: str,
    width: float | None,
    format: str | None,
    precision: str | None,
    pinned_lambda: float | None,
) -> Artifact:
    """The one file that an application means; of several precisions the smallest.

    width: None is the widest of the bundle, not the widest that happens to fit.
    """
    formats = None if format is None else (format,)
    precisions = None if precision is None else (precision,)
    if width is None:
        alike = [a.width for a in _networks(bundle) if a.pinned_lambda == pinned_lambda]
        width = max(alike, default=None)
    fitting = [
        artifact
        for artifact in _fitting(bundle, device, formats, precisions)
        if artifact.pinned_lambda == pinned_lambda and width in (None, artifact.width)
    ]
    if not fitting:
        raise _nothing(bundle, device, width, formats, precisions, pinned_lambda)
    return max(
        fitting,
        key=lambda a: (a.width, a.format in ENGINES, PRECISIONS.index(a.precision_requested)),
    )


def _networks(bundle: Bundle) -> list[Artifact]:
    return [artifact for artifact in bundle.artifacts if artifact.format in FORMATS]


def _widths(artifacts: Sequence[Artifact]) -> tuple[float, ...]:
    return tuple(sorted({artifact.width for artifact in artifacts}))


def _fitting(
    bundle: Bundle,
    device: str,
    formats: Sequence[str] | None,
    precisions: Sequence[str] | None,
) -> list[Artifact]:
    if device not in DEVICES:
        raise InputError(f"device is '{device}': expected {' or '.join(DEVICES)}")
    for name in formats or ():
        if name not in FORMATS:
            raise InputError(f"format is '{name}': expected {', '.join(FORMATS)}")
    for name in precisions or ():
        if name not in PRECISIONS:
            raise InputError(f"precision is '{name}': expected {', '.join(PRECISIONS)}")
    wanted = formats or (("onnx",) if device == "cpu" else FORMATS)
    allowed = precisions or (CPU_PRECISIONS if device == "cpu" else PRECISIONS)
    fitting = [
        artifact
        for format in wanted
        for artifact in bundle.of_format(format)
        # An engine that was named is refused when it is opened, which says where it runs.
        if (
            artifact.precision_requested in allowed
            or (artifact.format in ENGINES and precisions is None)
        )
        and artifact.target in (None, INT8_TARGET[device])
    ]
    return sorted(fitting, key=lambda a: (a.width, a.pinned_lambda is not None))


def _nothing(
    bundle: Bundle,
    device: str,
    width: float | None,
    formats: Sequence[str] | None,
    precisions: Sequence[str] | None,
    pinned_lambda: float | None = None,
) -> InputError:
    networks = _networks(bundle)
    names = sorted(a.file for a in networks if width in (None, a.width)) or sorted(
        artifact.file for artifact in networks
    )
    have = ", ".join(names[:MAX_NAMES]) or "nothing"
    have += f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    if device == "cpu" and any(a.precision_requested == "fp16" for a in networks):
        have += "; fp16 and engines are for GPUs"
    wanted = f"{' or '.join(formats or ('onnx',) if device == 'cpu' else formats or FORMATS)} file"
    wanted += f" in {' or '.join(precisions)}" if precisions else ""
    wanted += f" of width {width:g}" if width is not None else ""
    wanted += f" pinned at λ={pinned_lambda:g}" if pinned_lambda is not None else ""
    options = f" --width {width:g}" if width is not None else ""
    options += f" --format {formats[0]}" if formats else ""
    options += f" --precision {precisions[0]}" if precisions else ""
    options += f" --target {INT8_TARGET[device]}" if precisions and precisions[0] == "int8" else ""
    options += f" --pin-lambda {pinned_lambda:g}" if pinned_lambda is not None else ""
    options += f" --out {bundle.path}" if bundle.path.parent.name != "bundles" else ""
    remedy = f"oat-edge export{options}"
    if width is not None and width not in bundle.spec.widths:
        trained = ", ".join(f"{one:g}" for one in bundle.spec.widths)
        remedy = f"the network was trained for widths {trained}"
    return InputError(
        f"bundle {bundle.path.name} has no {wanted} for {device} (it has {have}): {remedy}"
    )
