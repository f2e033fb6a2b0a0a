from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from oat_edge.bundle import add_artifacts
from oat_edge.errors import DependencyError, FallbackError, InputError
from oat_edge.exporters.half import to_half
from oat_edge.runtime import open_artifact, open_runner
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.ort_session import SessionConfig, check_nodes, load_library

IMAGE = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)


def change_model(content, change):
    model = onnx.load_from_string(content)
    change(model)
    return model.SerializeToString()


def test_a_failure_inside_onnx_runtime_is_one_line(tiny_bundle):
    """A Reshape that a batch of one survives and a batch of three does not."""

    def fix_batch(model):
        constant = onnx.numpy_helper.from_array(np.array([1, 10], dtype=np.int64), "fixed")
        model.graph.initializer.append(constant)
        (node,) = [node for node in model.graph.node if "logits" in node.output]
        node.output[0] = "inner"
        reshape = onnx.helper.make_node("Reshape", ["inner", "fixed"], ["logits"])
        model.graph.node.append(reshape)

    artifact = tiny_bundle.select(format="onnx", width=0.5)
    path = tiny_bundle.checked_path(artifact)
    with open_artifact(tiny_bundle, artifact) as whole:
        io = whole.io
    broken = path.parent.parent / "broken.onnx"
    broken.write_bytes(change_model(path.read_bytes(), fix_batch))
    with OrtRunner(broken, io) as runner:
        assert runner.infer(IMAGE, 0.3).shape == (1, 10)
        with pytest.raises(InputError, match=r"broken\.onnx fails in ONNX Runtime \(") as caught:
            runner.infer(np.repeat(IMAGE, 3, axis=0), 0.3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["jetson", "", "CPU", "tpu:0"])
def test_a_device_that_is_not_there_is_an_error(device, tiny_bundle):
    with pytest.raises(InputError, match=f"device is '{device}': .*cpu"):
        open_runner(tiny_bundle.path, 0.5, device=device)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_count_from_one(threads, tiny_bundle):
    with pytest.raises(InputError, match=f"threads is {threads}: expected 1 or more"):
        open_runner(tiny_bundle.path, 0.5, threads=threads)


def test_open_runner_takes_the_width_and_the_pin_that_were_asked_for(tiny_bundle):
    found = {}
    for width in (0.5, 1.0):
        for pinned in (None, 1.0):
            with open_runner(str(tiny_bundle.path), width, pinned_lambda=pinned) as runner:
                assert runner.io.pinned_lambda == pinned
                found[width, pinned] = runner.infer(IMAGE, 1.0)
    assert np.abs(found[0.5, None] - found[1.0, None]).max() > 1e-2
    for width in (0.5, 1.0):
        np.testing.assert_allclose(found[width, None], found[width, 1.0], atol=1e-4)
    with open_runner(tiny_bundle.path) as widest:
        np.testing.assert_array_equal(widest.infer(IMAGE, 1.0), found[1.0, None])


def test_the_widest_is_the_widest_of_its_kind(tiny_bundle, tmp_path):
    """Width 1 is there only pinned: asking for a knob then means width 0.5."""
    artifacts = [
        tiny_bundle.select(format="onnx", width=0.5),
        tiny_bundle.select(format="onnx", width=1.0, pinned_lambda=1.0),
    ]
    folder = tmp_path / "mixed"
    folder.mkdir()
    for artifact in artifacts:
        shutil.copy(tiny_bundle.path / artifact.file, folder)
    facts = {"checkpoint_sha256": tiny_bundle.checkpoint_sha256, "spec": tiny_bundle.spec}
    add_artifacts(folder, artifacts, run="mixed", **facts)
    with open_runner(folder) as knob, open_runner(tiny_bundle.path, 0.5) as narrow:
        np.testing.assert_array_equal(knob.infer(IMAGE, 0.3), narrow.infer(IMAGE, 0.3))
    with pytest.raises(InputError, match=r"no onnx file pinned at λ=0\.3"):
        open_runner(folder, pinned_lambda=0.3)


def test_a_width_or_a_pin_that_was_not_exported_is_an_error(tiny_bundle):
    with pytest.raises(
        InputError, match=r"no onnx file of width 0\.75 .*trained for widths 0\.5, 1$"
    ):
        open_runner(tiny_bundle.path, 0.75)
    with pytest.raises(InputError, match=r"pinned at λ=0\.3"):
        open_runner(tiny_bundle.path, 0.5, pinned_lambda=0.3)


def test_a_dedicated_network_takes_its_own_lambda_only(dedicated):
    path, io = dedicated
    with OrtRunner(path, io) as runner:
        assert runner.infer(IMAGE, 0.3).shape == (1, 10)
        assert runner.infer(IMAGE, np.array([0.3], dtype=np.float32)).shape == (1, 10)
        for other in (0.0, 0.29, 1.0):
            with pytest.raises(InputError, match=r"expected 0\.3 \(all this network has\)"):
                runner.infer(IMAGE, other)


def network(bundle, width=1.0, **facts):
    """A λ-input file of the bundle and what its runner takes."""
    artifact = bundle.select(format="onnx", width=width, **facts)
    with open_artifact(bundle, artifact) as runner:
        return bundle.checked_path(artifact), runner.io


def test_half_precision_on_a_cpu_is_called_what_it_is(tiny_bundle, tmp_path):
    path, io = network(tiny_bundle)
    model = onnx.load(path)
    assert to_half(model) > 0
    onnx.save(model, tmp_path / "half.onnx")
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    with (
        OrtRunner(tmp_path / "half.onnx", io, precision="fp16") as half,
        OrtRunner(path, io) as single,
        OrtRunner(path, io, precision="int8") as eight,
    ):
        assert (half.precision, single.precision) == ("fp16-emulated", "fp32")
        assert eight.precision == "int8"  # the CPU has kernels for it
        difference = np.abs(half.infer(images, 0.3) - single.infer(images, 0.3)).max()
    assert 0 < difference < 0.1


def test_without_a_cuda_provider_it_says_what_to_install(tiny_bundle):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    path, io = network(tiny_bundle)
    with pytest.raises(DependencyError, match=r"uninstall.*pip install 'oat-edge\[gpu\]'") as error:
        OrtRunner(path, io, device="cuda")
    assert error.value.exit_code == 3 and "\n" not in str(error.value)


def test_nodes_on_another_provider_are_counted_and_refused(tiny_bundle):
    """A session of the CPU, looked at as if it had been meant for the GPU."""
    path, _ = network(tiny_bundle)
    ort = load_library("cpu")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    (counted,) = check_nodes(session, SessionConfig(path=path)).values()
    assert counted > 20
    wanted = SessionConfig(path=path, device="cuda")
    with pytest.raises(FallbackError, match=rf"{counted} on CPUExecutionProvider.*--device cpu"):
        check_nodes(session, wanted)


# Runs in an environment that has onnxruntime-gpu: what does it give where no GPU is?
ASK = """
import sys
from pathlib import Path
import numpy as np
from oat_edge.errors import OatEdgeError
from oat_edge.runtime.ort import OrtRunner
from oat_edge.runtime.runner import RunnerIO
import onnxruntime
assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
io = RunnerIO(image_shape=(1, 8, 8), num_classes=10, lambdas=(0.0, 0.1, 0.2, 0.3, 0.4, 1.0))
image = np.full((1, 1, 8, 8), 0.5, dtype=np.float32)
for device in ("cpu", "cuda"):
    try:
        with OrtRunner(Path(sys.argv[1]), io, device=device) as runner:
            print(device, runner.infer(image, 0.3).shape)
    except OatEdgeError as error:
        print(device, type(error).__name__, error.exit_code, error)
"""


@pytest.mark.slow
def test_onnxruntime_gpu_without_a_gpu_never_runs_on_the_cpu(
    tiny_bundle, tmp_path, child_environment, no_gpu
):
    """The package ships the provider everywhere and, left alone, falls back to the CPU."""
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    root = Path(child_environment["PYTHONPATH"])
    packages = ["onnxruntime-gpu", "numpy", "typer", "rich"]
    command = [python, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(
        [*command, "--constraint", root / "constraints.txt"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"onnxruntime-gpu cannot be had here: {done.stderr.strip()[-200:]}")
    path, _ = network(tiny_bundle)

    def run(*arguments):
        return subprocess.run(
            [python, *map(str, arguments)], env=child_environment, capture_output=True, text=True
        )

    asked = run("-c", ASK, path)
    assert asked.returncode == 0, asked.stderr
    on_cpu, on_gpu = asked.stdout.splitlines()
    assert on_cpu == "cpu (1, 10)"
    assert on_gpu.startswith("cuda FallbackError 6 ONNX Runtime's CUDAExecutionProvider does not")
    assert "lib" in on_gpu and ".so" in on_gpu  # what is missing
    assert asked.stderr == ""
    benched = run(
        "-m", "oat_edge", "bench", "--bundle", tiny_bundle.path, "--device", "cuda", "--json", "-"
    )  # fmt: skip
    assert (benched.returncode, benched.stdout) == (3, "")
    *_, line = benched.stderr.splitlines()
    assert line.startswith("error: ") and "GPU" in line and "Traceback" not in benched.stderr
