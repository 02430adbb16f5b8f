"""The techniques. Reading this catalogue imports neither torch nor onnx: a technique imports them when it is applied."""

from services.optimization.techniques import bf16, dynamic_int8, export_onnx
from services.optimization.techniques.technique import Context, Outcome, Parameters, Technique

__all__ = ["TECHNIQUES", "Context", "Outcome", "Parameters", "Technique", "find"]

TECHNIQUES: tuple[Technique, ...] = (export_onnx.TECHNIQUE, dynamic_int8.TECHNIQUE, bf16.TECHNIQUE)


def find(name: str) -> Technique:
    """Raises KeyError whose text lists the known names."""
    for technique in TECHNIQUES:
        if technique.name == name:
            return technique
    raise KeyError(f"{name!r} is none of {', '.join(t.name for t in TECHNIQUES)}")
