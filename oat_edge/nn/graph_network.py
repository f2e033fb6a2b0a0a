"""An exported ONNX graph as a differentiable torch module: the very file that is deployed.

    N batch, K classes, C channels, H/W pixels

A quantised network is another network than the one that was trained; what fools it white-box must
be computed on it. Gradients go straight through the rounding (`graph_ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oat_edge.errors import BuildError, InputError
from oat_edge.nn.graph_ops import OPS, Node, Static
from oat_edge.require import require

if TYPE_CHECKING:
    import onnx

IMAGE, LAMBDA, LOGITS = "image", "lambda", "logits"
OPSET = 18  # of all exports: other opsets may mean something else by the same names
# What becomes float32. Of 32-bit biases it loses no more than sums in float32 do.
FLOATS = ("float32", "int32", "int8", "uint8")


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a pass, and which values nobody needs after it."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    frees: tuple[str, ...] = ()


class GraphNetwork(nn.Module):
    """Runs an exported file, float32 or with QuantizeLinear/DequantizeLinear nodes.

    Equal to ONNX Runtime up to the order of float sums; a sum that lies on the edge of two levels
    may then fall on the other one. Its weights are buffers: `.to(device)` moves them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raise `BuildError` for a graph that exports do not make: its inputs, operators, opset."""
        super().__init__()
        self._check_contract(model)
        self._buffer_of: dict[str, str] = {}
        self._once: tuple[Step, ...]
        self._each: tuple[Step, ...]
        self._read(model)
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> GraphNetwork:
        """Read a file; `InputError` if it is no ONNX file."""
        onnx = require("onnx", purpose="reading an exported graph")
        try:
            model = onnx.load(str(path))
        except Exception as error:  # protobuf's errors have no public base class
            raise InputError(f"{path} cannot be read as ONNX ({error}): export again") from None
        return cls(model)

    def forward(self, image: Tensor, lam: Tensor | None = None) -> Tensor:
        """Logits (N, K).  image: (N, C, H, W) in [0, 1]; lam: (N,), None if λ is pinned."""
        return self.at(lam)(image)

    def at(self, lam: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Fix λ: a function from images to logits, for many passes at the same λ.

        lam: (N,), or (1,) for images of any number. What depends on λ alone is computed now.
        Raises `InputError` unless there is a λ exactly where the file takes one.
        """
        if (lam is not None) != self.takes_lambda:
            state = "takes λ as an input" if self.takes_lambda else "has its λ pinned"
            raise InputError(f"λ is {'missing' if lam is None else 'given'}, this file {state}")
        values = {name: self.get_buffer(buffer) for name, buffer in self._buffer_of.items()}
        if lam is not None:
            values[LAMBDA] = lam
        _run(self._once, values)

        def logits(image: Tensor) -> Tensor:
            passing = {**values, IMAGE: image}
            _run(self._each, passing)
            return passing[LOGITS]

        return logits

    def _check_contract(self, model: onnx.ModelProto) -> None:
        opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        if opset.get("ai.onnx") != OPSET:
            raise BuildError(f"the graph has opsets {opset}, expected ai.onnx {OPSET}")
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [value.name for value in model.graph.input if value.name not in constants]
        outputs = [value.name for value in model.graph.output]
        if inputs not in ([IMAGE], [IMAGE, LAMBDA]) or outputs != [LOGITS]:
            raise BuildError(
                f"the graph has inputs {inputs} and outputs {outputs}, expected image, lambda and "
                "logits: it is no export of oat-edge"
            )
        self.takes_lambda = LAMBDA in inputs

    def _read(self, model: onnx.ModelProto) -> None:
        """Steps of the graph; what depends on constants alone is computed here, once for all."""
        onnx = require("onnx", purpose="reading an exported graph")
        static: dict[str, Static] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        constants: dict[str, Tensor] = {name: _tensor(one) for name, one in static.items()}
        with_image, once, each = {IMAGE}, [], []
        for proto in model.graph.node:
            step = _step(onnx, proto, static)
            if proto.op_type == "Constant":
                (name,), value = step.outputs, step.node.attributes.get("value")
                if value is None:
                    raise BuildError(f"Constant '{name}' holds no tensor: no support")
                static[name] = onnx.numpy_helper.to_array(value)
                constants[name] = _tensor(static[name])
            elif all(name in constants for name in step.inputs if name):
                with torch.no_grad():
                    _run([step], constants)
            elif with_image.isdisjoint(step.inputs):
                once.append(step)
            else:
                each.append(step)
                with_image.update(step.outputs)
        needed = {name for step in (*once, *each) for name in step.inputs} & set(constants)
        for number, name in enumerate(sorted(needed)):
            self._buffer_of[name] = f"constant_{number}"  # names of a graph may hold dots
            self.register_buffer(f"constant_{number}", constants[name], persistent=False)
        self._once, self._each = tuple(once), _with_frees(each, with_image)


def _step(onnx: object, proto: onnx.NodeProto, static: dict[str, Static]) -> Step:
    get = onnx.helper.get_attribute_value  # type: ignore[attr-defined]
    op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    name = proto.name or proto.output[0]
    if op not in OPS and op != "Constant":
        raise BuildError(
            f"operator {op} of node '{name}' is none that exports hold (expected one of "
            f"{', '.join(OPS)}): it cannot be attacked white-box"
        )
    values = [static.get(one) for one in proto.input]
    node = Node(
        op=op,
        name=name,
        attributes={attribute.name: get(attribute) for attribute in proto.attribute},
        static=values,
        dtypes=[None if value is None else str(value.dtype) for value in values],
    )
    return Step(node, tuple(proto.input), tuple(proto.output))


def _tensor(value: Static) -> Tensor:
    if str(value.dtype) in FLOATS:
        value = value.astype("float32")
    elif str(value.dtype) not in ("int64", "bool"):
        raise BuildError(f"the graph holds {value.dtype}, expected float32 and int8: no support")
    return torch.from_numpy(value.copy())


def _with_frees(steps: Sequence[Step], passing: set[str]) -> tuple[Step, ...]:
    """The steps, each with the values that it is the last to read; constants stay."""
    freed, later = [], {LOGITS}
    for step in reversed(steps):
        last = tuple(name for name in dict.fromkeys(step.inputs) if name in passing - later)
        freed.append(Step(step.node, step.inputs, step.outputs, last))
        later.update(step.inputs)
    return tuple(reversed(freed))


def _run(steps: Sequence[Step], values: dict[str, Tensor]) -> None:
    for step in steps:
        inputs = [values[name] if name else None for name in step.inputs]
        made = OPS[step.node.op](step.node, *inputs)
        values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        for name in step.frees:
            del values[name]
