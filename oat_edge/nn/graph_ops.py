"""The ONNX operators of exported graphs in torch, each differentiable in its float inputs.

    N batch, C channels

What exports of our networks and of common converted ones hold, in opset 18's meaning. Quantised
tensors are float32 tensors of whole numbers, which hold 8 bits exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from oat_edge.errors import BuildError

Static = npt.NDArray[Any]
Op = Callable[..., "Tensor | tuple[Tensor, ...]"]
# Of a quantised tensor, by the type of its zero point; TensorRT's and ONNX Runtime's int8 files
# hold no others.
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: what of it does not change from pass to pass."""

    op: str
    name: str
    attributes: Mapping[str, Any]
    static: Sequence[Static | None]
    """By input: its value, where the file fixes it."""
    dtypes: Sequence[str | None]
    """By input: its element type in the file, where that is fixed."""

    def whole(self, index: int) -> tuple[int, ...]:
        """Whole numbers of an input such as axes; `BuildError` if only a pass would know them."""
        value = self.static[index] if index < len(self.static) else None
        if value is None:
            raise BuildError(
                f"input {index} of {self.op} '{self.name}' is computed, expected a constant: "
                "this graph has no gradients here"
            )
        return tuple(int(one) for one in value.reshape(-1))

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


class _Quantise(torch.autograd.Function):
    """Round to whole numbers and clip, with straight-through gradients (Bengio et al. 2013).

    Rounding has the gradient 0 almost everywhere: an attack would see nothing, and the network
    would look robust only because its gradients are gone. So rounding passes gradients on as they
    are. Where the value is clipped, a small step really changes nothing, and the gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int
    ) -> Tensor:
        """Quantised x; scale, zero_point: broadcast against x."""
        level = torch.round(x / scale) + zero_point  # both round half to even
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((level >= low) & (level <= high), scale)
        return level.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x; the file's constants need none."""
        inside, scale = ctx.saved_tensors
        return gradients[0] * inside / scale, None, None, None, None


def _quantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    dtype = node.dtypes[2] if zero_point is not None else "uint8"
    if dtype not in RANGES:
        raise BuildError(
            f"QuantizeLinear '{node.name}' makes {dtype}, expected {' or '.join(RANGES)}"
        )
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    scale, zero = (_per_axis(one, x.ndim, node.get("axis", 1)) for one in (scale, zero))
    quantised: Tensor = _Quantise.apply(x, scale, zero, *RANGES[dtype])  # type: ignore[no-untyped-call]
    return quantised


def _dequantize(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    axis = node.get("axis", 1)
    if zero_point is not None:
        x = x - _per_axis(zero_point, x.ndim, axis)
    return x * _per_axis(scale, x.ndim, axis)


def _per_axis(value: Tensor, ndim: int, axis: int) -> Tensor:
    """One value for all, or one for each place along `axis`, so that it broadcasts."""
    if value.numel() == 1:
        return value.reshape(())
    shape = [1] * ndim
    shape[axis % ndim] = value.numel()
    return value.reshape(shape)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if node.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise BuildError(f"Conv '{node.name}' has auto_pad {node.get('auto_pad')}, expected pads")
    spatial = weight.ndim - 2
    x, padding = _padding(x, node.get("pads", [0] * 2 * spatial), value=0.0)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[spatial]
    return convolve(
        x,
        weight,
        bias,
        stride=tuple(node.get("strides", [1] * spatial)),
        padding=padding,
        dilation=tuple(node.get("dilations", [1] * spatial)),
        groups=node.get("group", 1),
    )


def _padding(x: Tensor, pads: Sequence[int], *, value: float) -> tuple[Tensor, tuple[int, ...]]:
    """What is left to pad equally on both sides; the rest is padded now."""
    starts, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if tuple(starts) == tuple(ends):
        return x, tuple(starts)
    sides = [side for pair in zip(reversed(starts), reversed(ends), strict=True) for side in pair]
    return F.pad(x, sides, value=value), (0,) * len(starts)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = a.mT if node.get("transA", 0) else a, b.mT if node.get("transB", 0) else b
    product = a @ b
    if (alpha := node.get("alpha", 1.0)) != 1.0:
        product = product * alpha
    return product if c is None else product + node.get("beta", 1.0) * c


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = list(node.whole(1))
    if not node.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    if sizes is not None:
        return torch.split(x, list(node.whole(1)), dim=axis)
    return torch.tensor_split(x, node.get("num_outputs"), dim=axis)


def _reduce_mean(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return x if node.get("noop_with_empty_axes", 0) else x.mean()
    return x.mean(node.whole(1), keepdim=bool(node.get("keepdims", 1)))


def _unsqueeze(node: Node, x: Tensor, axes: Tensor) -> Tensor:
    ndim = x.ndim + axes.numel()
    for axis in sorted(axis % ndim for axis in node.whole(1)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(node.whole(1))


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = tuple(node.get("kernel_shape"))
    plain = node.get("auto_pad", b"NOTSET") == b"NOTSET" and not node.get("ceil_mode", 0)
    if not plain or len(kernel) != 2:
        raise BuildError(f"MaxPool '{node.name}' has auto_pad, ceil_mode or is not 2-d: no support")
    x, padding = _padding(x, node.get("pads", [0, 0, 0, 0]), value=-torch.inf)
    stride, dilation = tuple(node.get("strides", [1, 1])), tuple(node.get("dilations", [1, 1]))
    return F.max_pool2d(x, kernel, stride, padding, dilation)


OPS: dict[str, Op] = {
    "Add": lambda node, a, b: a + b,
    "Clip": _clip,
    "Concat": lambda node, *parts: torch.cat(parts, dim=node.get("axis")),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda node, a, b: a / b,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "Identity": lambda node, x: x,
    "MatMul": lambda node, a, b: a @ b,
    "Max": lambda node, a, b: torch.maximum(a, b),
    "MaxPool": _max_pool,
    "Min": lambda node, a, b: torch.minimum(a, b),
    "Mul": lambda node, a, b: a * b,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": lambda node, x: torch.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda node, x: torch.sigmoid(x),
    "Sign": lambda node, x: torch.sign(x),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda node, a, b: a - b,
    "Transpose": lambda node, x: x.permute(node.get("perm") or tuple(reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
}
