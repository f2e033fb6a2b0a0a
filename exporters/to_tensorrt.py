"""ONNX -> engine, with TensorRT or TensorRT-RTX, and proof of what the engine computes in.

Precision is what the ONNX file says: half-precision tensors, or Q/DQ. Neither torch nor onnx is
needed: this runs on the device too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oat_edge.errors import BuildError, DependencyError
from oat_edge.exporters.build_session import Phases, Session, make_monitor, open_log
from oat_edge.exporters.trt_network import check_interface, convolutions_of, parser_errors
from oat_edge.runtime.recipe import Recipe
from oat_edge.runtime.trt_api import Library, network_flags, set_weak_precision
from oat_edge.runtime.trt_layers import (
    Layer,
    check_precision,
    count_convolutions,
    layers_from_json,
    layers_from_log,
)

INPUTS = ("image", "lambda")


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """An engine in memory, and what is known of it."""

    plan: bytes
    """The engine. It is executable code."""
    typing: str
    """ "strong": types are the ONNX file's; "weak": an old TensorRT was allowed a precision."""
    convolutions: dict[str, int]
    """How many convolutions of the network are in each type, before building."""
    precision: str | None
    """What the engine's convolutions compute in; None if that could not be read."""
    reason: str = ""
    """Why `precision` is None."""
    layers: tuple[Layer, ...] = ()
    """What the engine runs, in order; empty where that could not be read."""
    timing_cache: bytes = b""
    """Hand it to the next build on this device; empty where the library has none."""
    seconds: float = 0.0


def build_engine(
    onnx: bytes,
    recipe: Recipe,
    library: Library,
    *,
    timing_cache: bytes = b"",
    log: Path | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> BuiltEngine:
    """Build an engine from the content of an ONNX file (DESIGN, section 5: the graph).

    timing_cache: of an earlier build on this device; one that does not fit is dropped. log: file
    for every line of the library, kept if the build fails. progress: called with a growing share
    in (0, 1], 1 when all is done; it may raise, which ends the build.
    Raises `BuildError`; `FallbackError` if the file or the engine is not in the recipe's precision.
    """
    start = time.perf_counter()
    with open_log(log) as file, Session(library, file, log) as session:
        session.write("INFO", f"{library.name}, {json.dumps(recipe.to_json())}")
        builder = _Build(session, onnx, recipe, timing_cache, Phases(progress))
        built = None
        try:
            built = builder.run(strong=True)
        except BuildError as error:
            if session.stopped or not library.may_be_weak:
                raise
            session.write("WARNING", f"strongly typed: {error}; trying weakly typed")
        if built is None:  # not inside `except`: the error would keep the first builder's memory
            built = builder.run(strong=False)
        session.check()
    progress(1.0)
    return replace(built, seconds=time.perf_counter() - start)


def refit_engine(plan: bytes, onnx: bytes, library: Library) -> bytes:
    """An engine built with `Recipe.refit`, with the weights of another ONNX file of that graph.

    Needs a GPU. Raises `DependencyError`, `BuildError`.
    """
    from oat_edge.runtime.cuda import gpu

    gpu()  # without a driver the next calls have been seen to crash the process
    api = library.api
    with Session(library) as session:
        engine = api.Runtime(session.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise session.error(f"{library.name} does not load the engine")
        refitter = api.Refitter(engine, session.logger)
        parser = api.OnnxParserRefitter(refitter, session.logger)
        if not parser.refit_from_bytes(onnx) or not refitter.refit_cuda_engine():
            raise session.error(f"{library.name} cannot put these weights into the engine")
        return bytes(engine.serialize())


class _Build:
    """From ONNX bytes to a `BuiltEngine`, strongly or weakly typed."""

    def __init__(
        self,
        session: Session,
        onnx: bytes,
        recipe: Recipe,
        timing_cache: bytes,
        phases: Phases,
    ) -> None:
        self.session, self.onnx, self.recipe = session, onnx, recipe
        self.timing_cache, self.phases = timing_cache, phases
        self.library, self.api = session.library, session.library.api
        self.parsed: dict[str, int] | None = None

    def run(self, *, strong: bool) -> BuiltEngine:
        session, api, library = self.session, self.api, self.library
        session.layers = None
        try:
            builder = api.Builder(session.logger)
        except TypeError:  # the library's factory gave nothing
            raise session.error(f"{library.name} has no builder here") from None
        network = builder.create_network(network_flags(library, strong=strong))
        parser = api.OnnxParser(network, session.logger)
        if not parser.parse(self.onnx):
            what = f"{library.name} does not read the ONNX file"
            raise session.error(what, parser_errors(parser))
        session.check()
        check_interface(network, api)
        counts, nodes = convolutions_of(network, api)
        if strong:
            check_precision(counts, self.recipe.precision, what="the ONNX file")
            self.parsed = counts
        config = self._configure(builder, network, strong=strong)
        plan = builder.build_serialized_network(network, config)
        session.check()
        if plan is None:
            raise session.error(f"{library.name} built no engine", remedy=self._remedy())
        content = bytes(plan)
        layers, reason = self._layers(content)
        precision, reason = self._observe(layers, reason, nodes, strong=strong)
        return BuiltEngine(
            plan=content,
            typing="strong" if strong else "weak",
            convolutions=self.parsed or counts,
            precision=precision,
            reason=reason,
            layers=tuple(layers),
            timing_cache=self._new_timing_cache(config),
        )

    def _configure(self, builder: Any, network: Any, *, strong: bool) -> Any:
        api, recipe = self.api, self.recipe
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for tensor in map(network.get_input, range(network.num_inputs)):
            profile.set_shape(tensor.name, *_shapes(tensor, recipe))
        if config.add_optimization_profile(profile) < 0:
            raise self.session.error(f"{self.library.name} refuses batches of {recipe.batches}")
        if recipe.workspace_mb is not None:
            limit = recipe.workspace_mb * 10**6
            config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, limit)
        if recipe.opt_level is not None:
            config.builder_optimization_level = recipe.opt_level
        config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
        config.clear_flag(api.BuilderFlag.TF32)  # fp32 means fp32
        if recipe.version_compatible:
            config.set_flag(api.BuilderFlag.VERSION_COMPATIBLE)
        if recipe.refit:
            config.set_flag(api.BuilderFlag.REFIT)
        if not strong:
            set_weak_precision(self.library, config, recipe.precision)
        self._set_timing_cache(config)
        config.progress_monitor = make_monitor(api, self.session, self.phases)
        return config

    def _set_timing_cache(self, config: Any) -> None:
        if not self.library.times_kernels:
            return
        for content in dict.fromkeys((self.timing_cache, b"")):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return
            self.session.write("WARNING", "the timing cache does not fit this device: dropped")
            self.session.forget()

    def _new_timing_cache(self, config: Any) -> bytes:
        cache = config.get_timing_cache() if self.library.times_kernels else None
        return b"" if cache is None else bytes(cache.serialize())

    def _remedy(self) -> str:
        asked = {"refit": self.recipe.refit, "version-compatible": self.recipe.version_compatible}
        names = " and ".join(name for name, wanted in asked.items() if wanted)
        if names and self.library.format == "trt-rtx":
            return f"{names} engines need a GPU and the whole of the library: try without"
        return f"try without {names}" if names else ""

    def _observe(
        self, layers: list[Layer], reason: str, nodes: set[str], *, strong: bool
    ) -> tuple[str | None, str]:
        """The engine's precision, or None and why; `FallbackError` if it is not as asked.

        reason: why there are no layers.
        """
        if not reason:
            counts = count_convolutions(layers, nodes) or count_convolutions(layers)
            precision = self.recipe.precision
            expected = sum((self.parsed or {}).values())
            unread = counts.pop("unknown", 0) if strong else 0
            if strong and sum(counts.values()) + unread < expected / 2:  # some merge, not most
                unread = expected - sum(counts.values())
            if unread:
                # A strongly typed builder keeps to the types: no proof, but no suspicion either.
                reason = f"the library does not tell what {unread} convolutions compute in"
                counts[precision] = counts.get(precision, 0) + unread
            check_precision(counts, precision, parsed=self.parsed, what="the engine")
            if not reason:
                return precision, ""
        self.session.write("WARNING", f"precision not read: {reason}")
        return None, reason

    def _layers(self, plan: bytes) -> tuple[list[Layer], str]:
        """The engine's layers, or why they could not be read."""
        from oat_edge.runtime.cuda import gpu

        reasons = []
        try:
            if self.session.layers is not None:
                return layers_from_log(self.session.layers), ""
        except BuildError as error:
            reasons.append(str(error))
        try:
            gpu()  # deserialising without a driver has been seen to crash the process
            return layers_from_json(self._inspect(plan)), ""
        except (BuildError, DependencyError) as error:
            return [], "; ".join([*reasons, str(error)])

    def _inspect(self, plan: bytes) -> str:
        runtime = self.api.Runtime(self.session.logger)
        runtime.engine_host_code_allowed = self.recipe.version_compatible
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.session.error(f"{self.library.name} does not load the engine it built")
        # With a dynamic batch the inspector names types only for the shapes of a context.
        context = engine.create_execution_context()
        if context is None:
            raise self.session.error(f"{self.library.name} has no context for its engine")
        for name in INPUTS:
            if any(engine.get_tensor_name(i) == name for i in range(engine.num_io_tensors)):
                shape = tuple(engine.get_tensor_shape(name))[1:]
                context.set_input_shape(name, (self.recipe.batches[1], *shape))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(self.api.LayerInformationFormat.JSON))


def _shapes(tensor: Any, recipe: Recipe) -> list[tuple[int, ...]]:
    return [(batch, *tuple(tensor.shape)[1:]) for batch in recipe.batches]
