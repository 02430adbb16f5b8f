"""`hone cache` as people type it."""

import json
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from hone.cli import app
from hone.inference.v1 import inference_pb2
from hone.results import Classifications, Embeddings
from typer.testing import CliRunner, Result

from benchmarks.sentences import sentences
from tests.conftest import Suite

TEXTS = sentences(50, seed=77)


def run(runner: CliRunner, *arguments: str, typed: str = "") -> Result:
    return runner.invoke(app, ["cache", *arguments], input=typed)


def told(runner: CliRunner, *arguments: str, typed: str = "") -> str:
    result = run(runner, *arguments, typed=typed)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.output


def test_warm_tells_what_was_known_and_makes_the_rest_known(hone: CliRunner) -> None:
    lines, objects = Path("texts.txt"), Path("texts.jsonl")
    lines.write_text("".join(f"{text}\n" for text in (*TEXTS[:40], "", *TEXTS[:40])))
    objects.write_text("".join(json.dumps({"question": text}) + "\n" for text in TEXTS))
    assert "40 texts: 0 were known, 40 are now" in told(hone, "warm", "minilm", "texts.txt", "--batch", "16")
    assert "50 texts: 40 were known, 10 are now" in told(hone, "warm", "minilm", "texts.jsonl", "--field", "question")


class Classifier:
    """Inference with a classifier alone; `calls` are what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def embed(self, model: str, texts: Sequence[str], *, truncate: bool) -> Embeddings:
        self.calls.append("embed")
        raise Refused

    def classify(self, model: str, texts: Sequence[str], *, truncate: bool) -> Classifications:
        self.calls.append(f"classify {len(texts)}")
        return Classifications([], inference_pb2.Served(cached_rows=1))


class Refused(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.FAILED_PRECONDITION


def test_a_classifier_is_found_out_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts, classifier = tmp_path / "texts.txt", Classifier()
    texts.write_text("a\nb\nc\n")
    monkeypatch.setattr("hone.cli.connection.Client", lambda *_, **__: classifier)
    assert "3 texts: 2 were known, 1 are now" in told(CliRunner(), "warm", "topics", str(texts), "--batch", "2")
    assert classifier.calls == ["embed", "classify 2", "classify 1"]


@pytest.mark.parametrize("line", ["{", "[]", '{"question": "a"}', '{"text": 3}'])
def test_a_line_without_a_text_is_named(hone: CliRunner, line: str) -> None:
    Path("texts.jsonl").write_text(f'{{"text": "a"}}\n{line}\n')
    result = run(hone, "warm", "minilm", "texts.jsonl")
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("texts.jsonl:2: no ")


def test_a_model_that_is_not_served_is_refused(hone: CliRunner) -> None:
    Path("texts.txt").write_text("a\n")
    result = run(hone, "warm", "nobody", "texts.txt")
    assert isinstance(result.exception, grpc.RpcError)
    assert result.exception.code() is grpc.StatusCode.NOT_FOUND


def test_clear_asks_first(hone: CliRunner, suite: Suite) -> None:
    with suite.client() as client:
        client.cache.put("cli-clear", {b"a": b"1"}, ttl=60)
        assert run(hone, "clear", "cli-clear", typed="n\n").exit_code == 1
        assert client.cache.get("cli-clear", [b"a"]) == [b"1"]
        assert "cli-clear is empty now" in told(hone, "clear", "cli-clear", typed="y\n")
        assert client.cache.get("cli-clear", [b"a"]) == [None]
    assert told(hone, "clear", "cli-clear", "--yes") == "cli-clear is empty now\n"


def test_stats_for_people_and_for_programs(hone: CliRunner, suite: Suite) -> None:
    with suite.client() as client:
        client.cache.put("cli-stats", {b"a": b"1"}, ttl=60)
        client.cache.get("cli-stats", [b"a", b"b"])
    table = told(hone, "stats")
    assert "hits" in table
    assert " of " in table
    found = json.loads(told(hone, "stats", "--json"))
    assert min(found["hits"], found["misses"], found["puts"], found["entries"]) >= 1
    assert found["corrupt"] == 0
    assert found["limits"]["default_ttl_s"] > 0
    assert found["limits"]["max_batch"] == 1024
