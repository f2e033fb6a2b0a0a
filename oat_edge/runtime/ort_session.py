"""Opening an ONNX file in ONNX Runtime, on the provider that was asked for or not at all.

Asked for a GPU that it cannot use, ONNX Runtime takes the CPU and says so in its log only. Three
guards stand against that: it is forbidden beforehand, and what it took is looked at afterwards,
by provider and by node. Run-time retries on another provider are off, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oat_edge.errors import DependencyError, FallbackError, InputError, OatEdgeError
from oat_edge.require import require

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
GET_GPU = "pip uninstall -y onnxruntime, then pip install 'oat-edge[gpu]'"
# ONNX Runtime's log levels. Errors of a session are exceptions, too: there they need no log.
WARNING, ERROR, FATAL = 2, 3, 4


class NotCapturableError(Exception):
    """ONNX Runtime refuses to run this file as a CUDA graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionConfig:
    """One file on one device."""

    path: Path
    device: str = "cpu"
    """Key of `PROVIDERS`."""
    threads: int | None = None
    """CPU threads inside an operator; None lets ONNX Runtime choose (one per physical core)."""
    cuda_graph: bool = False
    use_tf32: bool = False
    """Let a GPU round the factors of float32 products to 10 bits."""

    def __post_init__(self) -> None:
        if self.device not in PROVIDERS:
            raise InputError(
                f"device is '{self.device}': ONNX Runtime here runs {' and '.join(PROVIDERS)}"
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}: expected 1 or more")

    @property
    def provider(self) -> str:
        """What must run every node."""
        return PROVIDERS[self.device]


def load_library(device: str) -> Any:
    """onnxruntime, with the provider of `device`; `DependencyError` says what to install."""
    if device == "cpu":
        return require("onnxruntime", purpose="running ONNX files")
    if importlib.util.find_spec("onnxruntime") is None:
        raise DependencyError(
            "onnxruntime-gpu is not installed, but running ONNX files on a GPU needs it: "
            "pip install 'oat-edge[gpu]'"
        )
    ort = require("onnxruntime", purpose="running ONNX files on a GPU")
    have = ort.get_available_providers()
    if PROVIDERS[device] not in have:
        raise DependencyError(
            f"onnxruntime {ort.__version__} has no {PROVIDERS[device]} (only {', '.join(have)}), "
            f"but running ONNX files on a GPU needs it: {GET_GPU}"
        )
    preload(ort)
    return ort


@functools.cache
def preload(ort: Any) -> None:
    """Load CUDA and cuDNN from pip's nvidia-* packages where they are; the linker finds others."""
    if hasattr(ort, "preload_dlls"):
        # It prints what it does not find, which may be JSON's place; what is missing is told by
        # `_why_not_loaded`.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def open_session(ort: Any, config: SessionConfig, *, trace: Path | None = None) -> Any:
    """An `InferenceSession` that runs all of the file on `config.device`.

    trace: where times of nodes are written to (a name is made from it). Raises `FallbackError` if
    a node would run elsewhere, `InputError` for a file that does not load, `NotCapturableError`.
    """
    options = ort.SessionOptions()
    # Idle workers go to sleep at once. By default they spin on, and several resident engines
    # (one per width) then steal the cores from the one that runs: up to 2x, and energy.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if config.threads is not None:
        options.intra_op_num_threads = config.threads
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    # Warnings are about hardware probing.
    options.log_severity_level = ERROR
    if config.device == "cpu":
        session = _create(ort, config, options, {})
    else:
        options.log_severity_level = FATAL
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        ort.set_default_logger_severity(FATAL)
        try:
            session = _create(ort, config, options, _cuda_options(config))
        finally:
            ort.set_default_logger_severity(WARNING)
    session.disable_fallback()
    if session.get_providers()[0] != config.provider:
        raise FallbackError(
            f"ONNX Runtime took {session.get_providers()[0]} instead of {config.provider}"
        )
    if config.device != "cpu":
        check_nodes(session, config)
    return session


def check_nodes(session: Any, config: SessionConfig) -> dict[str, int]:
    """Number of nodes by provider; `FallbackError` if any is not on the one asked for.

    Empty where ONNX Runtime is too old to say (before 1.24): the other guards must do.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    elsewhere = {name: num for name, num in counts.items() if name != config.provider}
    if elsewhere or not counts:
        found = ", ".join(f"{num} on {name}" for name, num in elsewhere.items()) or "none at all"
        raise FallbackError(
            f"{config.path}: ONNX Runtime put nodes elsewhere ({found}), expected all of them on "
            f"{config.provider}: export again, or use --device cpu"
        )
    return dict(counts)


def error_line(error: Exception) -> str:
    """First line of an error of ONNX Runtime's."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cuda_options(config: SessionConfig) -> dict[str, str]:
    return {
        "device_id": "0",
        "use_tf32": str(int(config.use_tf32)),
        "enable_cuda_graph": str(int(config.cuda_graph)),
        # Tries every kernel of each new shape once, in its first request.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }


def _create(ort: Any, config: SessionConfig, options: Any, provider_options: dict[str, str]) -> Any:
    try:
        # Read first: a path with odd characters is then no concern of the C++ side.
        return ort.InferenceSession(
            config.path.read_bytes(),
            sess_options=options,
            providers=[(config.provider, provider_options)],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise _refusal(ort, config, error) from error


def _refusal(ort: Any, config: SessionConfig, error: Exception) -> OatEdgeError | Exception:
    text = error_line(error)
    if config.device != "cpu":
        if reason := _why_not_loaded(ort):
            return FallbackError(
                f"ONNX Runtime's {config.provider} does not load ({reason}), and the CPU does not "
                "stand in for it: it needs NVIDIA's driver, CUDA and cuDNN "
                "(pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )
        if config.cuda_graph and "graph capture" in text:
            return NotCapturableError(text)
        if "CPU EP" in text or "CUDA" in text:
            return FallbackError(
                f"{config.path} does not run on {config.provider} alone ({text}): "
                "look at the driver with nvidia-smi, or use --device cpu"
            )
    return InputError(f"{config.path} does not load in ONNX Runtime ({text})")


def _why_not_loaded(ort: Any) -> str | None:
    """Why the provider's own library cannot be loaded; None if it can, or there is none.

    ONNX Runtime tells this to its log alone. Asked only after a failure: loading it here first
    is not what ONNX Runtime would do.
    """
    folder = Path(ort.__file__).parent / "capi"
    for name in ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"):
        if (folder / name).is_file():
            try:
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return error_line(error).replace(f"{folder}/", "")
    return None
