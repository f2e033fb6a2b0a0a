from __future__ import annotations

import onnx
import pytest

from oat_edge.errors import FallbackError
from oat_edge.exporters.int8 import prepare, quantizable
from oat_edge.exporters.int8_kernels import check_kernels, count_kernels
from tests.exporters.int8_networks import exported
from tests.exporters.test_int8 import quantised


@pytest.mark.parametrize(("arch", "pinned"), [("resnet8", None), ("wrn-10-1", 0.0)])
def test_every_layer_that_is_not_kept_is_an_int8_kernel(arch, pinned, tmp_path):
    layers = quantizable(prepare(exported(arch, pinned), target="cpu"))
    for keep in (frozenset(), frozenset(layers[:3])):
        onnx.save(quantised(arch, pinned, "cpu", keep), tmp_path / "int8.onnx")
        assert count_kernels(tmp_path / "int8.onnx") == len(layers) - len(keep)


def test_a_file_that_computes_in_float32_between_its_nodes_is_refused(tmp_path):
    """TensorRT's: nothing behind a layer is rounded, and ONNX Runtime has no kernel for that."""
    path = tmp_path / "w0.50-int8.onnx"
    onnx.save(quantised("resnet8", None, "trt", frozenset()), path)
    num = len(quantizable(prepare(exported("resnet8", None), target="trt")))
    with pytest.raises(FallbackError, match=rf"of the {num} int8 layers of w0.50-int8.onnx"):
        check_kernels(path, num_layers=num)
