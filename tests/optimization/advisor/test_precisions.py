"""Which precisions qualify: by what was measured, and never where the processor emulates them."""

from collections.abc import Sequence

import pytest

from services.optimization.advisor.precisions import Finding, Limits, Precision, findings, is_worth_trying, notes, precision_of
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.scenarios import Targets
from services.optimization.recipe import Objective, Step
from services.optimization.report import Interval

SPEED, SIZE = Objective.THROUGHPUT, Objective.SIZE
PLAIN, MODERN = frozenset({"avx2"}), frozenset({"avx512_fp16", "avx512_bf16", "avx512_vnni"})
BYTES = 1000


def rung(name: str, *techniques: str) -> Rung:
    return Rung(name, tuple(Step(technique=technique) for technique in techniques), (), 1.0, is_precision=True)


ONNX, FP16, BF16 = rung("onnx", "export_onnx"), rung("onnx-fp16", "export_onnx", "fp16"), rung("bf16", "bf16")
INT8, STATIC = rung("onnx-int8", "export_onnx", "dynamic_int8"), rung("onnx-int8-static", "export_onnx", "static_int8")
INT4 = rung("onnx-int4", "export_onnx", "int4_weight_only")
ALL = (ONNX, FP16, BF16, INT8, STATIC, INT4)


def about(value: float, width: float = 0.1) -> Interval:
    return Interval(estimate=value, low=value - width, high=value + width)


def tried(of: Rung, speedup: float, size_ratio: float = 1.0, *, accepted: bool = True) -> Trial:
    return Trial(of, about(speedup), size_ratio, about(0.0, 0.001), accepted, "good" if accepted else "a loss of 0.2: 0.01 is allowed")


def found(
    trials: Sequence[Trial] = (),
    left: Sequence[Rung] = (),
    objective: Objective = SPEED,
    features: frozenset[str] = MODERN,
    why: str = "the time was over",
    **targets: float,
) -> dict[Precision, Finding]:
    limits = Limits(objective, Targets.model_validate(targets), BYTES)
    answered = findings(trials, left, limits, features, why)
    assert [each.precision for each in answered] == list(Precision)
    return {each.precision: each for each in answered}


def test_every_recipe_has_its_precision() -> None:
    assert [precision_of(each.steps) for each in ALL] == ["FP32", "FP16", "BF16", "INT8", "INT8", "INT4"]


def test_what_was_measured_within_every_limit_qualifies() -> None:
    answered = found([tried(INT8, 2.5, 4.0)], min_speedup=2.0, max_size_bytes=BYTES // 2, max_loss=0.01)[Precision.INT8]
    assert (answered.qualifies, answered.recipe, answered.size_ratio, answered.speedup) == (True, "onnx-int8", 4.0, about(2.5))
    assert answered.loss is not None


@pytest.mark.parametrize(
    ("trial", "limit"),
    [
        (tried(INT8, 2.5, 1.9), "max_size_bytes"),
        (tried(INT8, 2.05, 4.0), "min_speedup"),  # by its lower bound: it is not surely fast enough
        (tried(INT8, 2.5, 4.0, accepted=False), "a loss of 0.2"),
    ],
)
def test_what_misses_one_limit_names_it(trial: Trial, limit: str) -> None:
    answered = found([trial], min_speedup=2.0, max_size_bytes=BYTES // 2)[Precision.INT8]
    assert not answered.qualifies
    assert limit in answered.reason
    assert ";" not in answered.reason


def test_what_misses_all_limits_names_all() -> None:
    answered = found([tried(INT8, 1.0, accepted=False)], min_speedup=2.0, min_served_speedup=3.0, max_size_bytes=BYTES // 2)
    for name in ("max_size_bytes", "min_speedup", "min_served_speedup", "accuracy"):
        assert name in answered[Precision.INT8].reason


def test_the_best_that_qualifies_stands_for_its_precision() -> None:
    fast_and_bad, slow_and_good = tried(STATIC, 4.0, 4.0, accepted=False), tried(INT8, 2.5, 3.9)
    assert found([fast_and_bad, slow_and_good])[Precision.INT8].recipe == "onnx-int8"
    fast, small = tried(STATIC, 4.0, 3.0), tried(INT8, 2.5, 3.9)
    assert found([fast, small])[Precision.INT8].recipe == "onnx-int8-static"
    assert found([fast, small], objective=SIZE)[Precision.INT8].recipe == "onnx-int8"


def test_fp32_is_the_original_until_its_exported_form_is_better() -> None:
    original = found()[Precision.FP32]
    assert (original.recipe, original.speedup, original.qualifies) == ("", about(1.0, 0.0), True)
    assert found([tried(ONNX, 1.4)])[Precision.FP32].recipe == "onnx"
    assert found([tried(ONNX, 1.4, accepted=False)])[Precision.FP32].recipe == ""
    assert "min_speedup" in found(min_speedup=2.0)[Precision.FP32].reason


def test_what_was_not_measured_says_why() -> None:
    assert "the time was over" in found(left=[INT4])[Precision.INT4].reason
    failed = found([Trial(INT4, reason="an operator is not supported")])[Precision.INT4]
    assert (failed.qualifies, failed.speedup) == (False, None)
    assert "an operator is not supported" in failed.reason
    assert "no recipe" in found()[Precision.INT4].reason


@pytest.mark.parametrize(("precision", "lacking"), [(Precision.FP16, "AVX512_FP16"), (Precision.BF16, "AVX512_BF16, AMX")])
def test_what_is_emulated_is_neither_tried_nor_recommended(precision: Precision, lacking: str) -> None:
    answered = found(features=PLAIN)[precision]
    assert not answered.qualifies
    assert f"emulates {precision}" in answered.reason
    assert lacking in answered.reason
    assert answered.reason in notes(SPEED, PLAIN)
    steps = {Precision.FP16: FP16, Precision.BF16: BF16}[precision].steps
    assert not is_worth_trying(steps, SPEED, PLAIN)
    assert is_worth_trying(steps, SPEED, MODERN)


def test_half_the_bytes_are_worth_trying_where_bytes_are_the_goal() -> None:
    assert is_worth_trying(FP16.steps, SIZE, PLAIN)
    answered = found([tried(FP16, 0.9, 2.0)], objective=SIZE, features=PLAIN, max_size_bytes=BYTES // 2)[Precision.FP16]
    assert answered.qualifies
    assert "computed in FP32" in answered.note


def test_a_processor_without_vnni_is_told_beside_int8() -> None:
    assert "VNNI" in found([tried(INT8, 2.0)], features=PLAIN)[Precision.INT8].note
    assert found([tried(INT8, 2.0)])[Precision.INT8].note == ""
    assert notes(SPEED, MODERN) == ()
