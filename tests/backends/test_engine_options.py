"""What the settings choose of an engine: device, cores, compiling; and a model lent to several."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services import backends
from services.backends import Array, LoadError, Options, RunError, devices
from services.backends.lent import Shelf
from services.backends.onnxruntime import affinities
from services.backends.torch import TorchBackend
from tests.inference.conftest import PLAIN, plain_model
from tests.models import minilm_signature, shallow_minilm

BATCH = {"input_ids": np.full((3, 9), 1037, np.int64), "attention_mask": np.ones((3, 9), np.int64)}


@pytest.mark.parametrize(
    ("wanted", "cuda", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cpu", False, "cpu"), ("cuda", True, "cuda")],
)
def test_the_device_is_what_is_wanted_and_there(wanted: str, cuda: bool, expected: str) -> None:
    assert devices.choose(wanted, cuda=cuda) == expected


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="no GPU"):
        devices.choose("cuda", cuda=False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(LoadError, match="no GPU"):
        backends.load(plain_model(tmp_path / "plain"), PLAIN, 1, options=Options("cuda"))


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [((), 4, ""), ((0,), 1, ""), ((0, 1), 2, "2"), ((4, 5, 6), 3, "6;7"), ((0, 1, 2, 3), 2, "2,4"), ((0, 1, 2, 3, 4, 5), 3, "2,5;3,6")],
)
def test_affinities_name_the_workers_cores(cores: tuple[int, ...], threads: int, expected: str) -> None:
    assert affinities(cores, threads) == expected


def thread_affinities() -> dict[str, set[int]]:
    """Of every thread of this process, by its number."""
    return {task.name: os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_onnxruntimes_workers_run_on_the_cores_asked_for(tmp_path: Path) -> None:
    cores = tuple(sorted(os.sched_getaffinity(0))[:2])
    before = thread_affinities()
    loaded = backends.load(plain_model(tmp_path / "plain"), PLAIN, 2, options=Options(cores=cores))
    while [found for thread, found in thread_affinities().items() if thread not in before] != [{cores[1]}]:
        time.sleep(0.001)  # the worker binds itself, once it is started
    loaded.close()


# Compiling. The real compiler takes longer than all of these tests: what is tested is what becomes of its success and failure.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shallow_minilm(tmp_path_factory.mktemp("options") / "minilm")


def run(folder: Path, options: Options = backends.DEFAULT) -> tuple[str, Array]:
    backend = TorchBackend(folder, minilm_signature(), 1, options)
    return backend.name, backend.run(BATCH, ["embedding"])["embedding"]


def test_a_compiled_model_is_tried_while_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, ...]] = []

    def compiled(module: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        assert dynamic

        def call(**tensors: torch.Tensor) -> Any:
            ran.append(tuple(tensors["input_ids"].shape))
            return module(**tensors)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    name, found = run(folder, Options(compiled=True))
    assert name == "torch compiled"
    assert {1} < {rows for rows, _ in ran[:-1]}  # one row and several are two graphs
    assert ran[-1] == (3, 9)
    np.testing.assert_array_equal(found, run(folder)[1])


def test_a_model_that_cannot_be_compiled_runs_eagerly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled(module: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        def call(**_: torch.Tensor) -> Any:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    name, found = run(folder, Options(compiled=True))
    assert name == "torch"
    assert "no C++ compiler" in "".join(capsys.readouterr())
    np.testing.assert_array_equal(found, run(folder)[1])


# Lending


class Counting:
    """Notes how often it was closed."""

    name = "counting"

    def __init__(self) -> None:
        self.closed = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return dict(inputs)

    def close(self) -> None:
        self.closed += 1


def test_a_lent_model_goes_with_its_last_holder() -> None:
    model = Counting()
    shelf = Shelf(model)
    one, other = shelf.lend(), shelf.lend()
    one.close()
    one.close()
    assert (model.closed, shelf.is_held) == (0, True)
    with pytest.raises(RunError, match="closed"):
        one.run({}, [])
    assert other.run({"a": np.ones(1)}, ["a"])["a"].tolist() == [1.0]
    other.close()
    assert (model.closed, shelf.is_held) == (1, False)


def test_holders_that_leave_at_once_close_it_once() -> None:
    model = Counting()
    shelf = Shelf(model)
    holders = [shelf.lend() for _ in range(16)]
    barrier = threading.Barrier(len(holders))

    def leave(index: int) -> None:
        barrier.wait()
        holders[index].close()

    threads = [threading.Thread(target=leave, args=(index,)) for index in range(len(holders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.closed == 1
