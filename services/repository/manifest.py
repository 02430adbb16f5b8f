"""What a model folder says of itself: `manifest.json`, its only description, read by everyone who loads it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

FILE_NAME = "manifest.json"


class Task(StrEnum):
    """What a model answers."""

    EMBEDDING = "embedding"
    CLASSIFICATION = "classification"
    TENSOR = "tensor"
    TOKEN_CLASSIFICATION = "token_classification"  # noqa: S105  a task, no password
    IMAGE_CLASSIFICATION = "image_classification"
    CAUSAL_LM = "causal_lm"

    @property
    def takes_text(self) -> bool:
        """Whether its inputs are token ids, [rows, tokens]."""
        return self in _TEXT_TASKS


_TEXT_TASKS = frozenset({Task.EMBEDDING, Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.CAUSAL_LM})


class Format(StrEnum):
    """How the weights are written."""

    HUGGINGFACE = "huggingface"  # config.json + model.safetensors (+ tokenizer.json)
    ONNX = "onnx"  # model.onnx in one file (+ tokenizer.json)
    # Programs: made by our own jobs alone and known by digest; an uploaded one is refused.
    TORCHSCRIPT = "torchscript"  # model.ts
    AOTINDUCTOR = "aotinductor"  # model.pt2
    OPENVINO = "openvino"  # model.xml + model.bin

    @property
    def is_program(self) -> bool:
        return self in (Format.TORCHSCRIPT, Format.AOTINDUCTOR, Format.OPENVINO)


class Pooling(StrEnum):
    """How token vectors become one vector per text (embedding models only)."""

    MEAN = "mean"
    CLS = "cls"


class Frozen(BaseModel):
    # JSON knows neither infinity nor NaN: what was written with one could not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Frozen):
    """A named tensor; shape[0] is the row and -1, as is every other dimension that varies."""

    name: str
    datatype: str  # the Open Inference Protocol's names: FP32, INT64, …
    shape: tuple[int, ...]


class FileEntry(Frozen):
    path: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Signature(Frozen):
    """Everything besides the files that changes a model's answers.

    Text models take `input_ids` and `attention_mask`, INT64 [rows, tokens] (and `token_type_ids` where `inputs` says so),
    image models `pixel_values` FP32 [rows, channels, height, width]. They answer one output: `embedding` FP32
    [rows, dimensions], pooled and normalized inside the model, or `logits` FP32: [rows, labels] of a classification,
    [rows, tokens, labels] of a token classification, [rows, tokens, vocabulary] of a causal language model.
    """

    task: Task
    format: Format
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    max_tokens: int = Field(0, ge=0)
    pooling: Pooling | None = None
    normalize: bool = False
    pad_token_id: int = 0
    dtype: str = "float32"  # of the weights, as torch names it


class Manifest(Frozen):
    """A sealed version's description."""

    name: str
    version: int = Field(ge=1)
    signature: Signature
    files: tuple[FileEntry, ...]
    created: datetime
    parent: str = ""
    job: str = ""
    upload_id: str = ""
    recipe: Mapping[str, Any] = {}
    report: Mapping[str, Any] = {}

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the files' digests and the signature: two versions with one digest answer equally."""
        content = {
            "files": sorted((entry.path, entry.sha256) for entry in self.files),
            "signature": self.signature.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a version folder's manifest. Raises OSError or pydantic.ValidationError."""
        return cls.model_validate_json((folder / FILE_NAME).read_bytes())
