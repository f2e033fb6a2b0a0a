from __future__ import annotations

import json

import pytest

from oat_edge.errors import BuildError, FallbackError
from oat_edge.runtime.trt_layers import (
    Layer,
    check_precision,
    count_convolutions,
    data_type,
    layers_from_json,
    layers_from_log,
)

# Written by the builder of TensorRT-RTX 1.7 for a half-precision network (excerpt).
LOG = """Layers:
Name: __mye3023_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: __myl_FcCast_myl0_3, LayerType: runtime_fusion, Inputs: [ { Name: a, Dimensions: [-1,6], Strides: [6,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: table_constantFloat_myl0, Dimensions: [6,672], Strides: [672,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: b, Dimensions: [-1,672], Strides: [672,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_matmul]\x1f[ONNX Layer: cast_matmul_half]
Name: __myl_AddMulCastReplConc_myl0_4, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,1,8,8], Strides: [64,64,8,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: c, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: d, Dimensions: [-1,2,8,8], Strides: [128,1,16,2], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myl_AddMulCastReplConc_0x3e1d, StreamId: 0, Metadata: [ONNX Layer: node_Conv_153]\x1f[ONNX Layer: node_div_1]
Name: node_Conv_153_myl0_5, LayerType: correlation, Inputs: [ { Name: d, Dimensions: [-1,2,8,8], Strides: [128,1,16,2], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: __mye17253_const_myl0, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }, { Name: __mye16071_dconst_myl0, Dimensions: [16,2,3,3], Strides: [18,1,6,2], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: e, Dimensions: [-1,16,8,8], Strides: [1024,1,128,16], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_Conv_153]
Name: __mye66529_myl0_105, LayerType: gemm, Inputs: [ { Name: f, Dimensions: [-1,960,16], Strides: [15360,1,960], StrideOrder: [2,0,1], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: g, Dimensions: [1,320,960], Strides: [307200,1,320], StrideOrder: [2,0,1], Datatype: Half, Format: (Transposed) Transposed format }, { Name: h, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: i, Dimensions: [-1,320,16], Strides: [5120,1,320], StrideOrder: [2,0,1], Datatype: Half, Format: (Transposed) Transposed format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_Conv_789]__gemm_from_conv1x1

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,1,8,8]
"""  # noqa: E501


def tensor(kind: str, *, name: str = "x", split: bool = False, dims=(-1, 16, 8, 8)) -> dict:
    """As the inspector writes it: one field up to 10.x, two from 11."""
    both = {"Format": "Channel major format", "Datatype": kind}
    return {"Name": name, "Dimensions": list(dims)} | (both if split else {"Format/Datatype": kind})


def classic(kind: str = "Channel major FP16 format", weights: str = "Half", **changes) -> dict:
    layer = {
        "Name": "node_conv2d + node_relu",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(kind)],
        "Outputs": [tensor(kind)],
        "ParameterType": "Convolution",
        "Weights": {"Type": weights, "Count": 9408},
        "Bias": {"Type": "Float", "Count": 64},
        "TacticName": "",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_relu]",
    }
    return layer | changes


def read(*layers: object, key: str = "Bindings") -> list[Layer]:
    # The libraries write control characters bare, which is no strict JSON.
    text = json.dumps({"Layers": layers, key: ["image"]}).replace("\\u001f", "\x1f")
    return layers_from_json(text)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("Float", "fp32"),
        ("FLOAT", "fp32"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Half(64,1:8,512)", "fp16"),
        ("BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("TF32", "tf32"),
        ("FP8", "fp8"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Int32", "integer"),
        ("UInt8", "integer"),
        ("Row major linear BOOL", "integer"),
        ("N/A due to dynamic shapes", "unknown"),
        ("", "unknown"),
    ],
)
def test_types_have_one_name(text, kind):
    assert data_type(text) == kind


class TestLog:
    def test_each_line_is_a_layer(self):
        layers = layers_from_log(LOG)
        kinds = ["shape_call", "runtime_fusion", "kgen", "correlation", "gemm"]
        assert [layer.kind for layer in layers] == kinds
        conv = layers[3]
        assert conv.name == "node_Conv_153_myl0_5"
        assert (conv.inputs, conv.outputs) == (("fp16",), ("fp16",))
        assert conv.constants == ("fp16", "fp32")  # the weights first, though written last
        assert layers[1].onnx_names == ("node_matmul", "cast_matmul_half")
        assert layers[4].onnx_names == ("node_Conv_789",)

    @pytest.mark.parametrize("nodes", [(), ("node_Conv_153", "node_Conv_789")])
    def test_convolutions_are_counted_and_what_prepares_their_data_is_not(self, nodes):
        assert count_convolutions(layers_from_log(LOG), nodes) == {"fp16": 2}

    def test_only_named_nodes_count_where_names_are_known(self):
        # A product that stands for a matrix product is none, whatever its name.
        assert count_convolutions(layers_from_log(LOG), {"node_Conv_153"}) == {"fp16": 1}

    @pytest.mark.parametrize(
        "text", ["", "Layers:\n", "Engine Layer Information:", "Layers:\nName: a, Kind: b"]
    )
    def test_another_form_is_an_error_not_an_empty_list(self, text):
        with pytest.raises(BuildError, match="list of layers"):
            layers_from_log(text)


class TestJson:
    @pytest.mark.parametrize("key", ["Bindings", "I/O Tensors"])
    @pytest.mark.parametrize("split", [False, True])
    def test_both_generations_are_read(self, key, split):
        kgen = {
            "Name": "__myl_Cast_1",
            "LayerType": "kgen",
            "Inputs": [tensor("Float", split=split)],
            "Outputs": [tensor("Half", split=split)],
            "TacticName": "__myl_Cast_0x1",
            "Metadata": "[ONNX Layer: node_Conv_1]",
        }
        weights = tensor("Half", dims=(16, 16, 3, 3), split=split)
        conv = {
            **kgen,
            "Name": "node_Conv_1",
            "LayerType": "correlation",
            "Inputs": [tensor("Half", split=split)],
            "Constants": [tensor("Float", dims=(1,), split=split), weights],
        }
        layers = read(kgen, conv, key=key)
        assert layers[0].inputs == ("fp32",) and layers[0].outputs == ("fp16",)
        assert layers[1].constants == ("fp16", "fp32")
        assert count_convolutions(layers) == {"fp16": 1}

    def test_classic_convolutions(self):
        (layer,) = read(classic())
        assert layer.onnx_names == ("node_conv2d", "node_relu")
        assert layer.constants == ("fp16", "fp32")
        assert count_convolutions([layer], {"node_conv2d"}) == {"fp16": 1}

    @pytest.mark.parametrize(
        "kind, weights, tactic, expected",
        [
            ("Row major linear FP32", "Float", "", "fp32"),
            ("Channel major FP16 format", "Half", "", "fp16"),
            ("Thirty-two wide channel vectorized row major Int8 format.", "Int8", "", "int8"),
            # Weights that were rounded do not make the product of wide data a narrow one.
            ("Row major linear FP32", "Half", "", "fp32"),
            ("N/A due to dynamic shapes", "Int8", "", "int8"),
            ("N/A due to dynamic shapes", "", "", "unknown"),
            (
                "N/A due to dynamic shapes", "",
                "sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32", "int8",
            ),
            (
                "Row major linear FP32", "Float",
                "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nchw", "tf32",
            ),
            (
                "Row major linear FP32", "Float",
                "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nchw", "fp32",
            ),
            (
                "Channel major FP16 format", "Half",
                "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "fp16",
            ),
            # One type behind the first pair is what is summed in, not what is multiplied.
            (
                "Channel major FP16 format", "Half",
                "sm80_xmma_fprop_image_first_layer_f16f16_f32_f16_nhwckrsc_nhwc_k48c4r3", "fp16",
            ),
        ],
    )  # fmt: skip
    def test_what_a_convolution_computes_in(self, kind, weights, tactic, expected):
        layer = classic(kind, weights, TacticName=tactic)
        assert count_convolutions(read(layer)) == {expected: 1}

    def test_merged_convolutions_count_once(self):
        merged = classic(
            Name="node_conv2d || node_conv2d_1",
            Metadata="[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_conv2d_1]",
        )
        nodes = {"node_conv2d", "node_conv2d_1"}
        assert count_convolutions(read(merged)) == {"fp16": 1}
        assert count_convolutions(read(merged), nodes) == {"fp16": 1}
        # Nor does a layer that ends one of them make a second.
        tail = classic(LayerType="fusion", ParameterType="", Metadata="[ONNX Layer: node_conv2d_1]")
        assert count_convolutions(read(tail, merged), nodes) == {"fp16": 1}

    def test_a_classifier_run_as_a_convolution_is_none(self):
        classifier = classic("Row major linear FP32", "Float", Metadata="[ONNX Layer: node_linear]")
        layers = read(classic(), classifier)
        for nodes in ({"node_conv2d"}, ()):  # as at building, and as at opening
            assert count_convolutions(layers, nodes) == {"fp16": 1}

    def test_copies_in_front_of_a_convolution_are_none(self):
        copy = {
            "Name": "Reformatting CopyNode for Input Tensor 0 to node_conv2d",
            "LayerType": "Reformat",
            "ParameterType": "Reformat",
            "Inputs": [tensor("Row major linear FP32")],
            "Outputs": [tensor("Channel major FP16 format")],
        }
        assert count_convolutions(read(copy, classic())) == {"fp16": 1}

    def test_a_part_behind_one_name_is_unknown(self):
        opaque = {
            "Name": "{ForeignNode[node_conv2d...node_add]}",
            "LayerType": "Myelin",
            "Inputs": [tensor("Row major linear FP32")],
            "Outputs": [tensor("Row major linear FP32")],
            "Metadata": "[ONNX Layer: node_conv2d]\x1f[ONNX Layer: node_add]",
        }
        assert count_convolutions(read(opaque)) == {"unknown": 1}
        several = opaque | {"Metadata": "[ONNX Layer: conv_a]\x1f[ONNX Layer: conv_b]"}
        assert count_convolutions(read(several)) == {"unknown": 2}

    @pytest.mark.parametrize("layers", [["node_conv2d + node_relu"], [classic(), "a"], []])
    def test_names_alone_are_an_error_that_says_so(self, layers):
        with pytest.raises(BuildError, match=r"(only names of|no) layers.*DETAILED"):
            read(*layers)

    @pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"Layers": [', '{"Layers": 3}'])
    def test_anything_else_is_one_line(self, text):
        with pytest.raises(BuildError) as error:
            layers_from_json(text)
        assert "\n" not in str(error.value)


class TestCheck:
    @pytest.mark.parametrize(
        "counts, requested, parsed",
        [
            ({"fp16": 9}, "fp16", None),
            ({"fp16": 9}, "fp16", {"fp16": 9}),
            ({"fp16": 7}, "fp16", {"fp16": 9}),  # some were merged
            ({"fp32": 9}, "fp32", {"fp32": 9}),
            ({"int8": 9}, "int8", {"int8": 9}),
            ({"int8": 7, "fp16": 2}, "int8", {"int8": 7, "fp16": 2}),
            ({"int8": 2, "fp16": 7}, "int8", {"int8": 2, "fp16": 7}),
            ({"int8": 7, "fp16": 1}, "int8", {"int8": 7, "fp16": 2}),
            ({"int8": 7, "fp16": 2}, "int8", None),
            ({}, "fp32", {}),
        ],
    )
    def test_what_was_asked_for_passes(self, counts, requested, parsed):
        assert check_precision(counts, requested, parsed=parsed, what="x") == requested

    @pytest.mark.parametrize(
        "counts, requested, parsed",
        [
            ({"fp32": 9}, "fp16", None),
            ({"fp32": 1, "fp16": 8}, "fp16", {"fp16": 9}),
            ({"fp32": 1, "fp16": 8}, "fp16", None),
            ({"fp16": 9}, "fp32", {"fp32": 9}),
            ({"tf32": 9}, "fp32", {"fp32": 9}),
            ({"tf32": 1, "fp32": 8}, "fp32", None),
            ({"bf16": 9}, "fp16", None),
            ({"fp32": 9}, "int8", {"int8": 9}),
            ({"int8": 7, "fp32": 2}, "int8", {"int8": 9}),
            ({"int8": 7, "fp32": 2}, "int8", {"int8": 7, "fp16": 2}),
            ({"int8": 7, "tf32": 2}, "int8", {"int8": 7, "fp32": 2}),
            ({"int8": 1, "fp32": 8}, "int8", None),
            ({"fp16": 8, "unknown": 1}, "fp16", {"fp16": 9}),
            ({"fp16": 3}, "fp16", {"fp16": 9}),  # the rest is nowhere
            ({}, "fp16", {"fp16": 9}),
            ({}, "fp32", {"fp32": 9}),
            ({}, "fp16", None),
            ({}, "int8", None),
        ],
    )
    def test_anything_else_is_one_line_that_says_what_is_there(self, counts, requested, parsed):
        with pytest.raises(FallbackError) as error:
            check_precision(counts, requested, parsed=parsed, what="w0.50.engine")
        text = str(error.value)
        assert text.startswith(f"w0.50.engine was asked for in {requested}")
        assert "\n" not in text and "--precision" in text
        if parsed is None:
            assert all(f"{num} in {kind}" in text for kind, num in counts.items())
        assert error.value.exit_code == 6
