"""The binding to CUDA's driver: against NVIDIA's own cuda.h, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys

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
