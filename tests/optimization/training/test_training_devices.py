import pytest
import torch

from services.optimization.training import devices

GPUS = [torch.device("cuda", index) for index in range(4)]


def test_without_a_gpu_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.visible() == (torch.device("cpu"),)


def test_every_visible_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices.visible() == tuple(GPUS)


@pytest.mark.parametrize(("batch_rows", "reads_internals", "wanted"), [(32, False, 4), (2, False, 2), (32, True, 1)])
def test_a_batch_is_split_over_as_many_as_it_can_be(batch_rows: int, reads_internals: bool, wanted: int) -> None:
    assert devices.chosen(GPUS, batch_rows, reads_internals) == tuple(GPUS[:wanted])


def test_one_device_needs_no_replicas() -> None:
    module = torch.nn.Linear(2, 2)
    assert devices.replicated(module, [torch.device("cpu")]) is module
