"""Exporters by format. The heavy modules are imported when a format is chosen."""

from __future__ import annotations

# format -> "module:function", each (network, spec, width, pinned_lambda, path, …) -> Artifact
EXPORTERS: dict[str, str] = {
    "onnx": "oat_edge.exporters.to_onnx:export",
}
