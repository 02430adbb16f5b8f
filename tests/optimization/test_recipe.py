import subprocess
import sys

import pytest
from pydantic import ValidationError

from services.optimization.recipe import Gates, Kinds, Recipe, Step, default_recipes, validate_recipe, validate_recipes
from services.optimization.techniques import TECHNIQUES, find
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import minilm_signature

SIGNATURE = minilm_signature()


def recipe(*steps: Step, name: str = "r") -> Recipe:
    return Recipe(name=name, steps=steps)


def test_formats_chain() -> None:
    chained = recipe(Step(technique="bf16"), Step(technique="export_onnx"), Step(technique="dynamic_int8"))
    assert validate_recipe(chained, SIGNATURE) is Format.ONNX


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (Step(technique="magic"), r"^recipe\.steps\[1\]\.technique: 'magic' is none of "),
        (Step(technique="bf16"), r"^recipe\.steps\[1\]\.technique: bf16 takes a model in the format huggingface"),
        (Step(technique="dynamic_int8", parameters={"per_channel": "often"}), r"^recipe\.steps\[1\]\.parameters\.per_channel: "),
        (Step(technique="dynamic_int8", parameters={"temperature": 1}), r"^recipe\.steps\[1\]\.parameters\.temperature: "),
        (Step(technique="dynamic_int8", parameters={"target_fidelity": float("nan")}), r"parameters\.target_fidelity: "),
        (Step(technique="dynamic_int8", parameters={"max_excluded_share": 1.5}), r"parameters\.max_excluded_share: "),
    ],
)
def test_fault_names_its_field(step: Step, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        validate_recipe(recipe(Step(technique="export_onnx"), step), SIGNATURE)


def test_calibration_is_asked_for_before_the_job_runs() -> None:
    recipes = [recipe(Step(technique="export_onnx"), Step(technique="dynamic_int8"))]
    with pytest.raises(ValueError, match=r"^recipes\[0\]\.steps\[1\]\.technique: .*calibration examples"):
        validate_recipes(recipes, SIGNATURE, Kinds(calibration=False, training=False))
    validate_recipes(recipes, SIGNATURE, Kinds(calibration=False, training=True))  # which stands in for it


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match=r"^recipes\[1\]\.name: 'r'"):
        validate_recipes([recipe(Step(technique="bf16")), recipe(Step(technique="export_onnx"))], SIGNATURE)


@pytest.mark.parametrize("calibrated", [True, False])
def test_defaults_are_valid(calibrated: bool) -> None:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    onnx_tensors = Signature(task=Task.TENSOR, format=Format.ONNX, inputs=(tensor,), outputs=(tensor,))
    for signature in (SIGNATURE, SIGNATURE.model_copy(update={"format": Format.ONNX}), onnx_tensors):
        kinds = Kinds(calibration=calibrated, training=False)
        recipes = default_recipes(signature, kinds)
        validate_recipes(recipes, signature, kinds)
        assert recipes


@pytest.mark.parametrize("gates", [{"min_fidelity": 0}, {"min_fidelity": 1.01}, {"min_gain": -1}, {"min_examples": 0}, {"unknown": 1}])
def test_gates_refuse_nonsense(gates: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Gates.model_validate(gates)


def test_catalogue_is_complete_and_light() -> None:
    for technique in TECHNIQUES:
        assert technique.summary
    code = (
        "import sys, services.optimization.techniques as t; [x.hardware_note() for x in t.TECHNIQUES]; "
        "sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hardware_notes_follow_the_processor() -> None:
    assert "emulates" in find("bf16").hardware_note(frozenset({"avx2"}))
    assert find("bf16").hardware_note(frozenset({"amx_bf16"})) == ""
    assert "8-bit" in find("dynamic_int8").hardware_note(frozenset({"avx2"}))
    assert find("dynamic_int8").hardware_note(frozenset({"avx512_vnni"})) == ""
