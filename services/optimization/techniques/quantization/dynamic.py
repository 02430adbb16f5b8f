"""INT8 weights, and activations quantized per tensor as they flow."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from services.optimization.failures import Toolchain
from services.optimization.rows import batches, prepare
from services.optimization.techniques import sensitivity
from services.optimization.techniques.quantization import graph
from services.optimization.techniques.quantization.findings import Findings
from services.optimization.techniques.quantization.parameters import Int8Parameters
from services.optimization.techniques.quantization.search import (
    FULL_RANGE,
    REDUCED_RANGE,
    SENSITIVITY_EXAMPLES,
    Search,
    check_examples,
    check_layers,
)
from services.optimization.techniques.technique import Context, Outcome

BATCH_ROWS = 8


def write(prepared: Path, target: Path, nodes: Iterable[str], *, per_channel: bool, reduce_range: bool) -> None:
    """Quantizes the named MatMul and Gather nodes of a prepared graph. Raises Toolchain."""
    try:
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,  # QUInt8 measured half as fast
            nodes_to_quantize=list(nodes),
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    except Exception as error:  # the library raises bare classes of every kind
        raise Toolchain(f"dynamic quantization: {error}") from error


class DynamicStrategy:
    name = "dynamic_int8"

    def __init__(self, context: Context, parameters: Int8Parameters) -> None:
        self._context = context
        self._parameters = parameters
        self._model = graph.prepare(context.source, split_gemm=True)
        self._prepared = context.scratch / "prepared.onnx"
        onnx.save(self._model, str(self._prepared))
        self._layers = graph.layers(self._model)
        self.layers: Sequence[str] = [layer.name for layer in self._layers]
        self.tables: Sequence[str] = graph.tables(self._model) if parameters.quantize_embeddings else []
        self.findings = Findings(context, self._prepared)

    @property
    def shaped_by(self) -> Mapping[str, Any]:
        return {"technique": self.name, "per_channel": self._parameters.per_channel, "tables": list(self.tables)}

    def quantize(self, path: Path, excluded: Sequence[str], reduce_range: bool) -> None:
        chosen = [name for name in self.layers if name not in set(excluded)] + list(self.tables)
        write(self._prepared, path, chosen, per_channel=self._parameters.per_channel, reduce_range=reduce_range)

    def sensitivities(self, reduce_range: bool) -> dict[str, float]:
        examples = self._context.calibration.take(range(min(SENSITIVITY_EXAMPLES, len(self._context.calibration))))
        rows = prepare(self._context.source, self._context.signature, examples, self._context.remembered)
        levels = REDUCED_RANGE if reduce_range else FULL_RANGE

        def measure() -> Mapping[str, float]:
            feeds = [batch for _, batch in batches(rows, BATCH_ROWS)]
            per_channel = self._parameters.per_channel
            return sensitivity.measure(self._model, self._layers, feeds, self._context.threads, levels=levels, per_channel=per_channel)

        return self.findings.errors(self.layers, {**self.shaped_by, "levels": levels}, measure)


def quantize(context: Context, parameters: Int8Parameters) -> Outcome:
    """Raises UnsupportedOperator, NotEnoughData or Toolchain."""
    strategy = DynamicStrategy(context, parameters)
    check_layers(strategy, "MatMul or Gemm by a constant matrix; static_int8 quantizes convolutions")
    if parameters.target_fidelity is not None:
        purpose = "null as target_fidelity quantizes without a search; the search needs"
        check_examples(strategy.name, len(context.calibration), purpose)
    return Search(context, parameters, strategy).run()
