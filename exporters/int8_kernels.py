"""Does ONNX Runtime compute an int8 file in int8?

Q/DQ nodes only ask for it. A layer whose surroundings ONNX Runtime does not recognise computes in
float32 between its two nodes: right, slow, and without a word.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from oat_edge.errors import FallbackError
from oat_edge.require import require

KERNELS = ("QLinearConv", "QGemm")


def check_kernels(path: Path, *, num_layers: int) -> None:
    """Raise `FallbackError` unless `num_layers` of the file run as int8 kernels on this CPU."""
    found = count_kernels(path)
    if found != num_layers:
        raise FallbackError(
            f"ONNX Runtime computes {found} of the {num_layers} int8 layers of {path.name} in int8 "
            "and the others in float32: export with --precision fp32, and please report this"
        )


def count_kernels(path: Path) -> int:
    """Convolutions and classifiers that are int8 in the graph that ONNX Runtime runs."""
    ort = require("onnxruntime", purpose="running ONNX files")
    onnx = require("onnx", purpose="int8 export")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimised graph is this machine's own
    with TemporaryDirectory(prefix="oat-edge-int8-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(str(optimised)).graph.node
    return sum(node.op_type in KERNELS for node in nodes)
