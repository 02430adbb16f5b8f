"""Ranges of activations from examples, by onnxruntime's calibrators."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    CalibrationMethod,
    TensorData,
    TensorsData,
    create_calibrator,
    save_tensors_data,
)

from services.optimization.failures import Toolchain
from services.optimization.remembered import Arrays
from services.optimization.rows import Batch, Rows
from services.optimization.techniques.quantization.parameters import Method

BATCH_ROWS = 8
Ranges = Mapping[str, tuple[float, float]]


LIBRARY_METHODS = {
    Method.MINMAX: CalibrationMethod.MinMax,
    Method.ENTROPY: CalibrationMethod.Entropy,
    Method.PERCENTILE: CalibrationMethod.Percentile,
}


class _One(CalibrationDataReader):  # type: ignore[misc]  # the library publishes no types
    """A reader of a single batch."""

    def __init__(self, batch: Batch) -> None:
        self._left = [dict(batch)]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def unpadded(rows: Rows, batch_rows: int = BATCH_ROWS) -> Iterator[Batch]:
    """Batches of rows of equal length: padding, whose activations no answer depends on, would widen the ranges."""
    lengths = rows.lengths
    for length in np.unique(lengths):
        positions = [int(position) for position in np.flatnonzero(lengths == length)]
        for start in range(0, len(positions), batch_rows):
            yield rows.batch(positions[start : start + batch_rows])


def _options(method: Method, percentile: float) -> dict[str, Any]:
    if method is Method.PERCENTILE:
        # The library's default is symmetric, which gives half the levels of an activation after GELU or ReLU to nothing.
        return {"percentile": percentile, "symmetric": False}
    return {}


def collect(model: Path, op_types: Sequence[str], rows: Rows, scratch: Path, method: Method, percentile: float) -> TensorsData:
    """The ranges of the tensors around nodes of `op_types`. Raises Toolchain.

    The calibrators stack what one call gives them, so batches of several shapes are handed over one by one.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints
            calibrator = create_calibrator(
                model, list(op_types), str(scratch / "augmented.onnx"), LIBRARY_METHODS[method], extra_options=_options(method, percentile)
            )
            for batch in unpadded(rows):
                calibrator.collect_data(_One(batch))
            return calibrator.compute_data()
    except Exception as error:  # the library raises bare classes of every kind
        raise Toolchain(f"calibration: {error}") from error


def ranges(data: TensorsData) -> Ranges:
    """(low, high) by tensor."""
    return {name: (float(np.min(found.range_value[0])), float(np.max(found.range_value[1]))) for name, found in data.items()}


_ATTRIBUTES = ("lowest", "highest", "hist", "bins")  # the last two of histograms alone


def encode(data: TensorsData) -> Arrays:
    """Named after the tensor's place, the attribute and the tensor."""
    return {
        f"{place} {attribute} {name}": np.asarray(getattr(found, attribute))
        for place, (name, found) in enumerate(data.items())
        for attribute in _ATTRIBUTES
        if hasattr(found, attribute)
    }


def decode(arrays: Arrays, method: Method) -> TensorsData:
    """What `encode` was given."""
    tensors: defaultdict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
    for key, array in arrays.items():
        place, attribute, name = key.split(" ", 2)
        tensors[int(place), name][attribute] = array
    return TensorsData(LIBRARY_METHODS[method], {name: TensorData(**found) for (_, name), found in sorted(tensors.items())})


def save(data: TensorsData, path: Path) -> None:
    """As quantize_static reads it, so that every trial of a search starts from one calibration."""
    save_tensors_data(data, path)
