"""All engines by the same laws, on a real model with one layer."""

import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from services import backends
from services.repository.manifest import Format, Signature
from tests.applied import apply
from tests.models import minilm_signature, shallow_minilm

HUGGINGFACE = minilm_signature()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Format, tuple[Path, Signature]]:
    root = tmp_path_factory.mktemp("backends")
    source = shallow_minilm(root / "source")
    made = {Format.HUGGINGFACE: (source, HUGGINGFACE)}
    for technique in ("export_onnx", "torchscript", "aotinductor", "openvino"):
        target, outcome = apply(technique, source, HUGGINGFACE, root / technique)
        made[outcome.signature.format] = target, outcome.signature
    return made


@pytest.fixture(params=list(Format))
def backend(request: pytest.FixtureRequest, folders: dict[Format, tuple[Path, Signature]]) -> Iterator[backends.Backend]:
    loaded = backends.load(*folders[request.param], threads=1)
    yield loaded
    loaded.close()


def batch(*lengths: int, seed: int = 0) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(1000, 20000, (len(lengths), max(lengths)), np.int64)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def test_rows_are_unit_vectors(backend: backends.Backend) -> None:
    found = backend.run(batch(5, 9, 3), ["embedding"])["embedding"]
    assert found.shape == (3, 384)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_padding_changes_no_answer(backend: backends.Backend) -> None:
    together = batch(5, 9)
    alone = {name: value[:1, :5] for name, value in together.items()}
    np.testing.assert_allclose(
        backend.run(alone, ["embedding"])["embedding"][0], backend.run(together, ["embedding"])["embedding"][0], atol=1e-5
    )


def test_threads_share_one_model(backend: backends.Backend) -> None:
    batches = [batch(4 + index, 7, seed=index) for index in range(4)]
    wanted = [backend.run(item, ["embedding"])["embedding"] for item in batches]
    found: list[np.ndarray] = [np.empty(0)] * 4
    barrier = threading.Barrier(4)

    def run(index: int) -> None:
        barrier.wait()
        found[index] = backend.run(batches[index], ["embedding"])["embedding"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda inputs: inputs.pop("attention_mask"),
        lambda inputs: inputs.update(input_ids=inputs["input_ids"].astype(np.float64)),
        lambda inputs: inputs.update(attention_mask=inputs["attention_mask"][:, :2]),
    ],
)
def test_bad_runs_raise_run_error(backend: backends.Backend, spoil) -> None:  # type: ignore[no-untyped-def]
    inputs = batch(5, 9)
    spoil(inputs)
    with pytest.raises(backends.RunError):
        backend.run(inputs, ["embedding"])
    assert backend.run(batch(5), ["embedding"])["embedding"].shape == (1, 384)


def test_ids_beyond_the_vocabulary_raise_run_error(backend: backends.Backend) -> None:
    inputs = batch(5, 9)
    with pytest.raises(backends.RunError):
        backend.run(inputs | {"input_ids": inputs["input_ids"] + 10**6}, ["embedding"])


def test_unknown_output(backend: backends.Backend) -> None:
    with pytest.raises(backends.RunError, match="logits"):
        backend.run(batch(5), ["logits"])


def test_closed(backend: backends.Backend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(backends.RunError):
        backend.run(batch(5), ["embedding"])


def test_engines_agree(folders: dict[Format, tuple[Path, Signature]]) -> None:
    first, *others = (backends.load(*folder, threads=1).run(batch(5, 30), ["embedding"])["embedding"] for folder in folders.values())
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-5)


def test_loading_is_silent(folders: dict[Format, tuple[Path, Signature]], capfd: pytest.CaptureFixture[str]) -> None:
    for folder in folders.values():
        backends.load(*folder, threads=1).close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", list(Format))
def test_nothing_there(tmp_path: Path, format: Format) -> None:  # noqa: A002  the signature's own word
    with pytest.raises(backends.LoadError):
        backends.load(tmp_path, HUGGINGFACE.model_copy(update={"format": format}), threads=1)


PROGRAMS = {Format.TORCHSCRIPT: "model.ts", Format.AOTINDUCTOR: "model.pt2", Format.OPENVINO: "model.xml"}


@pytest.mark.parametrize("format", list(PROGRAMS))
def test_a_broken_program(tmp_path: Path, format: Format) -> None:  # noqa: A002
    (tmp_path / PROGRAMS[format]).write_bytes(b"not a program")
    with pytest.raises(backends.LoadError, match=PROGRAMS[format]):
        backends.load(tmp_path, HUGGINGFACE.model_copy(update={"format": format}), threads=1)


def test_an_engine_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "services.backends.openvino", None)
    with pytest.raises(backends.LoadError, match=r"openvino models need .*openvino, which is not installed here"):
        backends.load(tmp_path, HUGGINGFACE.model_copy(update={"format": Format.OPENVINO}), threads=1)


@pytest.mark.parametrize("format", list(Format))
def test_every_format_has_its_engine(format: Format) -> None:  # noqa: A002
    assert hasattr(import_module(backends.engine_module(format)), "load")
