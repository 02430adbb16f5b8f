"""What the teacher answers: run once over all examples and kept across jobs, or run beside the student when that is too much.

Kept twice: in a file on this machine, which goes when room is needed, and by the cache service, where other machines find it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from services import backends
from services.optimization import folder
from services.optimization.environment import library_versions
from services.optimization.failures import BadModel, UnsupportedOperator
from services.optimization.remembered import NOTHING, Arrays, Remembered, digest_for
from services.optimization.rows import Rows, batches
from services.optimization.techniques.technique import Model
from services.optimization.training.data import PER_TOKEN, tensors
from services.optimization.training.internals import OUTPUT, taken
from services.repository.manifest import Format

LARGEST_CACHE_BYTES = 1 << 30
BATCH_ROWS = 32

_LAYOUT = 1  # of the file; rises whenever what lies in it changes
_DIGEST = "sha256"
_LENGTHS, _PER_TOKEN, _OF = "lengths", "per_token", "of/"  # names in the cache

Answers = Mapping[str, Tensor]  # by the names of `internals`
Advance = Callable[[float], None]


class Teacher(Protocol):
    """`kind` is what the report says of where the answers come from."""

    kind: str

    def answers(self, positions: Sequence[int]) -> Answers:
        """FP32 on the run's device: [rows, width], or [rows, tokens, width] padded with zeros on the right."""


class NoTeacher:
    kind = "unused"

    def answers(self, positions: Sequence[int]) -> Answers:
        return {}


class LiveTeacher:
    """The model itself, asked for every batch."""

    kind = "live"

    def __init__(self, module: nn.Module, rows: Rows, wanted: Sequence[str], device: torch.device) -> None:
        self._module = module.to(device).eval()
        self._rows = rows
        self._wanted = wanted
        self._device = device

    def answers(self, positions: Sequence[int]) -> Answers:
        # Not inference mode: its tensors may not take part in a gradient.
        with torch.no_grad(), taken(self._module, self._wanted) as internals:
            output = self._module(**tensors(self._rows, positions, self._device)).float()
            found = {OUTPUT: output, **internals}
        return {name: found[name].float() for name in self._wanted}


class KeptTeacher:
    """Flat answers [all tokens or rows, width] by name, mapped from their file."""

    def __init__(self, flat: Mapping[str, Tensor], layout: "Layout", device: torch.device, kind: str) -> None:
        self.kind = kind
        self._flat = flat
        self._layout = layout
        self._device = device

    def answers(self, positions: Sequence[int]) -> Answers:
        return {name: self._gather(name, positions) for name in self._flat}

    def _gather(self, name: str, positions: Sequence[int]) -> Tensor:
        if name not in self._layout.per_token:
            return self._flat[name][list(positions)].float().to(self._device)
        parts = [self._flat[name][slice(*self._layout.span(position))].float() for position in positions]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True).to(self._device)


@dataclass(frozen=True)
class Layout:
    """Where each row's answers lie in a flat array: one line a row, or for names in `per_token` a line a token."""

    lengths: NDArray[np.int64]  # [rows], in tokens
    widths: Mapping[str, int]
    per_token: frozenset[str]

    def span(self, position: int) -> tuple[int, int]:
        end = int(self._ends[position])
        return end - int(self.lengths[position]), end

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths)

    def lines(self, name: str) -> int:
        return int(self.lengths.sum()) if name in self.per_token else len(self.lengths)

    @property
    def size_bytes(self) -> int:
        return sum(self.lines(name) * width * dtype_of(name).itemsize for name, width in self.widths.items())


def dtype_of(name: str) -> torch.dtype:
    """Half precision for what lies inside: a loss between noisy states of a student gains nothing from more."""
    return torch.float32 if name == OUTPUT else torch.float16


def load_teacher(original: Model) -> nn.Module:
    """In FP32 and evaluation mode, whatever its weights are kept in. Raises BadModel, and UnsupportedOperator for other formats."""
    if original.signature.format is not Format.HUGGINGFACE:
        raise UnsupportedOperator(f"the teacher must be a Hugging Face folder; it is {original.signature.format}")
    from services.backends.torch import load_module

    try:
        return load_module(original.folder, original.signature.model_copy(update={"dtype": "float32"}))
    except backends.LoadError as error:
        raise BadModel(f"teacher: {error}") from error


@dataclass(frozen=True)
class TeacherOutputs:
    """The kept answers of one teacher on one set of examples, under a name that carries the digests of both."""

    original: Model
    rows: Rows
    examples_digest: str
    wanted: Sequence[str]
    outputs: Path
    device: torch.device
    largest_bytes: int = LARGEST_CACHE_BYTES
    remembered: Remembered = NOTHING

    def open(self, advance: Advance) -> Teacher:
        """From the file, from the cache, else by running the teacher, which `advance` hears of in fractions.

        Raises BadModel, UnsupportedOperator.
        """
        if not self.wanted:
            return NoTeacher()
        path = self._path()
        layout_and_flat = _read(path) or self._recalled(path)
        if layout_and_flat is not None:
            return KeptTeacher(layout_and_flat[1], layout_and_flat[0], self.device, "cached")
        live = LiveTeacher(load_teacher(self.original), self.rows, self.wanted, self.device)
        layout = self._layout(live)
        if layout.size_bytes > self.largest_bytes:
            return live
        flat = self._compute(live, layout, advance)
        _write(path, layout, flat)
        self.remembered.keep(_digest_of(path), _arrays(layout, flat))
        written = _read(path)
        return KeptTeacher(written[1], layout, self.device, "computed") if written else live

    def _recalled(self, path: Path) -> tuple[Layout, dict[str, Tensor]] | None:
        """Written to the file too, where the next run finds it sooner. Raises OSError."""
        arrays = self.remembered.find(_digest_of(path))
        if arrays is None:
            return None
        layout, flat = _layout_and_flat(arrays)
        _write(path, layout, flat)
        return layout, flat

    def _path(self) -> Path:
        content = {
            "layout": _LAYOUT,
            "libraries": dict(library_versions()),
            "teacher": folder.content_digest(self.original.folder, self.original.signature),
            "examples": self.examples_digest,
            "lengths": hashlib.sha256(self.rows.lengths.tobytes()).hexdigest(),  # as `max_tokens` cut them
            "wanted": list(self.wanted),
        }
        return self.outputs / f"teacher-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.safetensors"

    def _layout(self, live: LiveTeacher) -> Layout:
        """By the shapes of one row's answers."""
        sample = live.answers([0])
        is_text = self.original.signature.task.takes_text
        of_tokens = self.original.signature.task in PER_TOKEN
        per_token = frozenset(name for name in sample if name != OUTPUT or of_tokens)
        lengths = self.rows.lengths
        if not is_text:
            constant = next((sample[name].shape[1] for name in sorted(per_token)), 0)
            lengths = np.full(len(self.rows), constant, np.int64)
        return Layout(lengths, {name: int(answer.shape[-1]) for name, answer in sample.items()}, per_token)

    def _compute(self, live: LiveTeacher, layout: Layout, advance: Advance) -> dict[str, Tensor]:
        flat = {name: torch.empty(layout.lines(name), width, dtype=dtype_of(name)) for name, width in layout.widths.items()}
        done = 0
        for positions, _ in batches(self.rows, BATCH_ROWS):
            for name, answer in live.answers(positions).items():
                _scatter(flat[name], layout, name, positions, answer.cpu())
            done += len(positions)
            advance(done / len(self.rows))
        return flat


def _scatter(flat: Tensor, layout: Layout, name: str, positions: Sequence[int], answer: Tensor) -> None:
    limit = torch.finfo(flat.dtype).max
    answer = answer.clamp(-limit, limit)
    if name not in layout.per_token:
        flat[list(positions)] = answer.to(flat.dtype)
        return
    for row, position in zip(answer, positions, strict=True):
        start, end = layout.span(position)
        flat[start:end] = row[: end - start].to(flat.dtype)


def _digest_of(path: Path) -> str:
    return digest_for("teacher", {"file": path.name})


def _arrays(layout: Layout, flat: Mapping[str, Tensor]) -> Arrays:
    """Under their names, prefixed; beside them, the layout."""
    per_token = np.array([name in layout.per_token for name in sorted(flat)], np.bool_)
    return {_LENGTHS: layout.lengths, _PER_TOKEN: per_token, **{f"{_OF}{name}": tensor.numpy() for name, tensor in flat.items()}}


def _layout_and_flat(arrays: Arrays) -> tuple[Layout, dict[str, Tensor]]:
    """What `_arrays` was given."""
    flat = {name.removeprefix(_OF): torch.from_numpy(array) for name, array in sorted(arrays.items()) if name.startswith(_OF)}
    per_token = frozenset(name for name, is_of_tokens in zip(flat, arrays[_PER_TOKEN], strict=True) if is_of_tokens)
    return Layout(arrays[_LENGTHS], {name: tensor.shape[-1] for name, tensor in flat.items()}, per_token), flat


def _digest(flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(flat.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _write(path: Path, layout: Layout, flat: Mapping[str, Tensor]) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}.part")
    content = {**flat, "lengths": torch.from_numpy(layout.lengths)}
    try:
        save_file(content, staged, {_DIGEST: _digest(content), "per_token": json.dumps(sorted(layout.per_token))})
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Layout, dict[str, Tensor]] | None:
    """None when it is not there or not what was written."""
    with suppress(SafetensorError, OSError, ValueError, KeyError), safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        if metadata[_DIGEST] == _digest(flat):
            os.utime(path)  # who shrinks the folder removes what was of use longest ago
            lengths = flat.pop("lengths").numpy()
            per_token = frozenset(json.loads(metadata["per_token"]))
            return Layout(lengths, {name: tensor.shape[-1] for name, tensor in flat.items()}, per_token), flat
    return None
