"""Requests of every kind, as strangers send them: short and long, remembered and new, cancelled, hurried and wrong."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from hone.inference.v1 import inference_pb2 as pb

from benchmarks.sentences import sentences

PATIENT_S = 60.0
# What a request of a kind may end with; a version that makes room may be asked for at any time.
ALWAYS = frozenset({"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED"})
ALLOWED = {
    "short": ALWAYS,
    "repeated": ALWAYS,
    "long": ALWAYS,
    "rows": ALWAYS,
    "tensors": ALWAYS,
    "cancelled": ALWAYS | {"CANCELLED"},
    "hurried": ALWAYS | {"DEADLINE_EXCEEDED", "CANCELLED"},
    "wrong": frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}) | ALWAYS - {"OK"},
}
WEIGHTS = {"short": 30, "repeated": 25, "long": 4, "rows": 8, "tensors": 8, "cancelled": 10, "hurried": 5, "wrong": 10}

Stub = Any  # inference_pb2_grpc.InferenceServiceAsyncStub, which exists for type checkers alone


class Mixture:
    """Draws requests to text models, each its share of them, and counts how they end, by kind and code."""

    def __init__(self, stub: Stub, models: Sequence[str], seed: int, shares: Sequence[float] | None = None) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        self._stub = stub
        self._models = models
        self._shares = shares
        self._draw = random.Random(seed)
        self._known = sentences(400, seed)
        self._kinds: dict[str, Callable[[str], Awaitable[object]]] = {
            "short": lambda model: self._embed(model, [self._new()]),
            "repeated": lambda model: self._embed(model, [self._draw.choice(self._known[:50])]),
            "long": lambda model: self._embed(model, [" ".join(self._draw.choices(self._known, k=12))]),
            "rows": lambda model: self._embed(model, [self._new() for _ in range(self._draw.randint(2, 8))]),
            "tensors": self._predict,
            "cancelled": self._cancelled,
            "hurried": lambda model: self._embed(model, [self._new()], timeout=self._draw.uniform(0.0005, 0.01)),
            "wrong": self._wrong,
        }

    @property
    def unexpected(self) -> list[tuple[str, str]]:
        """Kinds and the codes that they must not end with, of those that came."""
        return sorted((kind, code) for kind, code in self.ended if code not in ALLOWED[kind])

    async def run(self, requests: int, callers: int) -> None:
        """`callers` send one request after the other, `requests` in all."""
        left = iter(range(requests))

        async def caller() -> None:
            for _ in left:
                await self._one()

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def _one(self) -> None:
        (kind,) = self._draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
        try:
            (model,) = self._draw.choices(self._models, self._shares)
            await self._kinds[kind](model)
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:  # what a call raises that its own side cancelled
            code = "CANCELLED"
        self.ended[kind, code] += 1

    def _new(self) -> str:
        return f"{self._draw.choice(self._known)[:120]} {self._draw.getrandbits(40)}"

    def _embed(self, model: str, texts: Sequence[str], timeout: float = PATIENT_S) -> Any:
        return self._stub.Embed(pb.EmbedRequest(model=model, texts=texts, options=pb.CallOptions(truncate=True)), timeout=timeout)

    def _predict(self, model: str) -> Any:
        ids = np.array([[101, *self._draw.choices(range(1000, 20000), k=self._draw.randint(1, 40)), 102]], np.int64)
        tensor = pb.Tensor(datatype="INT64", shape=ids.shape, data=ids.tobytes())
        inputs = [pb.NamedTensor(name="input_ids", tensor=tensor)]
        return self._stub.Predict(pb.PredictRequest(model=model, inputs=inputs), timeout=PATIENT_S)

    async def _cancelled(self, model: str) -> None:
        call = self._embed(model, [self._new()])
        asyncio.get_running_loop().call_later(self._draw.uniform(0, 0.03), call.cancel)
        await call

    def _wrong(self, model: str) -> Any:
        wrong: list[Callable[[], Any]] = [
            lambda: self._embed(model, [""]),
            lambda: self._embed(model, []),
            lambda: self._embed(f"{model}@999", ["x"]),
            lambda: self._embed("nobody", ["x"]),
            lambda: self._embed("../" + model, ["x"]),
            lambda: self._stub.Classify(pb.ClassifyRequest(model=model, texts=["x"]), timeout=PATIENT_S),
            lambda: self._stub.Predict(pb.PredictRequest(model=model), timeout=PATIENT_S),
        ]
        return self._draw.choice(wrong)()
