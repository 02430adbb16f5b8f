"""The one path of every inference call, whatever door it came through: find, encode, remember, run, account."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.backends import Array
from services.chassis.faults import InvalidField, WrongState
from services.inference.answer_key import answer_key
from services.inference.answers import Answers
from services.inference.engine import Engine
from services.inference.layout import Values, per_token_outputs, stack
from services.inference.models import Models
from services.inference.rows import IDS, tensor_rows
from services.inference.served import ServedVersion
from services.inference.tickets import Item, RowAnswer
from services.repository.manifest import Signature, Task

_CALLS = {Task.EMBEDDING: "Embed", Task.CLASSIFICATION: "Classify"}


@dataclass(frozen=True, slots=True)
class Options:
    """`deadline` is on the monotonic clock. Calls of equal `sticky_key` get the same variant of a model whose traffic is split."""

    truncate: bool = False
    bypass_cache: bool = False
    priority: int = 0
    deadline: float = math.inf
    sticky_key: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """Where an answer came from and where its time went; see the contract's message of the same name."""

    model: str
    version: int
    variant: str
    cached_rows: int
    tokens: int
    batch_rows: int
    queue_ns: int
    tokenization_ns: int
    compute_ns: int


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs with the rows as first dimension, in the order asked."""

    outputs: Mapping[str, Array]
    served: Served
    labels: tuple[str, ...] = ()


class Core:
    """Knows the models and the remembered answers; knows no wire."""

    def __init__(self, models: Models, answers: Answers, max_rows: int) -> None:
        self._models = models
        self._answers = answers
        self._max_rows = max_rows

    async def run_texts(
        self, reference: str, task: Task | None, texts: Sequence[str], options: Options, outputs: Sequence[str] = ()
    ) -> Result:
        """Answers each text; `task` is what the caller takes the model to be for, None where it does not matter.

        Raises the faults that the contract lists.
        """
        served, variant = self._models.find(reference)
        found = served.signature.task
        if (task or found) is not found or not found.takes_text:
            right = _CALLS.get(found, "Predict")
            raise WrongState(f"model: {served.manifest.reference} is for {found}, not {task or 'texts'}; {right} answers it")
        wanted = _wanted(served.signature, outputs)
        self._check_rows("texts", len(texts))
        with served.lend() as engine:
            begun = time.monotonic_ns()
            assert served.encoder is not None  # noqa: S101 (text tasks have one)
            ids = await served.encoder.encode(texts, truncate=options.truncate)
            tokenization_ns = time.monotonic_ns() - begun
            engine.statistics.tokenization_ns += tokenization_ns
            return await self._run(
                served, variant, engine, [{IDS: row} for row in ids], wanted, options, tokenization_ns, max(map(len, ids))
            )

    async def run_tensors(self, reference: str, inputs: Mapping[str, Array], outputs: Sequence[str], options: Options) -> Result:
        """Answers named tensors [rows, …]. Raises the faults that the contract lists."""
        served, variant = self._models.find(reference)
        wanted = _wanted(served.signature, outputs)
        vocabulary = served.encoder.vocabulary_size if served.encoder is not None else 0
        rows = tensor_rows(served.signature, inputs, vocabulary)
        self._check_rows("inputs", len(rows))
        with served.lend() as engine:
            tokens = inputs[IDS].shape[1] if served.signature.task.takes_text else 0
            return await self._run(served, variant, engine, rows, wanted, options, 0, tokens)

    def _check_rows(self, field: str, rows: int) -> None:
        if not 0 < rows <= self._max_rows:
            raise InvalidField(field, f"must be 1 to {self._max_rows} rows, not {rows}")

    async def _run(
        self,
        served: ServedVersion,
        variant: str,
        engine: Engine,
        rows: Sequence[Values],
        outputs: tuple[str, ...],
        options: Options,
        tokenization_ns: int,
        padded_tokens: int = 0,
    ) -> Result:
        """`padded_tokens` is the length of the request's rows, which answers per token have too."""
        counted = engine.statistics
        counted.requests += 1
        counted.rows += len(rows)
        try:
            answers = await self._answer(served, engine, rows, outputs, options)
        except Exception:
            counted.failed_requests += 1
            raise
        cached = sum(answer.batch_rows == 0 for answer in answers)
        engine.count_cached(cached)
        per_token = per_token_outputs(served.signature)
        return Result(
            {name: stack([answer.outputs[name] for answer in answers], padded_tokens if name in per_token else 0) for name in outputs},
            Served(
                model=served.manifest.name,
                version=served.manifest.version,
                variant=variant,
                cached_rows=cached,
                tokens=sum(len(row[IDS]) for row in rows) if served.signature.task.takes_text else 0,
                batch_rows=max(answer.batch_rows for answer in answers),
                queue_ns=max(answer.queue_ns for answer in answers),
                tokenization_ns=tokenization_ns,
                compute_ns=max(answer.compute_ns for answer in answers),
            ),
            served.signature.labels,
        )

    async def _answer(
        self, served: ServedVersion, engine: Engine, rows: Sequence[Values], outputs: tuple[str, ...], options: Options
    ) -> list[RowAnswer]:
        """Each row's answer: remembered, or computed once however many ask."""
        if options.bypass_cache or not self._answers.enabled:
            return await engine.submit([Item(row, outputs) for row in rows], options.priority, options.deadline).answers()
        keys = [answer_key(served.manifest.digest, row, outputs) for row in rows]
        known = await self._answers.get(served.namespace, keys)
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        computed: dict[bytes, RowAnswer] = {}
        if missing:
            ticket = engine.submit([Item(row, outputs, key) for key, row in missing.items()], options.priority, options.deadline)
            computed = dict(zip(missing, await ticket.answers(), strict=True))
            self._answers.put(served.namespace, {key: answer.outputs for key, answer in computed.items()})
        return [computed[key] if key in computed else RowAnswer(known[key], 0, 0, 0) for key in keys]


def _wanted(signature: Signature, outputs: Sequence[str]) -> tuple[str, ...]:
    """The outputs asked for, each once; all where none is named. Raises InvalidField."""
    known = tuple(spec.name for spec in signature.outputs)
    for index, name in enumerate(outputs):
        if name not in known:
            raise InvalidField(f"outputs[{index}]", f"{name!r} is not among the model's outputs {', '.join(known)}")
    return tuple(dict.fromkeys(outputs)) or known
