"""The λ-affines of an exported graph, as numbers: found, changed, written back.

    N batch, K knots, C channels of one layer, H/W pixels

An affine is Mul by scale(λ), then Add of shift(λ), each (N,C,1,1) and looked up in one table: one
MatMul for all layers, then Unsqueeze and Split. With λ pinned, scale and shift are constants
(1,C,1,1), which is the same with one knot.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oat_edge.errors import BuildError

Float = npt.NDArray[np.float64]


@dataclass(slots=True)
class Affine:
    """y = scale·x + shift of one layer; `scale` and `shift` may be replaced before `write`."""

    mul: Any
    add: Any
    source: str
    """The tensor x."""
    scale: Float
    """(K, C)"""
    shift: Float
    """(K, C)"""

    @property
    def output(self) -> str:
        """The tensor y."""
        return str(self.add.output[0])


@dataclass(slots=True)
class Table:
    """Where the scales and shifts of all layers come from at run time."""

    matmul: Any
    unsqueeze: Any
    split: Any
    values: Float
    """(K, S)"""
    columns: dict[str, slice]
    """Each output of the Split and its columns of `values`."""


@dataclass(slots=True)
class Graph:
    """A graph (onnx.GraphProto) with what rewrites ask of it all the time."""

    proto: Any
    constants: dict[str, Any] = field(default_factory=dict)
    """Initializers by name."""
    made_by: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[Any]] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Read the graph again, after a change."""
        self.constants = {tensor.name: tensor for tensor in self.proto.initializer}
        self.made_by = {name: node for node in self.proto.node for name in node.output}
        readers = defaultdict(list)
        for node in self.proto.node:
            for name in node.input:
                readers[name].append(node)
        self.readers = dict(readers)
        self.outputs = {value.name for value in self.proto.output}

    def value(self, name: str) -> Any:
        """The content of a constant as an array, or None if it is no constant."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def set_constant(self, name: str, value: Any) -> str:
        """Make or replace a constant; returns its name."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.proto.initializer.append(tensor)
            self.constants[name] = self.proto.initializer[-1]
        return name

    def only_reader(self, name: str, *kinds: str) -> Any:
        """The one node that reads a tensor, if it is one of these operators, else None."""
        found = self.readers.get(name, [])
        one = len(found) == 1 and found[0].op_type in kinds and name not in self.outputs
        return found[0] if one else None

    def drop_unused(self) -> None:
        """Remove constants that nothing reads, and notes of shapes, which may have changed."""
        used = {name for node in self.proto.node for name in node.input}
        kept = [tensor for tensor in self.proto.initializer if tensor.name in used]
        del self.proto.initializer[:], self.proto.value_info[:]
        self.proto.initializer.extend(kept)
        self.look()


def find_table(graph: Graph) -> Table | None:
    """The lookup of scales and shifts; None if λ is pinned.

    Raises `BuildError` if λ is an input and the lookup is not as `to_onnx.export` writes it.
    """
    for split in graph.proto.node:
        if split.op_type != "Split" or len(split.input) < 2:
            continue
        unsqueeze = graph.made_by.get(split.input[0])
        if unsqueeze is None or unsqueeze.op_type != "Unsqueeze":
            continue
        matmul = graph.made_by.get(unsqueeze.input[0])
        if matmul is None or matmul.op_type != "MatMul":
            continue
        values, sizes = graph.value(matmul.input[1]), graph.value(split.input[1])
        if values is None or sizes is None or values.ndim != 2 or sizes.sum() != values.shape[1]:
            continue
        ends = np.cumsum(sizes)
        columns = {
            name: slice(int(end - size), int(end))
            for name, end, size in zip(split.output, ends, sizes, strict=True)
        }
        return Table(matmul, unsqueeze, split, values.astype(np.float64), columns)
    if any(value.name == "lambda" for value in graph.proto.input):
        raise BuildError("the graph has an input lambda and no table for it: export it again")
    return None


def find_affines(graph: Graph, table: Table | None) -> list[Affine]:
    """All affines of the image path, in order."""
    found = []
    for mul in graph.proto.node:
        add = graph.only_reader(mul.output[0], "Add") if mul.op_type == "Mul" else None
        if add is None:
            continue
        place, scale = _operand(graph, table, mul)
        _, shift = _operand(graph, table, add)
        if scale is not None and shift is not None and scale.shape == shift.shape:
            found.append(Affine(mul, add, mul.input[1 - place], scale, shift))
    if table is not None:
        known = {name for one in found for node in (one.mul, one.add) for name in node.input}
        for name in table.columns:
            if name not in known or len(graph.readers[name]) != 1:
                raise BuildError(f"λ's table feeds {name}, which is no affine: export it again")
    return found


def write(graph: Graph, table: Table | None, affine: Affine) -> None:
    """Put the scale and shift of an affine back into the graph, in float32."""
    for node, value in ((affine.mul, affine.scale), (affine.add, affine.shift)):
        place, _ = _operand(graph, table, node)
        name = node.input[place]
        if table is not None and name in table.columns:
            table.values[:, table.columns[name]] = value
            graph.set_constant(table.matmul.input[1], table.values.astype(np.float32))
        else:
            node.input[place] = graph.set_constant(
                f"{node.output[0]}_operand", value.reshape(1, -1, 1, 1).astype(np.float32)
            )


def _operand(graph: Graph, table: Table | None, node: Any) -> tuple[int, Float | None]:
    """Which input of a Mul or Add holds numbers per channel, and these, (K, C)."""
    for place, name in enumerate(node.input):
        if table is not None and name in table.columns:
            return place, table.values[:, table.columns[name]].copy()
        value = graph.value(name)
        if value is not None and value.ndim == 4 and value.size == value.shape[1]:
            return place, value.reshape(1, -1).astype(np.float64)
    return 0, None
