"""Settings from the environment."""

import sys

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServerSettings, load


class ExampleSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="HONE_EXAMPLE_")

    rows: int = Field(1, ge=1, description="Rows.")


def test_the_environment_sets_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_EXAMPLE_ROWS", "7")
    monkeypatch.setenv("HONE_EXAMPLE_GRACE_S", "1.5")
    monkeypatch.setenv("HONE_OTHER_ROWS", "x")
    settings = load(ExampleSettings)
    assert (settings.rows, settings.grace_s, settings.host) == (7, 1.5, "127.0.0.1")


def test_every_fault_is_named_at_once_and_the_status_is_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HONE_EXAMPLE_ROWS", "0")
    monkeypatch.setenv("HONE_EXAMPLE_PORT", "many")
    monkeypatch.setenv("HONE_EXAMPLE_ROW", "7")
    with pytest.raises(SystemExit) as caught:
        load(ExampleSettings)
    text = capsys.readouterr().err
    assert caught.value.code == 2
    assert "HONE_EXAMPLE_ROWS: " in text
    assert "HONE_EXAMPLE_PORT: " in text
    assert "HONE_EXAMPLE_ROW" in text.replace("HONE_EXAMPLE_ROWS", "")


def test_an_unknown_variable_alone_refuses_the_start_and_tells_the_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HONE_EXAMPLE_ROW", "7")
    with pytest.raises(SystemExit):
        load(ExampleSettings)
    assert "HONE_EXAMPLE_ROWS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "address", "is_loopback"),
    [
        ("127.0.0.1", "127.0.0.1:5", True),
        ("::1", "[::1]:5", True),
        ("localhost", "localhost:5", True),
        ("0.0.0.0", "0.0.0.0:5", False),
        ("example.org", "example.org:5", False),
    ],
)
def test_an_address_knows_whether_it_stays_on_this_machine(host: str, address: str, is_loopback: bool) -> None:
    settings = ServerSettings(host=host, port=5)
    assert (settings.address, settings.is_loopback) == (address, is_loopback)


def test_every_setting_says_what_it_trades() -> None:
    assert all(field.description for field in ServerSettings.model_fields.values())


def test_the_standard_variable_sets_where_traces_go_and_our_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(ExampleSettings).otlp_endpoint == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    assert load(ExampleSettings).otlp_endpoint == "http://collector:4317"
    monkeypatch.setenv("HONE_EXAMPLE_OTLP_ENDPOINT", "")
    assert load(ExampleSettings).otlp_endpoint == ""


def test_traces_without_the_extra_refuse_the_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    monkeypatch.setenv("HONE_EXAMPLE_OTLP_ENDPOINT", "http://collector:4317")
    with pytest.raises(SystemExit):
        load(ExampleSettings)
    assert "HONE_EXAMPLE_OTLP_ENDPOINT: Value error, tracing needs the extra `tracing`" in capsys.readouterr().err


def test_a_program_is_named_after_its_settings() -> None:
    assert ExampleSettings().service_name == "hone-example"
    assert ServerSettings().service_name == "hone"
