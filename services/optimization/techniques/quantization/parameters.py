"""The parameters that the INT8 techniques share."""

from enum import StrEnum

from pydantic import Field

from services.optimization.environment import has_int8_dot
from services.optimization.techniques.technique import Parameters


class Method(StrEnum):
    """How the range of an activation is taken from what flowed through it."""

    MINMAX = "minmax"  # from the smallest to the largest value
    ENTROPY = "entropy"  # the clipping that loses least information (KL divergence of histograms)
    PERCENTILE = "percentile"  # the given share of all values


class Int8Parameters(Parameters):
    per_channel: bool = Field(True, description="one weight scale per output channel; per tensor loses much accuracy for no speed")
    reduce_range: bool | None = Field(
        None,
        description="7-bit weights, against saturation on processors without 8-bit dot products; "
        "null: both are measured on such a processor, 8 bits are taken on others",
    )
    target_fidelity: float | None = Field(
        0.993, gt=0, le=1, description="on the calibration examples; the worst layers stay in FP32 until it is reached; null: no search"
    )
    max_excluded_share: float = Field(0.25, ge=0, le=1, description="largest share of the layers that the search may keep in FP32")
    exclude: tuple[str, ...] = Field((), max_length=64, description="glob patterns of node names that stay in FP32 in any case")
    quantize_embeddings: bool = Field(True, description="tables that are looked up, too: size, at a little accuracy")


def note_int8_hardware(features: frozenset[str]) -> str:
    if has_int8_dot(features):
        return ""
    return "This processor has no 8-bit dot product (VNNI, AMX): INT8 gains less speed than its size suggests."
