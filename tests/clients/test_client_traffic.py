"""Splitting a model's calls with both clients and with the command, against the running suite."""

import time
from typing import Any

import grpc
import hone.aio
import numpy as np
import pytest
from hone.cli import app
from hone.inference.v1 import inference_pb2
from hone.specs import outcome, traffic
from typer.testing import CliRunner

from tests.conftest import Suite
from tests.inference.traffic.conftest import multiplying

MODEL = "split"
X = {"x": np.ones((1, 3), np.float32)}
WAIT_S = 60.0  # only a broken suite takes so long


@pytest.fixture(scope="module")
def client(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a model of two versions, `stable` at the first: y = 2 x and y = 3 x."""
    root = tmp_path_factory.mktemp("split")
    with suite.client() as connected:
        connected.models.push(multiplying(root / "two", 2), MODEL, channels=["stable"])
        connected.models.push(multiplying(root / "three", 3), MODEL)
        connected.wait_until_served(MODEL)
        yield connected


@pytest.fixture
def command(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr("hone.channel.LOCAL", suite.addresses)
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def told(runner: CliRunner, *arguments: str) -> str:
    result = runner.invoke(app, ["traffic", *arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def routed(client: Any, revision: int) -> None:
    """Returns when the replica routes by the revision."""
    end = time.monotonic() + WAIT_S
    while client.predict(MODEL, X).served.revision != revision:
        assert time.monotonic() < end, f"revision {revision} is not routed by"


def test_a_split_from_its_start_to_its_promotion(client: Any, command: CliRunner) -> None:
    assert "the calls of split:stable are not split" in told(command, "show", MODEL)
    options = ("--shadow", "2:1", "--max-error-rate", "0.5", "--min-agreement", "0.01", "--experiment", "colours")
    plan = told(command, "set", MODEL, "stable=1", "three:2=1", *options)
    for words in ("three", "50.0%", "(shadow)", "100.0%", "max_error_rate 0.5", "min_calls 100"):
        assert words in plan
    wanted = client.models.traffic(MODEL)
    assert [(arm.name, arm.version) for arm in wanted.arms] == [("stable", 1), ("three", 2)]
    routed(client, wanted.revision)

    seen = {key: client.predict(MODEL, X, sticky_key=key) for key in (f"user-{number}" for number in range(30))}
    assert {(answer.served.variant, answer.outputs["y"][0, 0]) for answer in seen.values()} == {("stable", 2), ("three", 3)}
    for key, answer in seen.items():
        assert client.predict(MODEL, X, sticky_key=key).served.variant == answer.served.variant
        for _ in range(3):
            assert client.record_outcome(answer.served, "click", answer.served.variant == "three")
            assert client.record_outcome(answer.served, "spent", 2.5)
    found = client.experiment(MODEL, minimum_effect=0.2)
    assert [arm.name for arm in found.arms] == ["stable", "three"]
    assert found.arms[1].outcomes[0].mean.estimate == 1
    assert found.arms[1].outcomes[0].comparison.difference.low > 0.5

    shown = told(command, "show", MODEL, "--minimum-effect", "0.2")
    for words in ("stable (control)", "higher than the control", "fixed horizon of", "click, three", "spent, stable", "agreement"):
        assert words in shown
    assert "is version 2 now" in told(command, "promote", MODEL, "three")
    routed(client, 0)
    assert client.models.get(MODEL).version == 2
    assert client.models.roll_back(MODEL).version == 1


async def test_the_asynchronous_client_says_the_same(client: Any, suite: Suite) -> None:
    async with hone.aio.Client(**suite.addresses) as connected:
        made = await connected.models.set_traffic(MODEL, traffic({"stable": (1, 1), "three": (2, 3)}, max_p99_ratio=2))
        assert made == client.models.traffic(MODEL) == await connected.models.traffic(MODEL, "stable")
        routed(client, made.revision)
        for number in range(5):
            answer = await connected.predict(MODEL, X, sticky_key=f"user-{number}")
            assert answer.served.variant == client.predict(MODEL, X, sticky_key=f"user-{number}").served.variant
        assert await connected.record_outcome(answer.served, "click", True, idempotency_key="once")
        assert not client.record_outcome(answer.served, "click", True, idempotency_key="once")
        assert (await connected.experiment(MODEL)).arms == client.experiment(MODEL).arms
        with pytest.raises(grpc.RpcError) as caught:
            await connected.models.promote_arm(MODEL, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await connected.models.clear_traffic(MODEL)
        routed(client, 0)
        with pytest.raises(grpc.RpcError) as caught:
            await connected.record_outcome(answer.served, "click", True)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("stable=1", "two"), "'two' must be VERSION=WEIGHT"),
        (("stable=1", "2=1.1.1"), "is not a number"),
        (("stable=1", "stable:2=1"), "two arms have one name"),
        (("stable=1", "2=1", "--shadow", "2"), "must be VERSION:SHARE"),
    ],
)
def test_a_split_that_is_none_is_explained(client: Any, command: CliRunner, arguments: tuple[str, ...], text: str) -> None:
    result = command.invoke(app, ["traffic", "set", MODEL, *arguments])
    assert isinstance(result.exception, ValueError)
    assert text in str(result.exception)


def test_true_is_a_success_and_one_is_a_value() -> None:
    served = inference_pb2.Served(model="m", variant="a", channel="c", revision=3)
    first, second = (outcome(served, "n", each, count=1, idempotency_key="") for each in (True, 1))
    assert (first.WhichOneof("observation"), second.WhichOneof("observation")) == ("success", "value")
    assert (first.model, first.channel, first.variant, first.revision) == ("m", "c", "a", 3)
