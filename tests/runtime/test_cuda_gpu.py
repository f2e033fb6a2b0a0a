from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from oat_edge.errors import DependencyError
from oat_edge.runtime import cuda, cuda_work
from tests.gpus import on_gpu

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
