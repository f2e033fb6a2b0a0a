"""What no engine is built from, and what only numbers show (TensorRT-RTX, on any machine)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from oat_edge.errors import BuildError, DependencyError, FallbackError
from oat_edge.exporters.to_tensorrt import build_engine, refit_engine
from oat_edge.runtime import trt_api
from oat_edge.runtime.recipe import Recipe
from tests.exporters.graphs import FLOAT, Graph, exported, feed, run
from tests.gpus import without_gpu
from tests.packages import need_rtx

need_rtx()


def changed(change: Callable, arch: str = "resnet8", precision: str = "fp32") -> bytes:
    model = onnx.load_from_string(exported(arch, precision=precision))
    change(model)
    return bytes(model.SerializeToString())


def refused(build, content, error, match, precision="fp32", **options):
    with pytest.raises(error, match=match) as caught:
        build(content, precision, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


class TestRefused:
    @pytest.mark.parametrize("content", [b"\x00\x01broken", exported, b""])
    def test_broken_bytes(self, build, content):
        if callable(content):
            content = content("resnet8")[:20_000]
        refused(build, content, BuildError, "does not read the ONNX file|inputs: none")

    def test_an_unknown_operator(self, build):
        def change(model):
            (node,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
            node.op_type, node.name = "Frobnicate", "the_node"

        refused(build, changed(change), BuildError, "Frobnicate the_node: ")

    @pytest.mark.parametrize("name", ["image", "lambda"])
    def test_a_fixed_batch(self, build, name):
        def change(model):
            (value,) = [value for value in model.graph.input if value.name == name]
            value.type.tensor_type.shape.dim[0].dim_value = 4
            del model.graph.value_info[:]

        refused(build, changed(change), BuildError, f"{name} has a fixed batch of 4")

    def test_inputs_of_other_names(self, build):
        def rename(model):
            model.graph.input[1].name = "lam"
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    node.input[place] = "lam" if name == "lambda" else name

        refused(build, changed(rename), BuildError, "inputs: image, lam, .*expected image and lam")

    def test_inputs_of_other_types(self, build):
        def change(model):
            cast = onnx.helper.make_node("Cast", ["image"], ["image_float"], to=FLOAT)
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    node.input[place] = "image_float" if name == "image" else name
            model.graph.node.insert(0, cast)
            model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16

        refused(build, changed(change), BuildError, "image is HALF")

    @pytest.mark.parametrize("asked, carried", [("fp16", "fp32"), ("fp32", "fp16"),
                                                ("int8", "fp32"), ("int8", "fp16"),
                                                ("fp32", "int8")])  # fmt: skip
    def test_a_file_in_another_precision(self, build, asked, carried):
        content = exported("resnet8", 0.5, carried)
        match = rf"ONNX file was asked for in {asked}.*9 in {carried}.*--precision {asked}"
        refused(build, content, FallbackError, match, asked)

    def test_weights_of_mixed_types(self, build):
        def change(model):
            (_, conv, *_) = [node for node in model.graph.node if node.op_type == "Conv"]
            (tensor,) = [t for t in model.graph.initializer if t.name == conv.input[1]]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

        refused(build, changed(change, precision="fp16"), BuildError, "same type", "fp16")

    def test_one_convolution_in_another_precision(self, build):
        graph = Graph()
        half = graph.add("Cast", "image", to=onnx.TensorProto.FLOAT16)
        weights = graph.constant(np.ones((8, 3, 1, 1), dtype=np.float16))
        single = graph.add("Cast", graph.add("Conv", half, weights), to=FLOAT)
        graph.head(graph.conv(single, 8, 8), 8)
        content = graph.model().SerializeToString()
        refused(build, content, FallbackError, "1 in fp16, 1 in fp32", "fp16")
        refused(build, content, FallbackError, "1 in fp16, 1 in fp32", "fp32")

    @without_gpu
    @pytest.mark.parametrize("option", ["refit", "version_compatible"])
    def test_what_needs_a_gpu(self, build, option, tmp_path):
        name = option.replace("_", "-")
        match = f"built no engine: .*{name} engines need a GPU.*log: {tmp_path}"
        refused(build, exported("resnet8"), BuildError, match, **{option: True})

    @without_gpu
    def test_an_older_library_is_tried_weakly_typed_once(self, library, tmp_path):
        """The same library, taken for one in which that is allowed; refit fails without a GPU."""
        older = trt_api.Library("trt", library.api, "10.3.0")
        log = tmp_path / "build.log"
        recipe = Recipe(format="trt", precision="fp32", refit=True)
        missing = pytest.raises(BuildError, match=r"built no engine.*try without refit")
        with pytest.warns(DeprecationWarning), missing:  # of RTX's timing cache
            build_engine(exported("resnet8"), recipe, older, log=log)
        assert log.read_text().count("trying weakly typed") == 1

    @without_gpu
    def test_refitting_without_a_gpu(self, library):
        with pytest.raises(DependencyError):
            refit_engine(b"plan", exported("resnet8"), library)


class TestBakedBatchSize:
    """Where the builder does not see it, two batch sizes in ONNX Runtime show it."""

    def gated(self, bake):
        """A network whose channel gate has lost its batch."""
        graph = Graph()
        features = graph.conv("image", 3, 8, 3)
        gate = graph.add("Sigmoid", bake(graph, features))
        graph.head(graph.add("Mul", features, gate), 8)
        return graph.model().SerializeToString()

    def test_a_reshape_that_loses_values_is_refused(self, build):
        def bake(graph, features):
            mean = graph.add("GlobalAveragePool", features)
            return graph.add("Reshape", mean, graph.constant(np.array([1, 8, 1, 1])))

        content = self.gated(bake)
        refused(build, content, BuildError, "violate shape constraints")
        with pytest.raises(Exception, match=r"[Rr]eshape"):
            run(content, 5)

    def test_a_reshape_that_mixes_images_is_not(self, build):
        def bake(graph, features):
            as_one = graph.add("Reshape", features, graph.constant(np.array([1, -1, 8, 8])))
            axes = graph.constant(np.array([1, 2, 3]))
            return graph.add("ReduceMean", as_one, axes, keepdims=1)

        content = self.gated(bake)
        assert build(content).plan
        assert self.difference(content) > 1e-3

    def test_nor_is_a_first_image_that_speaks_for_all(self, build):
        def bake(graph, features):
            bounds = [graph.constant(np.array([value])) for value in (0, 1, 0)]
            return graph.add("Slice", graph.add("GlobalAveragePool", features), *bounds)

        content = self.gated(bake)
        assert build(content).plan
        assert self.difference(content) > 1e-3

    def test_where_an_output_shows_it_the_build_is_refused(self, build):
        graph = Graph()
        baked = graph.constant(np.array([2, 8, 8, 8]))
        graph.head(graph.add("Reshape", graph.conv("image", 3, 8, 3), baked), 8)
        content = graph.model([("logits", (None, 10))]).SerializeToString()
        refused(build, content, BuildError, "logits has a fixed batch of 2")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_exported_networks_have_none(self, precision):
        assert self.difference(exported("resnet8", 0.5, precision)) < 1e-3

    def difference(self, content):
        """Largest difference of the last image's logits alone and in a batch of five."""
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        inputs = feed(content, 5)
        (together,) = session.run(None, inputs)
        (alone,) = session.run(None, {name: value[4:] for name, value in inputs.items()})
        return np.abs(together[4:] - alone).max()
