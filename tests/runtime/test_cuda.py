"""The binding to CUDA's driver: against NVIDIA's own cuda.h, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from oat_edge.errors import DependencyError
from oat_edge.runtime import cuda, cuda_work
from tests.gpus import on_gpu
from tests.packages import unpacked


def has_driver():
    try:
        ctypes.CDLL(cuda.LIBRARY)
    except OSError:
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has NVIDIA's driver")


@without_driver
@pytest.mark.parametrize(
    "use",
    [
        cuda.gpu,
        cuda.memory_used_mb,
        cuda.make_current,
        cuda_work.Stream,
        cuda_work.Event,
        lambda: cuda_work.DeviceBuffer(16),
        lambda: cuda_work.pinned(16),
    ],
)
def test_without_a_driver_every_use_says_what_is_missing(use):
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(DependencyError, match=r"libcuda\.so\.1 is not there.*driver") as caught:
            use()
        assert "\n" not in str(caught.value) and caught.value.exit_code == 3


def test_importing_touches_no_driver_and_leaves_nothing_at_exit():
    code = f"""
import ctypes
from oat_edge.runtime import cuda, cuda_work
opened = open("/proc/self/maps").read()
assert {cuda.LIBRARY!r} not in opened
try:
    print(cuda.gpu())
except cuda.DependencyError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1


@on_gpu
@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_are_not_taken_for_a_missing_driver(visible, child_environment):
    code = "from oat_edge.runtime.cuda import gpu; gpu()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment | {"CUDA_VISIBLE_DEVICES": visible},
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = done.stderr.splitlines()[-1]
    assert "DependencyError" in last and f"CUDA_VISIBLE_DEVICES is '{visible}'" in last


# --- the signatures -----------------------------------------------------------------------------

# Each prints its exported name and, by the compiler's own reading, its parameters: p pointer to,
# i integer of so many bytes, f floating point, ? something that only the driver looks into.
PROGRAM = """
#include <cstdio>
#include <type_traits>
#include <cuda.h>
template <class T> struct Kind {
  static void show() {
    if constexpr (std::is_pointer_v<T>) {
      std::printf("p"); Kind<std::remove_cv_t<std::remove_pointer_t<T>>>::show();
    } else if constexpr (std::is_void_v<T> || std::is_class_v<T>) std::printf("?");
    else std::printf("%c%zu", std::is_floating_point_v<T> ? 'f' : 'i', sizeof(T));
  }
};
template <class R, class... A> void show(const char* name, R (*)(A...)) {
  std::printf("%s ", name); Kind<R>::show();
  ((std::printf(" "), Kind<A>::show()), ...); std::printf("\\n");
}
#define TEXT(x) #x
#define SHOW(x) show(TEXT(x), (decltype(&x))nullptr)
int main() { LINES }
"""


def kind(ctype):
    """What PROGRAM prints of the C type that `ctype` stands for."""
    if ctype is ctypes.c_void_p:
        return "p?"
    if ctype is ctypes.c_char_p:
        return "pi1"
    if issubclass(ctype, ctypes._Pointer):
        return "p" + kind(ctype._type_)
    return f"{'f' if ctype is ctypes.c_float else 'i'}{ctypes.sizeof(ctype)}"


@pytest.fixture(scope="module", params=["cu11", "cu12", "newest"])
def header(request, tmp_path_factory):
    """The folder of NVIDIA's cuda.h of one CUDA generation, from their package of the runtime."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to read cuda.h with")
    package = "nvidia-cuda-runtime" + ("" if request.param == "newest" else f"-{request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    unpacked(package, folder)
    (found,) = folder.rglob("include/cuda.h")
    return found.parent


def compiled(header, tmp_path, names, *flags):
    """Line by line what PROGRAM says of `names`."""
    lines = "\n".join(f"SHOW({name});" for name in names)
    source, program = tmp_path / "show.cpp", tmp_path / "show"
    source.write_text(PROGRAM.replace("LINES", lines))
    command = ["g++", "-std=c++17", *flags, "-I", header, source, "-o", program]
    subprocess.run(command, check=True, capture_output=True, text=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in output.splitlines()]


@pytest.mark.slow
def test_every_signature_is_that_of_cuda_h(header, tmp_path):
    """This flag declares all names that the driver exports, old ones too."""
    flag = "-D__CUDA_API_VERSION_INTERNAL"
    found = compiled(header, tmp_path, cuda.SIGNATURES, flag)
    mine = [[name, "i4", *map(kind, arguments)] for name, arguments in cuda.SIGNATURES.items()]
    assert found == mine


# From CUDA 13 on the plain name means another function, which times the same more finely; the
# driver goes on exporting the old one, as the test above shows.
REPLACED = {"cuEventElapsedTime"}


@pytest.mark.slow
def test_every_symbol_is_what_the_plain_name_means(header, tmp_path):
    """`cuMemAlloc` still exists and takes 32-bit sizes: cuda.h sends it to `cuMemAlloc_v2`."""
    names = [name for name in cuda.SIGNATURES if name not in REPLACED]
    plain = [re.sub(r"_v\d$", "", name) for name in names]
    # SHOW(x) expands x before TEXT sees it.
    found = compiled(header, tmp_path, plain)
    assert [line[0] for line in found] == names


# --- on a GPU -----------------------------------------------------------------------------------


@on_gpu
def test_the_gpu_is_described():
    gpu = cuda.gpu()
    assert gpu.name and re.fullmatch(r"\d+\.\d+", gpu.compute_capability)
    assert re.fullmatch(r"\d+\.\d", gpu.cuda) and float(gpu.cuda) >= 11.4
    assert gpu.memory_mb > 500 and 0 < cuda.memory_used_mb() <= gpu.memory_mb * 1.01
    assert gpu == cuda.gpu()


@on_gpu
def test_what_is_copied_to_the_device_comes_back():
    values = np.random.default_rng(0).random(1000, dtype=np.float32)
    host, back = (cuda_work.pinned(values.nbytes).view(np.float32) for _ in range(2))
    host[:] = values
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(values.nbytes) as buffer:
        assert buffer.address % 256 == 0
        buffer.copy_from(host, stream)
        buffer.copy_to(back, stream)
        stream.synchronize()
        np.testing.assert_array_equal(back, values)
        back[:] = 0
        buffer.copy_to(back[:10], stream)  # only as much as asked for
        stream.synchronize()
        np.testing.assert_array_equal(back[:10], values[:10])
        assert not back[10:].any()


@on_gpu
def test_copies_that_cannot_be_right_are_refused():
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(16) as buffer:
        with pytest.raises(ValueError, match="20 bytes for a buffer of 16"):
            buffer.copy_from(np.zeros(5, np.float32), stream)
        with pytest.raises(ValueError, match="not contiguous"):
            buffer.copy_to(np.zeros(4, np.float32)[::2], stream)
        buffer.close()
        with pytest.raises(ValueError, match="closed"):
            buffer.copy_to(np.zeros(4, np.float32), stream)


@on_gpu
def test_a_graph_replays_its_copies_with_the_memory_of_now():
    source, target = (cuda_work.pinned(4096) for _ in range(2))
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(4096) as buffer:

        def there_and_back():
            buffer.copy_from(source, stream)
            buffer.copy_to(target, stream)

        target[:] = 0
        with cuda_work.Graph(stream, there_and_back) as graph:
            stream.synchronize()
            assert not target.any()  # recorded, not run
            for value in (3, 5):
                source[:] = value
                graph.launch(stream)
                stream.synchronize()
                assert (target == value).all()


@on_gpu
def test_a_recording_that_fails_leaves_the_stream_usable():
    source = cuda_work.pinned(64)
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(64) as buffer:

        def fail():
            buffer.copy_from(source, stream)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cuda_work.Graph(stream, fail)
        with pytest.raises(DependencyError, match="cuStreamSynchronize failed"):
            cuda_work.Graph(stream, stream.synchronize)  # must not be recorded
        buffer.copy_from(source, stream)
        stream.synchronize()


@on_gpu
def test_events_measure_the_device_s_time():
    host = cuda_work.pinned(64 << 20)
    with (
        cuda_work.Stream() as stream,
        cuda_work.DeviceBuffer(host.nbytes) as buffer,
        cuda_work.Event() as start,
        cuda_work.Event() as middle,
        cuda_work.Event() as end,
    ):
        start.record(stream)
        buffer.copy_from(host, stream)
        middle.record(stream)
        for _ in range(4):
            buffer.copy_from(host, stream)
        end.record(stream)
        end.synchronize()
        one, four = middle.ms_since(start), end.ms_since(middle)
        assert 0 < one < four
        assert abs(end.ms_since(start) - one - four) < 0.05


@on_gpu
def test_every_thread_may_use_what_one_has_made():
    host = cuda_work.pinned(64)
    failures = []
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(64) as buffer:

        def work():
            try:
                cuda.make_current()
                buffer.copy_from(host, stream)
                stream.synchronize()
            except DependencyError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@on_gpu
def test_memory_is_given_back_once_by_close_or_with_the_last_reference():
    size = 256 << 20
    cuda_work.Stream().close()
    before = cuda.memory_used_mb()
    buffer = cuda_work.DeviceBuffer(size)
    assert cuda.memory_used_mb() >= before + 250
    buffer.close()
    buffer.close()
    assert cuda.memory_used_mb() < before + 20
    buffer = cuda_work.DeviceBuffer(size)
    del buffer
    gc.collect()
    assert cuda.memory_used_mb() < before + 20


@on_gpu
def test_page_locked_memory_lives_as_long_as_any_view_of_it():
    part = cuda_work.pinned(1 << 20).view(np.float32)[10:20]
    gc.collect()
    part[:] = 7
    with cuda_work.Stream() as stream, cuda_work.DeviceBuffer(part.nbytes) as buffer:
        back = cuda_work.pinned(part.nbytes).view(np.float32)
        buffer.copy_from(part, stream)
        buffer.copy_to(back, stream)
        stream.synchronize()
        assert (back == 7).all()


@on_gpu
def test_more_memory_than_there_is_is_one_line_with_a_remedy():
    with pytest.raises(
        DependencyError, match=r"cuMemAlloc_v2 failed \(out of memory.*--batch"
    ) as e:
        cuda_work.DeviceBuffer(1 << 50)
    assert "\n" not in str(e.value)
    with cuda_work.DeviceBuffer(1024):
        pass


@on_gpu
def test_nothing_is_said_when_the_interpreter_ends_with_all_of_it_open():
    code = """
from oat_edge.runtime import cuda_work
stream, event = cuda_work.Stream(), cuda_work.Event()
buffer, host = cuda_work.DeviceBuffer(64), cuda_work.pinned(64)
graph = cuda_work.Graph(stream, lambda: buffer.copy_from(host, stream))
graph.launch(stream)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
