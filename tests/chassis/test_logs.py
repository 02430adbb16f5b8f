"""Log lines: one JSON object each, with the ids of the call that they were written for."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
import structlog

from services.chassis import faults, logs
from tests.chassis.collector import collecting

Serve = Callable[..., AbstractAsyncContextManager[Any]]
Lines = Callable[[], list[dict[str, Any]]]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADER = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")
log = structlog.get_logger("test")


async def speak(request: bytes, context: Any) -> bytes:
    log.info("spoken", text=request.decode())
    return b""


def of(lines: Lines, event: str) -> list[dict[str, Any]]:
    return [line for line in lines() if line["event"] == event]


async def test_a_line_carries_the_callers_ids(serve: Serve, log_lines: Lines) -> None:
    async with serve(Speak=speak) as served:
        await served.call("Speak", metadata=(("x-request-id", "mine"), HEADER))
    (line,) = of(log_lines, "spoken")
    assert (line["request_id"], line["trace_id"]) == ("mine", TRACE)


async def test_lines_of_one_call_share_an_id_that_no_other_has(serve: Serve, log_lines: Lines) -> None:
    async def twice(request: bytes, context: Any) -> bytes:
        return await speak(request, context) + await speak(request, context)

    async with serve(Twice=twice) as served:
        await asyncio.gather(served.call("Twice", b"a"), served.call("Twice", b"b"))
    ids = {text: [line["request_id"] for line in of(log_lines, "spoken") if line["text"] == text] for text in "ab"}
    assert [len(set(found)) for found in ids.values()] == [1, 1]
    assert ids["a"] != ids["b"]


async def test_a_refused_caller_gets_the_id_under_which_it_is_logged(serve: Serve, log_lines: Lines) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise faults.NotFound("no model x")

    async with serve(Fail=fail) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.call("Fail")
    (line,) = of(log_lines, "call refused")
    assert (line["method"], line["code"], line["details"], line["level"]) == ("/test.Service/Fail", "NOT_FOUND", "no model x", "info")
    assert dict(refused.value.trailing_metadata())["x-request-id"] == line["request_id"]
    assert line["milliseconds"] >= 0


async def test_a_task_that_outlives_its_call_is_nobodys(serve: Serve, log_lines: Lines) -> None:
    go = asyncio.Event()
    begun: list[asyncio.Task[None]] = []

    async def later() -> None:
        await go.wait()
        log.info("later")

    async def begin(request: bytes, context: Any) -> bytes:
        begun.append(asyncio.create_task(later()))
        return b""

    async with serve(Begin=begin) as served:
        await served.call("Begin", metadata=(("x-request-id", "mine"),))
        go.set()
        await begun[0]
    assert "request_id" not in of(log_lines, "later")[0]


@pytest.mark.parametrize("log_lines", ["debug"], indirect=True)
async def test_each_call_has_a_line_at_debug_level(serve: Serve, log_lines: Lines) -> None:
    async with serve(Speak=speak, settings={"log_level": "debug"}) as served:
        await served.call("Speak", metadata=(("x-request-id", "mine"),))
    (line,) = of(log_lines, "call")
    assert (line["method"], line["code"], line["request_id"], line["level"]) == ("/test.Service/Speak", "OK", "mine", "debug")
    assert "peer" not in line


async def test_an_answered_call_has_no_line_above_it(serve: Serve, log_lines: Lines) -> None:
    async with serve(Speak=speak) as served:
        await served.call("Speak")
    assert not of(log_lines, "call")


async def test_nothing_that_a_caller_sends_ends_a_line(serve: Serve, log_lines: Lines) -> None:
    forged = 'x"}\n{"event":"forged"}\r\u2028\x1b[31m'

    async def fail(request: bytes, context: Any) -> bytes:
        raise faults.NotFound(f"no model {request.decode()}")

    async with serve(Fail=fail, Speak=speak) as served:
        await served.call("Speak", forged.encode())
        with pytest.raises(grpc.aio.AioRpcError):
            await served.call("Fail", forged.encode())
    assert not of(log_lines, "forged")
    assert of(log_lines, "spoken")[0]["text"] == forged
    assert of(log_lines, "call refused")[0]["details"] == f"no model {forged}"


def test_libraries_lines_have_the_same_form(log_lines: Lines) -> None:
    logging.getLogger("some.library").warning("lost %d\nspans", 3)
    logging.getLogger("some.library").info("chatter")
    (line,) = log_lines()
    assert (line["event"], line["level"], line["logger"]) == ("lost 3\nspans", "warning", "some.library")


def test_a_libraries_traceback_is_one_line(log_lines: Lines) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("some.library").exception("it broke")
    (line,) = log_lines()
    assert "ValueError: x" in line["exception"]


def test_being_configured_again_writes_no_line_twice(log_lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("some.library").warning("once")
    assert json.loads(capsys.readouterr().err)["event"] == "once"
    assert log_lines() == []


async def test_a_traced_calls_lines_carry_its_trace(serve: Serve, log_lines: Lines) -> None:
    async with collecting() as collector, serve(Speak=speak, settings={"otlp_endpoint": collector.address}) as served:
        await served.call("Speak")
    assert of(log_lines, "spoken")[0]["trace_id"] == collector.the("test.Service/Speak").trace_id.hex()
