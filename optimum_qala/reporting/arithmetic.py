"""How fast this machine multiplies 8-bit matrices at best: what the speed of a model is compared with."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from optimum_qala._compat import require
from optimum_qala.inference.graph import PRECISION_KEY, THREADS_KEY


__all__ = ["Peak", "measure_int8_peak"]

# Rows, inner and outer columns. Large enough that quantizing the input costs nothing beside the product, and small
# enough to stay in caches: which of them is best depends on the machine.
SHAPES = ((512, 1024, 1024), (1024, 1024, 4096), (2048, 2048, 2048))
REPEATS = 10


@dataclass(frozen=True)
class Peak:
    """The fastest product that was found.

    Args:
        gmacs_per_s: Billions of multiply-accumulate operations per second.
        shape: Rows, inner and outer columns of the product.
        arithmetic: What OpenVINO says that it ran in, for example "u8" or "i8".
        threads: Threads that it ran on.
    """

    gmacs_per_s: float
    shape: tuple[int, int, int]
    arithmetic: str
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def measure_int8_peak(
    threads: int | None = None,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    repeats: int = REPEATS,
) -> Peak:
    """Time quantized matrix products in OpenVINO, as a linear layer of an int8 model is one.

    Args:
        threads: Threads to run on; as many as OpenVINO chooses if None.
        shapes: Products to try.
        repeats: Runs of each. The fastest counts: what slows a run down is not the product.

    Returns:
        The fastest one.

    Raises:
        MissingExtraError: If OpenVINO is not installed.
    """
    require("openvino", "measuring the peak of int8")
    peaks = [_measure(shape, threads, repeats) for shape in shapes]
    return max(peaks, key=lambda peak: peak.gmacs_per_s)


def _measure(shape: tuple[int, int, int], threads: int | None, repeats: int) -> Peak:
    from optimum.intel.openvino.modeling_base import core

    rows, inner, _ = shape
    settings: dict[str, Any] = {PRECISION_KEY: "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings[THREADS_KEY] = threads
    compiled = core.compile_model(_quantized_product(*shape), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = np.random.default_rng(0).uniform(-1.0, 1.0, (rows, inner)).astype(np.float32)
    fastest = float("inf")
    for _ in range(1 + repeats):  # the first one prepares the product
        began = time.perf_counter()
        request.infer([inputs], share_inputs=True, share_outputs=True)
        fastest = min(fastest, time.perf_counter() - began)
    return Peak(
        gmacs_per_s=np.prod(shape, dtype=float).item() / fastest / 1e9,
        shape=shape,
        arithmetic=_arithmetic(compiled),
        threads=int(compiled.get_property(THREADS_KEY)),
    )


def _quantized_product(rows: int, inner: int, outer: int) -> Any:
    """Build a linear layer as NNCF writes it: 8-bit weights and a quantized input."""
    import openvino
    from openvino import opset13 as ops

    weights = np.random.default_rng(1).integers(-127, 128, (outer, inner)).astype(np.int8)
    scales = np.full((outer, 1), 1.0 / 127, dtype=np.float32)
    parameter = ops.parameter([rows, inner], np.float32, name="input")
    low, high = np.float32(-1.0), np.float32(127 / 128)
    quantized = ops.fake_quantize(parameter, low, high, low, high, levels=256)
    restored = ops.multiply(ops.convert(ops.constant(weights), np.float32), ops.constant(scales))
    product = ops.matmul(quantized, restored, transpose_a=False, transpose_b=True)
    return openvino.Model([product], [parameter], "int8_product")


def _arithmetic(compiled: Any) -> str:
    """Ask the compiled graph what its product runs in."""
    for operation in compiled.get_runtime_model().get_ops():
        info = operation.get_rt_info()
        if str(info["layerType"].astype(str) if "layerType" in info else "") in ("FullyConnected", "MatMul"):
            return str(info["runtimePrecision"].astype(str))
    return "unknown"
