"""From columns and inline texts to examples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.optimization.data import Data, check, check_disjoint, choose_columns, read
from services.optimization.examples import IGNORED, Examples
from services.optimization.failures import NotEnoughData
from services.optimization.rows import ArrayRows, TextRows, batches, prepare
from services.optimization.spec import DataSource
from services.repository.dataset_manifest import Column, ColumnKind, DatasetFormat
from services.repository.manifest import Format, Signature, Task, TensorSpec
from tests.models import classifier_signature, minilm, minilm_signature

CLASSES = classifier_signature()
TOKENS = CLASSES.model_copy(update={"task": Task.TOKEN_CLASSIFICATION, "labels": ("O", "NAME")})
PIXELS = Signature(
    task=Task.IMAGE_CLASSIFICATION,
    format=Format.ONNX,
    inputs=(TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
    labels=tuple("0123456789"),
)


def jsonl(path: Path, rows: Sequence[dict[str, Any]], **more: Any) -> Data:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(source=DataSource(dataset="d@1", **more), path=path, format=DatasetFormat.JSONL)


def test_labels_by_name_and_by_index(tmp_path: Path) -> None:
    named = read(jsonl(tmp_path / "a", [{"text": "one", "label": "scipy"}, {"text": "two", "label": "numpy"}]), CLASSES)
    indexed = read(jsonl(tmp_path / "b", [{"text": "one", "label": 1}, {"text": "two", "label": 0}]), CLASSES)
    assert named.texts == ("one", "two")
    assert named.labels is not None
    assert named.labels.tolist() == [1, 0]
    assert named.digest == indexed.digest


def test_the_first_rows_and_another_label_column(tmp_path: Path) -> None:
    rows = [{"content": f"t{n}", "owner": "torch"} for n in range(5)]
    found = read(jsonl(tmp_path / "a", rows, max_rows=3, label_column="owner"), CLASSES)
    assert (len(found), found.labels.tolist()) == (3, [3, 3, 3])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "a", "label": "nobody"}, "'nobody' is no label of the model; it has numpy"),
        ({"text": "a", "label": 9}, "label.0.: 9 is no label"),
        ({"prose": 1}, "no column 'text' of the kind text; there are prose"),
        ({"one": "a", "two": "b"}, "no column 'text'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, row: dict[str, Any], fault: str) -> None:
    with pytest.raises(NotEnoughData, match=fault):
        read(jsonl(tmp_path / "a", [row]), CLASSES)


def test_a_damaged_file_is_told_with_its_dataset(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a", [{"text": "a"}])
    (tmp_path / "a").write_text("{")
    with pytest.raises(NotEnoughData, match="d@1: "):
        read(data, CLASSES)


def test_words_keep_their_labels_at_their_first_token(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "multidimensionality", "of"], "labels": ["O", "NAME", "O"]}]
    examples = read(jsonl(tmp_path / "a", rows), TOKENS)
    found = prepare(minilm(), TOKENS, examples)
    assert isinstance(found, TextRows)
    assert found.labels is not None
    labels = found.labels[0].tolist()
    assert labels[:3] == [IGNORED, 0, 1]
    assert labels[3] == IGNORED  # the second piece of the long word
    assert labels[-2:] == [0, IGNORED]
    assert len(labels) == found.lengths[0] > 5


def test_words_and_labels_of_unequal_number(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match=r"labels\[0\]: 1 labels for 2 words"):
        read(jsonl(tmp_path / "a", [{"tokens": ["a", "b"], "labels": [0]}]), TOKENS)


def test_arrays_take_the_models_dtype_and_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 1, 8, 8)), label=np.array([1, 2, 3, 9]))
    data = Data(source=DataSource(dataset="d@1"), path=tmp_path / "a.npz", format=DatasetFormat.NPZ)
    found = read(data, PIXELS)
    assert found.arrays["pixel_values"].dtype == np.float32
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 3, 9]
    assert isinstance(prepare(tmp_path, PIXELS, found), ArrayRows)
    other = PIXELS.model_copy(update={"inputs": (TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 3, 8, 8)),)})
    with pytest.raises(NotEnoughData, match=r"rows of the shape \[1, 8, 8\]; the model takes \[3, 8, 8\]"):
        read(data, other)


def test_texts_are_checked_at_the_door() -> None:
    assert check(DataSource(texts=("a",), labels=("torch",)), None, CLASSES)
    assert not check(DataSource(texts=("a",)), None, CLASSES)
    with pytest.raises(ValueError, match="'nobody' is no label"):
        check(DataSource(texts=("a",), labels=("nobody",)), None, CLASSES)
    with pytest.raises(ValueError, match="takes a dataset"):
        check(DataSource(texts=("a",)), None, PIXELS)
    with pytest.raises(ValueError, match="2 labels for 1 texts"):
        DataSource(texts=("a",), labels=("a", "b"))


def test_a_label_column_must_exist_and_hold_labels() -> None:
    columns = [Column(name="text", kind=ColumnKind.TEXT), Column(name="score", kind=ColumnKind.NUMBER)]
    with pytest.raises(ValueError, match="no column 'owner'"):
        choose_columns(columns, CLASSES, "owner")
    with pytest.raises(ValueError, match="holds number"):
        choose_columns(columns, CLASSES, "score")
    assert choose_columns(columns, CLASSES, "").label == ""


def test_examples_split_into_all_of_themselves() -> None:
    examples = Examples(texts=tuple("abcdefgh"), labels=np.arange(8))
    most, few = examples.split(0.25, seed=0)
    assert (len(most), len(few)) == (6, 2)
    assert sorted(most.texts + few.texts) == list("abcdefgh")
    assert all("abcdefgh"[label] == text for text, label in zip(most.texts, most.labels, strict=True))  # type: ignore[arg-type]
    assert most.digest != few.digest


def test_batches_are_of_like_lengths() -> None:
    texts = ("a", "a much longer sentence than the others are", "b", "two words")
    rows = prepare(minilm(), minilm_signature(), Examples(texts=texts))
    order = [positions for positions, _ in batches(rows, 2)]
    assert order[-1] == [3, 1]
    assert sorted(index for positions in order for index in positions) == [0, 1, 2, 3]


@pytest.mark.parametrize("values", [[0.5, 1.0], [300, 1], [-1, 1]])
def test_whole_numbers_are_never_cut_or_wrapped(tmp_path: Path, values: list[float]) -> None:
    signature = PIXELS.model_copy(update={"task": Task.TENSOR, "inputs": (TensorSpec(name="x", datatype="UINT8", shape=(-1,)),)})
    data = Data(source=DataSource(dataset="d@1"), path=tmp_path / "a.npz", format=DatasetFormat.NPZ)
    np.savez(tmp_path / "a.npz", x=np.array([1.0, 255.0]))
    assert read(data, signature).arrays["x"].tolist() == [1, 255]
    np.savez(tmp_path / "a.npz", x=np.array(values))
    with pytest.raises(NotEnoughData, match=rf"x: {values[0]} is no UINT8"):
        read(data, signature)


def test_images_that_were_trained_on_prove_nothing() -> None:
    pixels = np.arange(4 * 64, dtype=np.float32).reshape(4, 1, 8, 8)
    held_out = Examples(arrays={"pixel_values": pixels[:2]}, labels=np.array([0, 1]))
    check_disjoint(held_out, training=Examples(arrays={"pixel_values": pixels[2:]}))
    with pytest.raises(NotEnoughData, match="training: example 1 is in the evaluation data too"):
        check_disjoint(held_out, training=Examples(arrays={"pixel_values": pixels[[3, 0]]}, labels=np.array([3, 9])))
