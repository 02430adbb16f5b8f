"""Uploads of every task, ours among them after a download, and the programs that are none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.optimization.failures import BadModel
from services.optimization.uploads import allowed_files
from services.optimization.uploads.inspection import inspect_folder
from services.optimization.uploads.parsing import parse_folder  # in this process: the same code, without the child's start
from services.repository.manifest import Signature, Task
from tests.applied import apply
from tests.models import (
    causal_lm,
    causal_lm_signature,
    digits_resnet,
    digits_resnet_signature,
    digits_vit,
    digits_vit_signature,
    token_classifier,
    token_classifier_signature,
)

Build = Callable[[Path], Path]
MODELS: dict[str, tuple[Build, Signature]] = {
    "resnet": (digits_resnet, digits_resnet_signature()),
    "vit": (digits_vit, digits_vit_signature()),
    "tags": (token_classifier, token_classifier_signature()),
    "words": (causal_lm, causal_lm_signature()),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Signature]:
    build, signature = MODELS[request.param]
    return build(tmp_path / "model"), signature


def change(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def test_every_task_is_read_off_its_folder(model: tuple[Path, Signature]) -> None:
    folder, signature = model
    assert parse_folder(folder, None) == signature


def test_the_child_reads_images_within_its_limits(tmp_path: Path) -> None:
    assert inspect_folder(digits_resnet(tmp_path / "model")) == digits_resnet_signature()


def test_an_exported_model_comes_back_as_what_it_was(model: tuple[Path, Signature], tmp_path: Path) -> None:
    onnx, outcome = apply("export_onnx", *model, tmp_path / "onnx")
    assert parse_folder(onnx, None) == outcome.signature


@pytest.mark.parametrize("technique", ["bf16", "fp16"])
def test_a_cast_model_comes_back_as_what_it_was(model: tuple[Path, Signature], tmp_path: Path, technique: str) -> None:
    cast, outcome = apply(technique, *model, tmp_path / "cast")
    assert parse_folder(cast, None) == outcome.signature


@pytest.mark.parametrize(("technique", "program"), [("torchscript", "model.ts"), ("openvino", r"model\.(bin|xml)")])
def test_a_downloaded_program_is_refused(tmp_path: Path, technique: str, program: str) -> None:
    folder, _ = apply(technique, digits_resnet(tmp_path / "model"), digits_resnet_signature(), tmp_path / technique)
    with pytest.raises(BadModel, match=rf"^{program}: files of this kind may be programs, which are made by jobs alone"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["README.md", "model.onnx", "tokenizer.json", "model.safetensors"])
def test_a_program_under_another_name_is_refused(tmp_path: Path, name: str) -> None:
    source = digits_resnet(tmp_path / "model")
    folder, _ = apply("torchscript", source, digits_resnet_signature(), tmp_path / "script")
    shutil.copyfile(folder / "model.ts", source / name)
    with pytest.raises(BadModel, match=rf"^{name}: its content is a pickle, an archive or a program"):
        parse_folder(source, None)


@pytest.mark.parametrize("name", ["model.ts", "model.pt2", "model.xml", "model.bin", "Model.TS", "kernels/model.so"])
def test_names_of_programs(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadModel, match="may be programs"):
        allowed_files.check_tree(tmp_path)


@pytest.mark.parametrize(("size", "shape"), [({"height": 12, "width": 16}, (12, 16)), ({"shortest_edge": 12}, (-1, -1))])
def test_a_net_for_any_size_takes_what_preprocessing_makes(tmp_path: Path, size: dict[str, int], shape: tuple[int, int]) -> None:
    folder = digits_resnet(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    assert parse_folder(folder, None).inputs[0].shape == (-1, 1, *shape)


@pytest.mark.parametrize(
    ("build", "name", "values", "fault"),
    [
        (digits_resnet, "preprocessor_config.json", {"size": {"height": 10**6, "width": 8}}, "images of 1 channels"),
        (digits_resnet, "config.json", {"num_channels": "one"}, "images of one channels"),
        (digits_resnet, "config.json", {"hidden_sizes": [16, 10**9]}, "hidden_sizes is 1000000000"),
        (digits_resnet, "config.json", {"id2label": {str(index): "one" for index in range(1, 11)}}, "id2label does not name the 10"),
        (digits_vit, "config.json", {"image_size": 16}, "position_embeddings"),
        (causal_lm, "config.json", {"n_embd": 10**9}, "n_embd is 1000000000"),
        (causal_lm, "config.json", {"n_layer": 3}, "is missing"),
        (token_classifier, "config.json", {"architectures": ["BertForQuestionAnswering"]}, "name the task"),
    ],
)
def test_contents_are_judged(build: Build, name: str, values: dict[str, Any], fault: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "model")
    change(folder, name, **values)
    with pytest.raises(BadModel, match=fault):
        parse_folder(folder, None)


@pytest.mark.parametrize(
    ("build", "task", "fault"),
    [
        (digits_vit, Task.TENSOR, "texts or images, not named tensors"),
        (digits_vit, Task.CLASSIFICATION, r"tokenizer\.json: missing"),
        (causal_lm, Task.IMAGE_CLASSIFICATION, "config.json or"),
    ],
)
def test_a_task_that_is_not_the_model_s(build: Build, task: Task, fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=fault):
        parse_folder(build(tmp_path / "model"), task)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"version": 9, "attributes": {}}',
        '{"version": 1, "attributes": {"../model": {"out_features": 3}}}',
        '{"version": 1, "attributes": {"classifier": {"forward": 3}}}',
        '{"version": 1, "attributes": {"classifier": {"out_features": 1e9}}}',
        '{"version": 1, "attributes": {"classifier": {"out_features": 1000000000000}}}',
        '{"version": 1, "attributes": {"nowhere": {"out_features": 3}}}',
    ],
)
def test_shapes_are_data_from_outside(tmp_path: Path, content: str) -> None:
    folder = digits_vit(tmp_path / "model")
    (folder / "shapes.json").write_text(content)
    with pytest.raises(BadModel, match=r"^shapes\.json: "):
        parse_folder(folder, None)


def test_per_token_logits_need_their_task_told(tmp_path: Path) -> None:
    onnx, outcome = apply("export_onnx", token_classifier(tmp_path / "model"), token_classifier_signature(), tmp_path / "onnx")
    change(onnx, "config.json", architectures=[])
    with pytest.raises(BadModel, match="name the task to choose"):
        parse_folder(onnx, None)
    assert parse_folder(onnx, Task.TOKEN_CLASSIFICATION) == outcome.signature
    assert parse_folder(onnx, Task.CAUSAL_LM).labels == ()


def test_an_image_graph_may_be_a_tensor_model(tmp_path: Path) -> None:
    onnx, _ = apply("export_onnx", digits_resnet(tmp_path / "model"), digits_resnet_signature(), tmp_path / "onnx")
    assert parse_folder(onnx, Task.TENSOR).task is Task.TENSOR
