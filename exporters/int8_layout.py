"""The λ-affines in the layout in which ONNX Runtime's CPU kernels are fast.

    N batch, H/W pixels, C channels, T pixels side by side, S numbers in a row of the table

ONNX Runtime runs quantised convolutions with channels last, and moves transpositions as far as it
can: scales and shifts then are (N,1,1,C), each transposed by a node of its own, and a
multiplication works through C numbers at a time, which for 64 channels takes twice as long as
for one long row. Here every affine works on rows of T pixels, (N, HW/T, T·C), with a table that
holds each number T times, in that layout from the start. The transpositions that this adds
meet ONNX Runtime's own, and all vanish when the file is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oat_edge.exporters.int8_affines import Affine, Float, Graph, Table

# Numbers in a row; longer ones were no faster.
ROW = 256


def in_rows(
    graph: Graph,
    table: Table | None,
    affines: list[Affine],
    shapes: dict[str, tuple[int, int, int]],
) -> None:
    """Rewrite all affines in place.  shapes: (C, H, W) of their sources."""
    tiled: dict[str, Float] = {}  # the new table, by output of the Split
    around: dict[str, tuple[list[Any], list[Any]]] = {}
    for affine in affines:
        channels, height, width = shapes[affine.source]
        num = _pixels(height * width, channels)
        around[affine.mul.name] = (_to_rows(graph, affine, num, height * width), [])
        around[affine.add.name] = ([], _from_rows(graph, affine, height, width))
        for node, value in ((affine.mul, affine.scale), (affine.add, affine.shift)):
            row = np.tile(value, num)
            place = next(
                i for i, name in enumerate(node.input) if _holds_numbers(name, table, graph)
            )
            if table is None:
                constant = row.reshape(1, 1, -1).astype(np.float32)
                node.input[place] = graph.set_constant(f"{node.output[0]}_row", constant)
            else:
                tiled[node.input[place]] = row
    nodes = []
    for node in graph.proto.node:
        before, after = around.get(node.name, ([], []))
        nodes += [*before, node, *after]
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.proto.node[:]
    graph.proto.node.extend(kept)
    graph.look()
    if table is not None:
        _write_table(graph, table, tiled)
    graph.drop_unused()


def _pixels(pixels: int, channels: int) -> int:
    """T: the fewest that fill a row; it divides the number of pixels."""
    fitting = (num for num in range(1, pixels + 1) if pixels % num == 0)
    return next((num for num in fitting if num * channels >= ROW), pixels)


def _holds_numbers(name: str, table: Table | None, graph: Graph) -> bool:
    return name in graph.constants if table is None else name in table.columns


def _to_rows(graph: Graph, affine: Affine, num: int, pixels: int) -> list[Any]:
    """From (N,C,H,W) to (N, HW/T, T·C), in front of the multiplication."""
    from onnx import helper

    base = affine.mul.output[0]
    channels = affine.scale.shape[1]
    shape = np.array([0, pixels // num, num * channels], dtype=np.int64)
    place = list(affine.mul.input).index(affine.source)
    affine.mul.input[place] = f"{base}_rows"
    return [
        helper.make_node(
            "Transpose",
            [affine.source],
            [f"{base}_last"],
            name=f"transpose_{base}",
            perm=[0, 2, 3, 1],
        ),
        helper.make_node(
            "Reshape",
            [f"{base}_last", graph.set_constant(f"{base}_rows_shape", shape)],
            [f"{base}_rows"],
            name=f"reshape_{base}",
        ),
    ]


def _from_rows(graph: Graph, affine: Affine, height: int, width: int) -> list[Any]:
    """And back, behind the addition."""
    from onnx import helper

    output = affine.output
    shape = np.array([0, height, width, affine.scale.shape[1]], dtype=np.int64)
    affine.add.output[0] = f"{output}_rows"
    return [
        helper.make_node(
            "Reshape",
            [f"{output}_rows", graph.set_constant(f"{output}_last_shape", shape)],
            [f"{output}_last"],
            name=f"reshape_{output}",
        ),
        helper.make_node(
            "Transpose",
            [f"{output}_last"],
            [output],
            name=f"transpose_{output}",
            perm=[0, 3, 1, 2],
        ),
    ]


def _write_table(graph: Graph, table: Table, tiled: dict[str, Float]) -> None:
    """MatMul -> (N,S) -> Unsqueeze -> (N,1,S) -> Split along S."""
    split = next(node for node in graph.proto.node if node.op_type == "Split")
    unsqueeze = graph.made_by[split.input[0]]
    matmul = graph.made_by[unsqueeze.input[0]]
    names = list(tiled)
    values = np.hstack([tiled[name] for name in names]).astype(np.float32)
    matmul.input[1] = graph.set_constant("table_in_rows", values)
    unsqueeze.input[1] = graph.set_constant("rows_axis", np.array([1], dtype=np.int64))
    sizes = np.array([tiled[name].shape[1] for name in names], dtype=np.int64)
    split.input[1] = graph.set_constant("rows_sizes", sizes)
    for attribute in split.attribute:
        if attribute.name == "axis":
            attribute.i = 2
    del split.output[:]
    split.output.extend(names)
