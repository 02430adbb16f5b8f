"""A service without a door, whose rounds of keeping and judging the test begins, and small models that differ."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.inference.answers import Answers
from services.inference.calls import Options, Result
from services.inference.core import Core
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.settings import InferenceSettings
from services.inference.traffic.keeper import Keeper
from services.inference.traffic.shadow import Shadows
from services.repository.manifest import Format, Signature, Task, TensorSpec
from services.repository.store import Repository
from services.repository.traffic import Arm, Plan
from tests.inference.conftest import seal

SIGNATURE = Signature(
    task=Task.TENSOR,
    format=Format.ONNX,
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
)
BROKEN_ABOVE = 8  # the broken model fails where a value of x is as large; its warm-up of ones succeeds


def multiplying(folder: Path, factor: float, *, broken: bool = False) -> Path:
    """`y` = x times a factor, as ONNX. Answers `folder`."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    constants = [numpy_helper.from_array(np.float32(factor), "factor")]
    if broken:  # looks x up in a table that is too short
        nodes = [
            helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["y"]),
        ]
        constants = [numpy_helper.from_array(np.arange(BROKEN_ABOVE, dtype=np.float32) * np.float32(factor), "table")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "multiplying", [x], [y], constants)
    folder.mkdir(parents=True)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    return folder


@pytest.fixture
def versions(repository: Repository, tmp_path: Path) -> Repository:
    """`m` with 1: y = 2 x (stable), 2: the same, 3: y = 3 x, 4: y = 2 x that fails for large x."""
    for number, (factor, broken) in enumerate([(2, False), (2, False), (3, False), (2, True)], 1):
        folder = multiplying(tmp_path / "sources" / str(number), factor, broken=broken)
        seal(repository, folder, "m", SIGNATURE, "stable" if number == 1 else "")
    return repository


def plan(*arms: tuple[str, int, float], **more: Any) -> Plan:
    return Plan(arms=tuple(Arm(name=name, version=version, weight=weight) for name, version, weight in arms), **more)


@dataclass(frozen=True)
class Service:
    """What `main` composes, without a server."""

    models: Models
    core: Core
    keeper: Keeper
    shadows: Shadows

    async def call(self, value: float = 1, key: str = "", reference: str = "m") -> Result:
        x = np.full((1, 3), value, np.float32)
        return await self.core.run_tensors(reference, {"x": x}, (), Options(sticky_key=key))

    async def look(self) -> None:
        assert await self.models.look()
        await self.models.settle()


Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def start(versions: Repository) -> Start:
    """`async with start(traffic_s=1) as service`: the repository of `versions`, looked at once."""

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[Service]:
        chosen = InferenceSettings(repository=versions.root, **{"instances": 1, "threads": 1, "replica": "here", **settings})
        models = Models(versions, chosen, Metrics(CollectorRegistry()))
        shadows, keeper = Shadows(models, chosen.shadow_calls), Keeper(models.splits, models.state, chosen.traffic_s)
        try:
            await models.begin()
            yield Service(models, Core(models, Answers(None, None), 8, shadows), keeper, shadows)
        finally:
            await shadows.close()
            await keeper.close()
            await models.close()

    return started
