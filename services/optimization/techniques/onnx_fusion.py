"""Whole blocks of a transformer as single operators, found in the graph by onnxruntime's optimizer."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxruntime.transformers import optimizer

from services.optimization.failures import Toolchain

# By transformers' model_type; everything else that has attention is tried with the pattern of BERT, which most encoders follow.
_PATTERNS: Mapping[str, str] = {"gpt2": "gpt2", "vit": "vit", "deit": "vit", "swin": "swin", "bart": "bart", "gpt_neox": "gpt_neox"}
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")


def fuse(path: Path, fused: Path, config: Any) -> dict[str, int]:
    """Writes `fused`; answers how many operators of each kind it holds. Raises Toolchain when no attention was fused."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise Toolchain(f"export_onnx: optimize fuses attention, and a {config.model_type} has none")
    model = _optimized(path, _PATTERNS.get(config.model_type, "bert"), heads, config.hidden_size)
    counts = {name: count for name, count in model.get_fused_operator_statistics().items() if count}
    if not any(counts.get(name) for name in _ATTENTION):
        found = ", ".join(f"{name} x {count}" for name, count in counts.items()) or "nothing"
        raise Toolchain(f"export_onnx: optimize was asked for, and no attention pattern was found to fuse; fused: {found}")
    model.save_model_to_file(str(fused))
    return counts


def _optimized(path: Path, pattern: str, heads: int, hidden_size: int) -> Any:
    """By the pattern matchers alone: the engine fuses the rest, for the processor that it runs on, whenever it loads."""
    log = logging.getLogger("onnxruntime.transformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return optimizer.optimize_model(str(path), model_type=pattern, num_heads=heads, hidden_size=hidden_size, opt_level=0)
    except Exception as error:  # whatever its pattern matchers raise
        raise Toolchain(f"export_onnx: fusing failed: {type(error).__name__}: {error}") from error
    finally:
        log.setLevel(level)
