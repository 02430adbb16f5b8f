"""The techniques. Reading this catalogue imports neither torch nor onnx: a technique imports them when it is applied."""

from services.optimization.techniques import (
    aotinductor,
    bf16,
    distill,
    dynamic_int8,
    export_onnx,
    fp16,
    int4_weight_only,
    openvino,
    prune,
    prune_weights,
    qat,
    static_int8,
    torch_dynamic_int8,
    torchscript,
)
from services.optimization.techniques.technique import Context, Family, Model, Outcome, Parameters, Technique

__all__ = ["TECHNIQUES", "Context", "Family", "Model", "Outcome", "Parameters", "Technique", "find"]

# In the order in which they are told: exports and compilers, then what is cheap, then what trains.
TECHNIQUES: tuple[Technique, ...] = (
    export_onnx.TECHNIQUE,
    torchscript.TECHNIQUE,
    aotinductor.TECHNIQUE,
    openvino.TECHNIQUE,
    dynamic_int8.TECHNIQUE,
    static_int8.TECHNIQUE,
    torch_dynamic_int8.TECHNIQUE,
    int4_weight_only.TECHNIQUE,
    fp16.TECHNIQUE,
    bf16.TECHNIQUE,
    qat.TECHNIQUE,
    distill.TECHNIQUE,
    prune.TECHNIQUE,
    prune_weights.TECHNIQUE,
)


def find(name: str) -> Technique:
    """Raises KeyError whose text lists the known names."""
    for technique in TECHNIQUES:
        if technique.name == name:
            return technique
    raise KeyError(f"{name!r} is none of {', '.join(t.name for t in TECHNIQUES)}")
