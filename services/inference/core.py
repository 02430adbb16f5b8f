"""The one path of every inference call, whatever door it came through: find, encode, remember, run, account."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from services.backends import Array
from services.chassis import tracing
from services.chassis.faults import InvalidField, WrongState
from services.inference.answer_key import answer_key
from services.inference.answers import Answers, Ledger
from services.inference.calls import Call, Options, Result, Served
from services.inference.engine import Engine
from services.inference.layout import per_token_outputs, stack
from services.inference.models import Models
from services.inference.rows import IDS, tensor_rows
from services.inference.served import ServedVersion
from services.inference.statistics import CallTimes
from services.inference.tickets import Item, RowAnswer
from services.inference.traffic.shadow import Outputs, Shadows
from services.inference.traffic.splits import Route
from services.repository.manifest import Signature, Task

MAX_STICKY_CHARS = 256
LOWEST_PRIORITY = -1  # below every caller's
_CALLS = {Task.EMBEDDING: "Embed", Task.CLASSIFICATION: "Classify"}


class Core:
    """Knows the models and the remembered answers; knows no wire. Without `shadows` no call is copied."""

    def __init__(self, models: Models, answers: Answers, max_rows: int, shadows: Shadows | None = None) -> None:
        self._models = models
        self._answers = answers
        self._max_rows = max_rows
        self._shadows = shadows if shadows is not None else Shadows(models, 0)

    def ledger(self, served: ServedVersion) -> Ledger:
        """What looking up a version's answers cost and saved."""
        return self._answers.ledger(served.namespace)

    async def run_texts(
        self, reference: str, task: Task | None, texts: Sequence[str], options: Options, outputs: Sequence[str] = ()
    ) -> Result:
        """Answers each text; `task` is what the caller takes the model to be for, None where it does not matter.

        Raises the faults that the contract lists.
        """
        route = self._route(reference, options)
        with route.counted(options.deadline):
            result = await self._run_texts(route, task, texts, options, outputs)
        if route.live is not None:
            self._shadows.offer(route, result.outputs, partial(self._copy_texts, texts, options, outputs))
        return result

    async def _copy_texts(self, texts: Sequence[str], options: Options, outputs: Sequence[str], reference: str, deadline: float) -> Outputs:
        return (await self.run_texts(reference, None, texts, _of_copy(options, deadline), outputs)).outputs

    async def _run_texts(self, route: Route, task: Task | None, texts: Sequence[str], options: Options, outputs: Sequence[str]) -> Result:
        served, channel = await self._models.ready(route.reference, options.deadline)
        found = served.signature.task
        if (task or found) is not found or not found.takes_text:
            right = _CALLS.get(found, "Predict")
            raise WrongState(f"model: {served.manifest.reference} is for {found}, not {task or 'texts'}; {right} answers it")
        wanted = _wanted(served.signature, outputs)
        self._check_rows("texts", len(texts))
        with served.lend() as engine:
            if not self._remembers(served, options):  # else some of its rows may be known
                _refuse_hopeless(engine, route.arm or channel, len(texts), options)
            begun = time.monotonic_ns()
            assert served.encoder is not None  # noqa: S101 (text tasks have one)
            with tracing.span("tokenize", {"hone.rows": len(texts)}):
                ids = await served.encoder.encode(texts, truncate=options.truncate)
            tokenization_ns = time.monotonic_ns() - begun
            engine.statistics.tokenization_ns += tokenization_ns
            engine.metrics.tokenization_seconds.observe(tokenization_ns / 1e9)
            rows = [{IDS: row} for row in ids]
            return await self._run(Call(served, engine, route, channel, rows, wanted, options, max(map(len, ids)), tokenization_ns))

    async def run_tensors(self, reference: str, inputs: Mapping[str, Array], outputs: Sequence[str], options: Options) -> Result:
        """Answers named tensors [rows, …]. Raises the faults that the contract lists."""
        route = self._route(reference, options)
        with route.counted(options.deadline):
            result = await self._run_tensors(route, inputs, outputs, options)
        if route.live is not None:
            self._shadows.offer(route, result.outputs, partial(self._copy_tensors, inputs, options, outputs))
        return result

    async def _copy_tensors(
        self, inputs: Mapping[str, Array], options: Options, outputs: Sequence[str], reference: str, deadline: float
    ) -> Outputs:
        return (await self.run_tensors(reference, inputs, outputs, _of_copy(options, deadline))).outputs

    def _route(self, reference: str, options: Options) -> Route:
        if len(options.sticky_key) > MAX_STICKY_CHARS:
            raise InvalidField("options.sticky_key", f"has {len(options.sticky_key)} characters, at most {MAX_STICKY_CHARS} are allowed")
        return self._models.splits.route(reference, options.sticky_key)

    async def _run_tensors(self, route: Route, inputs: Mapping[str, Array], outputs: Sequence[str], options: Options) -> Result:
        served, channel = await self._models.ready(route.reference, options.deadline)
        wanted = _wanted(served.signature, outputs)
        vocabulary = served.encoder.vocabulary_size if served.encoder is not None else 0
        rows = tensor_rows(served.signature, inputs, vocabulary)
        self._check_rows("inputs", len(rows))
        with served.lend() as engine:
            tokens = inputs[IDS].shape[1] if served.signature.task.takes_text else 0
            return await self._run(Call(served, engine, route, channel, rows, wanted, options, tokens))

    def _remembers(self, served: ServedVersion, options: Options) -> bool:
        return self._answers.enabled and served.remembers and not options.bypass_cache

    def _check_rows(self, field: str, rows: int) -> None:
        if not 0 < rows <= self._max_rows:
            raise InvalidField(field, f"must be 1 to {self._max_rows} rows, not {rows}")

    async def _run(self, call: Call) -> Result:
        served, engine, variant = call.served, call.engine, call.variant
        tracing.note({"hone.model": served.manifest.name, "hone.version": served.manifest.version, "hone.variant": variant})
        counted = engine.statistics
        counted.requests += 1
        counted.rows += len(call.rows)
        begun = time.monotonic_ns() - call.tokenization_ns
        try:
            with engine.variants.running_call(variant, call.options.deadline):
                answers = await self._answer(call)
        except Exception:
            counted.failed_requests += 1
            engine.times.failed(time.monotonic_ns() - begun)
            raise
        computed = time.monotonic_ns()
        result = _result(call, answers)
        cached = result.served.cached_rows
        engine.count_cached(cached)
        _count(engine.times, result.served, begun, computed, remembered=cached == len(answers))
        engine.variants.answered(variant, (time.monotonic_ns() - begun) / 1e9, len(answers), cached)
        return result

    async def _answer(self, call: Call) -> list[RowAnswer]:
        """Each row's answer: remembered, or computed once however many ask."""
        served, engine, outputs, options = call.served, call.engine, call.outputs, call.options
        if not self._remembers(served, options):
            return await engine.submit([Item(row, outputs) for row in call.rows], options.priority, options.deadline).answers()
        keys = [answer_key(served.digest, row, outputs) for row in call.rows]
        try:
            return await self._remembered_or_computed(call, keys)
        finally:
            self._answers.release(served.namespace, keys)

    async def _remembered_or_computed(self, call: Call, keys: Sequence[bytes]) -> list[RowAnswer]:
        served, engine, outputs, options = call.served, call.engine, call.outputs, call.options
        begun = time.monotonic_ns()
        with tracing.span("cache lookup", {"hone.rows": len(keys)}):
            known = await self._answers.get(served.namespace, keys)
        missing = {key: row for key, row in zip(keys, call.rows, strict=True) if key not in known}
        lookup_ns = time.monotonic_ns() - begun
        engine.times.looked_up(lookup_ns, knew_all=not missing)
        engine.metrics.lookup_seconds.observe(lookup_ns / 1e9)
        computed: dict[bytes, RowAnswer] = {}
        if missing:
            ticket = engine.submit([Item(row, outputs, key) for key, row in missing.items()], options.priority, options.deadline)
            computed = dict(zip(missing, await ticket.answers(), strict=True))
            compute_s = max(answer.compute_ns for answer in computed.values()) / 1e9
            self._answers.put(served.namespace, {key: answer.outputs for key, answer in computed.items()}, compute_s)
        return [computed[key] if key in computed else RowAnswer(known[key], 0, 0, 0) for key in keys]


def _refuse_hopeless(engine: Engine, variant: str, rows: int, options: Options) -> None:
    """Before tokenizing what would be refused anyway. Raises Overloaded, DeadlineMissed; counted as a call that failed then."""
    try:
        with engine.variants.running_call(variant, options.deadline):
            engine.check(rows, options.priority, options.deadline)
    except Exception:
        engine.statistics.requests += 1
        engine.statistics.rows += rows
        engine.statistics.failed_requests += 1
        engine.times.failed(0)
        raise


def _result(call: Call, answers: Sequence[RowAnswer]) -> Result:
    manifest = call.served.manifest
    per_token = per_token_outputs(call.served.signature)
    outputs = {name: stack([answer.outputs[name] for answer in answers], call.longest if name in per_token else 0) for name in call.outputs}
    origin = Served(
        model=manifest.name,
        version=manifest.version,
        variant=call.variant,
        cached_rows=sum(answer.batch_rows == 0 for answer in answers),
        tokens=call.tokens,
        batch_rows=max(answer.batch_rows for answer in answers),
        queue_ns=max(answer.queue_ns for answer in answers),
        tokenization_ns=call.tokenization_ns,
        compute_ns=max(answer.compute_ns for answer in answers),
        channel=call.route.channel or call.channel,
        revision=call.route.revision,
    )
    return Result(outputs, origin, call.served.signature.labels)


def _count(times: CallTimes, served: Served, begun: int, computed: int, *, remembered: bool) -> None:
    """`begun` and `computed` are when the call came and when its rows had run."""
    now = time.monotonic_ns()
    times.answered(now - begun, served.queue_ns, served.tokenization_ns, served.compute_ns, now - computed, remembered=remembered)


def _of_copy(options: Options, deadline: float) -> Options:
    """A copy measures its version, not the cache, and waits behind every caller's rows."""
    return replace(options, bypass_cache=True, priority=LOWEST_PRIORITY, deadline=deadline, sticky_key="")


def _wanted(signature: Signature, outputs: Sequence[str]) -> tuple[str, ...]:
    """The outputs asked for, each once; all where none is named. Raises InvalidField."""
    known = tuple(spec.name for spec in signature.outputs)
    for index, name in enumerate(outputs):
        if name not in known:
            raise InvalidField(f"outputs[{index}]", f"{name!r} is not among the model's outputs {', '.join(known)}")
    return tuple(dict.fromkeys(outputs)) or known
