"""The `hone` command as people type it: data, plan, job, report, page."""

import json
import re
from pathlib import Path

import pytest
from hone.cli import app, show
from hone.optimization.v1 import jobs_pb2
from typer.testing import CliRunner

from benchmarks.sentences import sentences

TEXTS = sentences(60, seed=11)


def told(runner: CliRunner, *arguments: str, status: int = 0) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == status, result.output + str(result.exception)
    return result.output


def test_from_data_to_a_page(hone: CliRunner) -> None:
    Path("held_out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert "60" in told(hone, "data", "push", "held_out.jsonl", "cli-held-out")
    Path("recipes.json").write_text(json.dumps({"small": [["export_onnx", {"opset": 18}]]}))
    wanted = (
        "optimize",
        "minilm",
        "--evaluation",
        "cli-held-out",
        "--recipes",
        "recipes.json",
        "--min-examples",
        "20",
        "--publish-as",
        "cli",
    )
    plan = told(hone, *wanted, "--dry-run")
    assert re.search(r"small\s.*export_onnx", plan)
    assert "in all" in plan
    told(hone, *wanted, "--min-gain", "100", status=1)  # a gain that no export brings: rejected, and said so by the status
    listed = told(hone, "jobs", "ls")
    job = next(word for word in listed.split() if re.fullmatch(r"[0-9a-f]{32}", word))
    assert "rejected" in told(hone, "jobs", "report", job, status=1)
    assert "page.html" in told(hone, "jobs", "report", job, "--html", "page.html")
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)


def test_a_table_is_not_taken_for_lines(hone: CliRunner) -> None:
    Path("held_out.csv").write_text("text\na\n")
    result = hone.invoke(app, ["optimize", "minilm", "--evaluation", "held_out.csv"])
    assert isinstance(result.exception, ValueError)
    assert "hone data push" in str(result.exception)


def test_the_catalogue_names_families_and_this_machine(hone: CliRunner) -> None:
    catalogue = told(hone, "techniques")
    for name in ("distill", "prune", "qat", "static_int8", "torchscript"):
        assert name in catalogue


@pytest.mark.parametrize("step", [["distill"], {"distill": {}}, ["distill", 3], 7])
def test_a_step_that_is_none_is_named(hone: CliRunner, step: object) -> None:
    Path("recipes.json").write_text(json.dumps({"small": ["export_onnx", step]}))
    result = hone.invoke(app, ["optimize", "minilm", "--evaluation", "held-out", "--recipes", "recipes.json"])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("recipes.json: small[1]: ")


def test_brackets_in_a_servers_words_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    """A closing tag that was never opened would end the command, and an opening one would be swallowed."""
    show.console.print(show.plan(jobs_pb2.PlanJobResponse(warnings=["x [rows, tokens] of [/data/x]"])))
    assert "x [rows, tokens] of [/data/x]" in capsys.readouterr().out
