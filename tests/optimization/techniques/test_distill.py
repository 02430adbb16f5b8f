"""Students: what they start from, and what distillation makes of them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from benchmarks import corpus
from benchmarks.sentences import PACKAGES
from services.backends.torch import load_module
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.rows import batches, prepare
from services.optimization.techniques import Context, Model, Outcome, saving, students
from services.optimization.techniques.distill import TECHNIQUE, DistillParameters
from services.optimization.techniques.student_widths import Sizes, attention_positions, strongest
from services.optimization.training.anatomy import Width, anatomy_of
from services.repository.manifest import Signature, Task
from tests.models import classifier, classifier_signature, digits_resnet, digits_resnet_signature, digits_vit, digits_vit_signature
from tests.optimization.techniques.random_models import build, inputs

NARROWED = ("bert", "roberta", "distilbert", "vit", "deit", "gpt2")
LAYERED = (*NARROWED, "bert-embedding", "llama")
ENERGIES = arrays(np.float64, 24, elements=st.floats(0, 10))


def student_of(family: str, folder: Path, **parameters: Any) -> tuple[Any, dict[str, Any], Path, Signature]:
    """(student, notes, source, signature)."""
    source, signature = build(family, folder)
    module = load_module(source, signature)
    return module, students.make(module, signature, DistillParameters(**parameters), 0, is_pruned=False), source, signature


def answers(model: Model, examples: Examples) -> np.ndarray:
    """The class that a model says of each example."""
    module, rows = load_module(model.folder, model.signature), prepare(model.folder, model.signature, examples)
    found = np.empty(len(rows), np.int64)
    for positions, batch in batches(rows, 32):
        with torch.inference_mode():
            found[positions] = module(**{name: torch.from_numpy(values) for name, values in batch.items()}).argmax(-1).numpy()
    return found


def distilled(teacher: Model, root: Path, examples: Examples, **parameters: Any) -> tuple[Model, Outcome]:
    """A student of `teacher`, made of it."""
    folders = {name: root / name for name in ("target", "scratch", "checkpoints", "outputs")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    context = Context(
        source=teacher.folder,
        signature=teacher.signature,
        **folders,
        parameters=DistillParameters.model_validate(parameters),
        calibration=Examples(),
        training=examples,
        original=teacher,
        seed=0,
        threads=1,
        progress=lambda *_, **__: None,
    )
    outcome = TECHNIQUE.apply(context)
    return Model(context.target, outcome.signature), outcome


def untaught_student(teacher: Model, folder: Path) -> Model:
    """One layer of `teacher`, as distillation would start from it."""
    folder.mkdir()
    module = load_module(teacher.folder, teacher.signature)
    students.keep_layers(module.model, 1, "spread")
    saving.save(module, teacher.folder, folder, teacher.signature)
    return Model(folder, teacher.signature)


# -- what a student starts from -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "of", "choice", "kept"),
    [
        (3, 6, "spread", [0, 2, 5]),
        (2, 6, "spread", [0, 5]),
        (1, 6, "spread", [0]),
        (6, 6, "spread", [0, 1, 2, 3, 4, 5]),
        (3, 6, "first", [0, 1, 2]),
        (3, 6, "last", [3, 4, 5]),
    ],
)
def test_layers_are_chosen(count: int, of: int, choice: str, kept: list[int]) -> None:
    assert students.choose_layers(count, of, choice) == kept


@pytest.mark.parametrize("family", LAYERED)
def test_layers_are_the_source_s_own_and_load_again(tmp_path: Path, family: str) -> None:
    student, notes, source, signature = student_of(family, tmp_path / "source", layers=2)
    assert (notes["layers"], notes["layers_kept"]) == (2, [0, 2])
    assert notes["parameters_after"] < notes["parameters_before"]
    (tmp_path / "saved").mkdir()
    saving.save(student, source, tmp_path / "saved", signature)
    with torch.inference_mode():
        again = load_module(tmp_path / "saved", signature)(**inputs(signature, 9))
        assert torch.allclose(again, student(**inputs(signature, 9)), atol=1e-6)


@pytest.mark.parametrize("family", NARROWED)
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 16, "heads": 2, "intermediate_size": 24},
        {"hidden_size": 16},
        {"hidden_size": 24, "heads": 2, "layers": 1},
        {"heads": 2},
        {"intermediate_size": 10},
    ],
)
def test_a_narrow_student_loads_again_by_its_config_alone(tmp_path: Path, family: str, sizes: dict[str, int]) -> None:
    student, notes, source, signature = student_of(family, tmp_path / "source", **sizes)
    assert {name: notes[name] for name in sizes} == sizes
    config = student.model.config
    assert (config.hidden_size, config.num_attention_heads) == (sizes.get("hidden_size", 32), sizes.get("heads", 4))
    (tmp_path / "saved").mkdir()
    saving.save(student, source, tmp_path / "saved", signature)
    assert not (tmp_path / "saved" / "shapes.json").exists()
    with torch.inference_mode():
        again = load_module(tmp_path / "saved", signature)(**inputs(signature, 9))
        assert torch.isfinite(again).all()
        assert torch.allclose(again, student(**inputs(signature, 9)), atol=1e-6)


@pytest.mark.parametrize("family", NARROWED)
def test_neurons_that_do_nothing_are_the_ones_to_go(tmp_path: Path, family: str) -> None:
    source, signature = build(family, tmp_path / "source")
    module = load_module(source, signature)
    idle = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:24]
    for name, weight in module.model.named_parameters():
        widths = anatomy_of(module.model).widths(name, weight)
        if Width.FEED_FORWARD in widths and Width.HIDDEN in widths and weight.ndim == 2:
            weight.data.index_fill_(widths.index(Width.FEED_FORWARD), idle, 0.0)
    with torch.inference_mode():
        expected = module(**inputs(signature, 9))
        students.make(module, signature, DistillParameters(intermediate_size=40), 0, is_pruned=False)
        assert torch.allclose(module(**inputs(signature, 9)), expected, atol=1e-4)


@pytest.mark.parametrize("family", NARROWED)
def test_sizes_as_they_are_change_nothing(tmp_path: Path, family: str) -> None:
    source, signature = build(family, tmp_path / "source")
    student, *_ = student_of(family, tmp_path / "again", hidden_size=32, heads=4, intermediate_size=64)
    with torch.inference_mode():
        assert torch.equal(student(**inputs(signature, 9)), load_module(source, signature)(**inputs(signature, 9)))


def test_random_students_have_the_shape_and_not_the_weights(tmp_path: Path) -> None:
    sizes = {"layers": 2, "hidden_size": 16, "heads": 2}
    made = [student_of("bert", tmp_path / init, init=init, **sizes)[0].model.state_dict() for init in ("teacher", "random")]
    assert {name: value.shape for name, value in made[0].items()} == {name: value.shape for name, value in made[1].items()}
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(made[0][name], made[1][name])


@given(ENERGIES, st.sampled_from([(4, 24, 2), (4, 12, 2), (4, 12, 4), (4, 24, 4), (4, 18, 3), (6, 16, 2), (3, 20, 2), (4, 6, 1)]))
def test_attention_keeps_distinct_positions_by_head(energies: np.ndarray, sizes: tuple[int, int, int]) -> None:
    old, new = Sizes(24, sizes[0], 1), Sizes(sizes[1], sizes[2], 1)
    kept = attention_positions(torch.from_numpy(energies), old, new).tolist()
    assert len(kept) == new.hidden
    assert all(left < right for left, right in pairwise(kept))
    assert 0 <= kept[0] <= kept[-1] < 24
    if new.head_width <= old.head_width:
        for head in range(new.heads):
            mine = kept[head * new.head_width : (head + 1) * new.head_width]
            assert len({position // old.head_width for position in mine}) == 1


def test_the_strongest_head_and_its_strongest_dimensions_stay() -> None:
    energy = torch.tensor([1.0, 0, 0, 0, 3, 9, 1, 7, 2, 2, 2, 2])  # three heads of four
    assert attention_positions(energy, Sizes(12, 3, 1), Sizes(2, 1, 1)).tolist() == [5, 7]
    assert strongest(energy, 3).tolist() == [4, 5, 7]


# -- what cannot be ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "parameters", "reason"),
    [
        ("bert", {"layers": 4}, "layers: the source has 3; a student cannot have 4"),
        ("bert", {"hidden_size": 64}, "hidden_size: the source has 32; a student cannot have 64"),
        ("bert", {"heads": 8}, "heads: the source has 4; a student cannot have 8"),
        ("bert", {"intermediate_size": 65}, "intermediate_size: the source has 64; a student cannot have 65"),
        ("bert", {"heads": 3}, "heads: 3 do not divide the hidden size 32"),
        ("bert", {"hidden_size": 30}, "heads: 4 do not divide the hidden size 30"),
        ("bert-embedding", {"hidden_size": 16}, "hidden_size: an embedding is as wide as its model"),
        ("resnet", {"layers": 1}, "has no single list of layers"),
        ("resnet", {"hidden_size": 8}, "'resnet' are not known from inside"),
        ("llama", {"heads": 2}, "'llama' are not known from inside"),
    ],
)
def test_shapes_that_cannot_be_are_refused(tmp_path: Path, family: str, parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedOperator, match=reason):
        student_of(family, tmp_path / "source", **parameters)


def test_heads_that_do_not_divide_are_refused_with_the_parameters() -> None:
    with pytest.raises(ValidationError, match="5 do not divide the hidden size 16"):
        DistillParameters(hidden_size=16, heads=5)


@pytest.mark.parametrize("parameters", [{"hidden_size": 16}, {"init": "random"}])
def test_a_pruned_source_keeps_its_shapes(tmp_path: Path, parameters: dict[str, Any]) -> None:
    source, signature = build("bert", tmp_path / "source")
    module = load_module(source, signature)
    with pytest.raises(UnsupportedOperator, match="pruned to shapes of its own"):
        students.make(module, signature, DistillParameters.model_validate(parameters), 0, is_pruned=True)


# -- what distillation makes of them ------------------------------------------------------------------------------------------


def test_declared_for_every_task_but_tensors_and_asking_for_training() -> None:
    assert TECHNIQUE.tasks == frozenset(Task) - {Task.TENSOR}
    assert TECHNIQUE.needs_training


def test_a_student_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughData, match="there are 0"):
        distilled(Model(*build("vit", tmp_path / "source")), tmp_path / "run", Examples(), layers=1)


def test_a_one_layer_minilm_learns_what_two_layers_say(tmp_path: Path) -> None:
    signature = classifier_signature()
    short = {"epochs": 4, "batch_rows": 16, "max_tokens": 24, "learning_rate": 1e-3, "freeze_embeddings": True}
    texts, owners = zip(*corpus.origins(360, "train"), strict=True)
    labelled = Examples(texts=texts, labels=np.array([PACKAGES.index(owner) for owner in owners], np.int64))
    source = Model(classifier(tmp_path / "source", 40, layers=2), signature)
    teacher, _ = distilled(source, tmp_path / "teacher", labelled, training=short, losses={"alpha": 0})
    untaught = untaught_student(teacher, tmp_path / "untaught")
    student, outcome = distilled(teacher, tmp_path / "student", Examples(texts=texts), training=short, layers=1)
    fresh = Examples(texts=tuple(corpus.prose(120, "held_out")))
    said, taught, before = (answers(model, fresh) for model in (teacher, student, untaught))
    assert len(np.unique(said)) > 1
    assert (taught == said).mean() > max(0.65, (before == said).mean() + 0.1)
    assert outcome.notes["labelled"] is False
    assert (outcome.notes["teacher_outputs"], outcome.notes["layers_kept"]) == ("computed", [0])
    assert outcome.notes["curves"]["validation_agreement"]


def test_a_small_vision_transformer_learns_from_a_larger_one(tmp_path: Path) -> None:
    teacher = Model(digits_vit(tmp_path / "teacher"), digits_vit_signature())
    images, held = corpus.digits("train"), corpus.digits("held_out")
    examples = Examples(arrays={"pixel_values": images.pixel_values[:700]})
    training = {"epochs": 6, "learning_rate": 3e-3, "batch_rows": 32}
    sizes = {"layers": 1, "hidden_size": 32, "heads": 2, "intermediate_size": 64}
    student, outcome = distilled(
        teacher, tmp_path / "student", examples, training=training, losses={"hidden": 0.1, "attention_relation": 0.1}, **sizes
    )
    fresh = Examples(arrays={"pixel_values": held.pixel_values})
    said = answers(teacher, fresh)
    assert (answers(student, fresh) == said).mean() > 0.85
    assert outcome.notes["parameters_after"] < 0.25 * outcome.notes["parameters_before"]


def test_a_convolutional_net_is_taught_as_it_is(tmp_path: Path) -> None:
    teacher = Model(digits_resnet(tmp_path / "teacher"), digits_resnet_signature())
    images = corpus.digits("train")
    examples = Examples(arrays={"pixel_values": images.pixel_values[:65]}, labels=images.labels[:65])
    _, outcome = distilled(teacher, tmp_path / "student", examples, training={"epochs": 1, "validation_share": 0})
    assert outcome.notes["parameters_after"] == outcome.notes["parameters_before"]
    assert outcome.notes["labelled"] is True
    with pytest.raises(UnsupportedOperator, match="no single list of layers"):
        distilled(teacher, tmp_path / "inside", examples, losses={"hidden": 1})


def test_half_precision_comes_back_as_half_precision(tmp_path: Path) -> None:
    source = digits_vit(tmp_path / "source")
    signature = digits_vit_signature().model_copy(update={"dtype": "bfloat16"})
    halved = tmp_path / "halved"
    halved.mkdir()
    saving.save(load_module(source, digits_vit_signature()), source, halved, signature)
    examples = Examples(arrays={"pixel_values": corpus.digits("train").pixel_values[:64]})
    student, outcome = distilled(Model(halved, signature), tmp_path / "student", examples, training={"epochs": 1}, layers=1)
    assert outcome.signature.dtype == "bfloat16"
    assert {weight.dtype for weight in load_module(student.folder, outcome.signature).parameters()} == {torch.bfloat16}
