"""What quantization-aware training quantizes and how, decided once on the graph before the training, and written at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from torch import nn

from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.failures import UnsupportedOperator
from services.optimization.techniques.quantization import dynamic, graph, matching
from services.optimization.techniques.quantization.matching import Place
from services.optimization.techniques.quantization.qdq import Writer
from services.optimization.techniques.quantization.search import FULL_RANGE, REDUCED_RANGE
from services.optimization.techniques.quantization.simulation import Ranges, Scheme

if TYPE_CHECKING:
    from services.optimization.techniques.qat import QatParameters


@dataclass(frozen=True)
class Plan:
    """`tables` are Gather nodes and their embeddings."""

    scheme: Scheme
    op_types: Sequence[str]
    places: Sequence[Place]
    tables: Mapping[str, str]
    split_gemm: bool

    @property
    def reduces_range(self) -> bool:
        return self.scheme.levels == REDUCED_RANGE

    def write(self, exported: Path, target: Path, ranges: Ranges, scratch: Path) -> None:
        """Quantizes an export of the same module, whatever its weights are by now, into `target`. Raises Toolchain."""
        model = graph.prepare(exported, split_gemm=self.split_gemm)
        if self.scheme.static:
            writer = Writer(model, self.scheme)
            layers = {layer.name: layer for layer in graph.layers(model, self.op_types)}
            writer.quantize([replace(place, layer=layers[place.layer.name]) for place in self.places], ranges)
            writer.quantize_tables(list(self.tables))
            onnx.save(writer.finish(), str(target / graph.MODEL))
        else:
            prepared = scratch / f"{target.name}-prepared.onnx"
            onnx.save(model, str(prepared))
            nodes = [place.layer.name for place in self.places] + list(self.tables)
            dynamic.write(prepared, target / graph.MODEL, nodes, per_channel=self.scheme.per_channel, reduce_range=self.reduces_range)


def _levels(reduce_range: bool | None) -> int:
    reduced = not has_int8_dot(cpu_features()) if reduce_range is None else reduce_range
    return REDUCED_RANGE if reduced else FULL_RANGE


def make(exported: Path, module: nn.Module, parameters: "QatParameters") -> Plan:
    """Raises UnsupportedOperator where there is nothing to quantize, or not by the scheme asked for."""
    convolutional = graph.is_convolutional(graph.prepare(exported, split_gemm=False))
    static = convolutional if parameters.scheme is None else parameters.scheme == "static"
    if convolutional and not static:
        raise UnsupportedOperator("qat: the dynamic scheme quantizes no convolutions, which hold most of this model's weights")
    # Gemm has a static INT8 kernel; dynamic quantization, and a transformer's few, go by MatMul.
    model = graph.prepare(exported, split_gemm=not convolutional)
    op_types = ("Conv", "Gemm", "MatMul") if convolutional else ("MatMul",)
    return Plan(
        scheme=Scheme(static, _levels(parameters.reduce_range), parameters.per_channel),
        op_types=op_types,
        places=matching.places(model, module, op_types, parameters.exclude),
        tables=matching.tables(model, module) if parameters.quantize_embeddings else {},
        split_gemm=not convolutional,
    )
