"""INT8 weights and activations with ranges fixed by calibration, as QuantizeLinear and DequantizeLinear pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.failures import Toolchain
from services.optimization.remembered import Arrays
from services.optimization.rows import Rows, prepare
from services.optimization.techniques import sensitivity
from services.optimization.techniques.quantization import calibration, graph
from services.optimization.techniques.quantization.findings import Findings
from services.optimization.techniques.quantization.graph import Floats
from services.optimization.techniques.quantization.parameters import Method
from services.optimization.techniques.quantization.search import (
    FULL_RANGE,
    REDUCED_RANGE,
    SENSITIVITY_EXAMPLES,
    Search,
    check_examples,
    check_layers,
)
from services.optimization.techniques.technique import Context, Outcome

if TYPE_CHECKING:
    from services.optimization.techniques.static_int8 import StaticInt8Parameters

# A transformer's softmax, layer norms and residual sums collapse in 8 bits; the operators between convolutions do not,
# and a convolution that must leave INT8 for each of them gains nothing.
CONVOLUTIONAL = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
TRANSFORMER = ("MatMul",)
MIN_OPSET = 13  # the first with a scale per channel


class StaticStrategy:
    name = "static_int8"

    def __init__(self, context: Context, parameters: "StaticInt8Parameters") -> None:
        """Raises Toolchain for operator sets that cannot be raised to MIN_OPSET."""
        self._context = context
        self._parameters = parameters
        convolutional = graph.is_convolutional(graph.prepare(context.source, split_gemm=False))
        self._model = graph.raise_opset(graph.prepare(context.source, split_gemm=not convolutional), MIN_OPSET)
        self._prepared = context.scratch / "prepared.onnx"
        onnx.save(self._model, str(self._prepared))
        self._layers = graph.layers(self._model, ("Conv", "Gemm", "MatMul") if convolutional else TRANSFORMER)
        self.layers: Sequence[str] = [layer.name for layer in self._layers]
        self.tables: Sequence[str] = graph.tables(self._model) if parameters.quantize_embeddings and not convolutional else []
        self._open_ended = [] if convolutional else list(TRANSFORMER)
        self.op_types = CONVOLUTIONAL if convolutional else (*TRANSFORMER, "Gather")
        self._ranges: calibration.Ranges = {}
        self._cache = context.scratch / "ranges.json"
        self.findings = Findings(context, self._prepared)

    def calibrate(self) -> None:
        """Raises Toolchain."""
        arrays = self.findings.recall("ranges", self._method, self._collected)
        found = calibration.decode(arrays, self._parameters.calibration)
        self._ranges = calibration.ranges(found)
        calibration.save(found, self._cache)

    @property
    def _method(self) -> dict[str, Any]:
        method = self._parameters.calibration
        percentile = self._parameters.percentile if method is Method.PERCENTILE else None
        return {"op_types": list(self.op_types), "method": method.value, "percentile": percentile}

    def _collected(self) -> Arrays:
        method, percentile = self._parameters.calibration, self._parameters.percentile
        rows = self._rows(len(self._context.calibration))
        return calibration.encode(calibration.collect(self._prepared, self.op_types, rows, self._context.scratch, method, percentile))

    @property
    def shaped_by(self) -> Mapping[str, Any]:
        return {"technique": self.name, "per_channel": self._parameters.per_channel, "tables": list(self.tables), **self._method}

    def _rows(self, count: int) -> Rows:
        examples = self._context.calibration.take(range(min(count, len(self._context.calibration))))
        return prepare(self._context.source, self._context.signature, examples, self._context.remembered)

    def quantize(self, path: Path, excluded: Sequence[str], reduce_range: bool) -> None:
        try:
            quantize_static(
                self._prepared,
                path,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(self.op_types),
                per_channel=self._parameters.per_channel,
                reduce_range=reduce_range,
                # Signed activations measured ten times slower here, QUInt8 weights half as fast.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*excluded, *self._unwanted_tables()],
                calibrate_method=calibration.LIBRARY_METHODS[self._parameters.calibration],
                calibration_cache_path=self._cache,
                # A transformer's sums stay in FP32, as in dynamic quantization: their ranges cost accuracy and no kernel needs them.
                extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": self._open_ended},
            )
        except Exception as error:  # the library raises bare classes of every kind
            raise Toolchain(f"{self.name}: {error}") from error

    def _unwanted_tables(self) -> list[str]:
        """Every Gather that is no wanted table: shapes and indices are gathered, too."""
        wanted = set(self.tables)
        return [node.name for node in self._model.graph.node if node.op_type == "Gather" and node.name not in wanted]

    def sensitivities(self, reduce_range: bool) -> dict[str, float]:
        levels = REDUCED_RANGE if reduce_range else FULL_RANGE

        def measure() -> Mapping[str, float]:
            return sensitivity.measure(
                self._model,
                self._layers,
                list(calibration.unpadded(self._rows(SENSITIVITY_EXAMPLES))),
                self._context.threads,
                levels=levels,
                per_channel=self._parameters.per_channel,
                quantize=self._quantize_activation,
            )

        return self.findings.errors(self.layers, {**self.shaped_by, "levels": levels}, measure)

    def _quantize_activation(self, tensor: str, values: Floats) -> Floats:
        low, high = self._ranges[tensor]
        return sensitivity.quantize_between(values, low, high)


def quantize(context: Context, parameters: "StaticInt8Parameters") -> Outcome:
    """Raises UnsupportedOperator, NotEnoughData or Toolchain."""
    check_examples("static_int8", len(context.calibration), "ranges that stand for the data need")
    if parameters.reduce_range is None and parameters.target_fidelity is None:  # nothing is measured that could decide
        parameters = parameters.model_copy(update={"reduce_range": not has_int8_dot(cpu_features())})
    strategy = StaticStrategy(context, parameters)
    check_layers(strategy, "Conv, MatMul or Gemm by a constant weight")
    context.progress(0.05, f"ranges of activations by {parameters.calibration}")
    strategy.calibrate()
    outcome = Search(context, parameters, strategy).run()
    told = {"calibration": str(parameters.calibration), "calibration_examples": len(context.calibration)}
    return Outcome(outcome.signature, {**outcome.notes, **told, "quantized_operators": list(strategy.op_types)})
