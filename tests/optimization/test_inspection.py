import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from services.optimization.failures import BadModel
from services.optimization.uploads import allowed_files, safetensors_header
from services.optimization.uploads.inspection import inspect_folder
from services.repository.manifest import Format, Task
from tests.models import MODEL_FILES, minilm, minilm_signature

Spoil = Callable[[Path], Any]


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """MiniLM as somebody would upload it; small files are copies, the weights are the test's to spoil."""
    return Path(shutil.copytree(minilm(), tmp_path / "upload"))


def write(name: str, content: bytes | str) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def merge(name: str, **values: object) -> Spoil:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def truncate(name: str, by: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def header(content: object, data: bytes = b"") -> bytes:
    text = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_packaged_model_is_read_whole(upload: Path) -> None:
    assert inspect_folder(upload, None) == minilm_signature()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (write("pytorch_model.bin", b"x"), r"^pytorch_model\.bin: "),
        (write("model.pt", b"x"), r"^model\.pt: "),
        (write("weights.PKL", b"x"), r"^weights\.PKL: "),
        (write("modeling_mine.py", b"print()"), r"^modeling_mine\.py: "),
        (write("surprise", b"x"), r"^surprise: a model has no file of this name"),
        (lambda folder: (folder / "vocab.txt").unlink() or (folder / "vocab.txt").symlink_to("/etc/hostname"), r"^vocab\.txt: .*links"),
        (lambda folder: os.link(folder / "vocab.txt", folder / "notes.txt"), r": a hard link"),
        (lambda folder: os.mkfifo(folder / "notes.txt"), r"^notes\.txt: neither"),
    ],
)
def test_names_and_links_are_refused_unopened(upload: Path, spoil: Spoil, fault: str) -> None:
    spoil(upload)
    with pytest.raises(BadModel, match=fault):
        allowed_files.check_tree(upload)


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\x03\x04archive", b"\x1f\x8bgzip", b"\x7fELF"])
def test_programs_are_refused_under_any_name(upload: Path, content: bytes) -> None:
    (upload / "README.md").write_bytes(content)
    with pytest.raises(BadModel, match=r"^README\.md: its content"):
        allowed_files.check_starts(upload)


def test_a_pickle_named_safetensors_is_refused(upload: Path) -> None:
    (upload / "model.safetensors").write_bytes(pickle.dumps({"a": list(range(100))}))
    with pytest.raises(BadModel, match=r"^model\.safetensors: its content"):
        allowed_files.check_starts(upload)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "truncated"),
        (header("{not json"), "not JSON"),
        (header("[" * 100_000), "not JSON"),
        (header([1]), "not a JSON object"),
        (header({}), "no tensor"),
        (header({"w": F32}, b"1234"), "4 bytes of data; its header describes 8"),
        (header({"w": F32}, b"123456789"), "9 bytes of data"),
        (header({"w": F32, "v": F32}, b"12345678"), "overlap"),
        (header({"w": F32 | {"data_offsets": [4, 12]}}, b"123456789012"), "gap"),
        (header({"w": F32 | {"shape": [3]}}, b"12345678"), "malformed"),
        (header({"w": F32 | {"shape": [-2]}}, b"12345678"), "malformed"),
        (header({"w": F32 | {"dtype": "PYTHON"}}, b"12345678"), "malformed"),
        (header('{"w": 1, "w": 2}'), "occurs twice"),
    ],
)
def test_broken_headers(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadModel, match=rf"^model\.safetensors: .*{fault}"):
        safetensors_header.tensors(path)


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"__metadata__": {"format": "pt"}, "w": F32}, b"12345678"))
    assert safetensors_header.tensors(path)["w"]["shape"] == [2]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (truncate("model.safetensors", 4), r"^model\.safetensors: "),
        (merge("config.json", auto_map={"AutoModel": "modeling.Mine"}), r"^config\.json: auto_map"),
        (merge("config.json", vocab_size=30000), r"^tokenizer\.json: .*vocabulary"),
        (merge("config.json", hidden_size=10**12), r"^config\.json: hidden_size"),
        (merge("config.json", architectures=["BertForQuestionAnswering"]), r"^config\.json: the architecture"),
        (merge("config.json", model_type="nosuchmodel"), r"^config\.json or "),
        (write("config.json", "{"), r"^config\.json: not JSON"),
        (write("tokenizer.json", "{}"), r"^tokenizer\.json: "),
        (write("modules.json", '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "2_Dense"}]'), r"^modules\.json: "),
        (write("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}'), r"^1_Pooling/config\.json: "),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"^tokenizer\.json: missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"neither model\.safetensors nor model\.onnx"),
    ],
)
def test_contents_are_judged(upload: Path, spoil: Spoil, fault: str) -> None:
    from services.optimization.uploads.parsing import parse_folder  # in this process: the same code, without the child's start

    if "architecture" in fault:
        (upload / "modules.json").unlink()
    spoil(upload)
    with pytest.raises(BadModel, match=fault):
        parse_folder(upload, None)


@pytest.mark.parametrize(
    ("layers", "width", "fault"), [(7, 1536, "is missing"), (5, 1536, "has no place for"), (6, 1024, r"shape \[.*asks for \[")]
)
def test_weights_that_contradict_the_config(upload: Path, layers: int, width: int, fault: str) -> None:
    from services.optimization.uploads.parsing import parse_folder

    merge("config.json", num_hidden_layers=layers, intermediate_size=width)(upload)
    with pytest.raises(BadModel, match=rf"^model\.safetensors: .*{fault}"):
        parse_folder(upload, None)


def test_the_child_reports_the_fault(tmp_path: Path) -> None:
    folder = tmp_path / "upload"
    folder.mkdir()
    for name in MODEL_FILES:
        if name != "model.safetensors":
            shutil.copyfile(minilm() / name, folder / name)
    (folder / "model.safetensors").write_bytes(header({"w": F32}, b"1234"))
    with pytest.raises(BadModel, match=r"^model\.safetensors: 4 bytes of data"):
        inspect_folder(folder, Task.EMBEDDING)


def onnx_upload(folder: Path, *, external: str = "", domain: str = "") -> Path:
    """y = x @ w, float [rows, 3] to [rows, 2]."""
    folder.mkdir()
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", 3), ("y", 2))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(folder / "model.onnx"))
    return folder


def test_onnx_without_a_tokenizer_is_a_tensor_model(tmp_path: Path) -> None:
    found = inspect_folder(onnx_upload(tmp_path / "upload"))
    assert (found.task, found.format) == (Task.TENSOR, Format.ONNX)
    assert [(spec.name, spec.datatype, spec.shape) for spec in (*found.inputs, *found.outputs)] == [
        ("x", "FP32", (-1, 3)),
        ("y", "FP32", (-1, 2)),
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [({"external": "../secret"}, "other files"), ({"external": "tokenizer.json"}, "other files"), ({"domain": "evil.org"}, "evil.org")],
)
def test_onnx_that_reaches_out_is_refused(tmp_path: Path, content: dict[str, str], fault: str) -> None:
    with pytest.raises(BadModel, match=rf"^model\.onnx: .*{fault}"):
        inspect_folder(onnx_upload(tmp_path / "upload", **content))


@pytest.mark.parametrize("content", [b"", b"\x08", b"not onnx at all", bytes(range(255, 191, -1))])
def test_onnx_garbage(tmp_path: Path, content: bytes) -> None:
    from services.optimization.uploads.parsing import parse_folder

    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BadModel, match=r"^model\.onnx: "):
        parse_folder(tmp_path, None)
