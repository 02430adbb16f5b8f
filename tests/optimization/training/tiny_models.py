"""Models of a few thousand weights with a vocabulary of their own: every run takes moments."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.optimization.examples import Examples
from services.optimization.jobs.job import NO_METRICS
from services.optimization.techniques.technique import Context, Model
from services.repository.manifest import Format, Pooling, Signature, Task, TensorSpec

WORDS = tuple(f"w{index}" for index in range(30))
LABELS = ("even", "odd", "none")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))


def build(folder: Path, task: Task = Task.CLASSIFICATION, *, seed: int = 0, **config: Any) -> Model:
    """A random BERT (GPT-2 for next tokens) of 2 layers, 16 wide, 2 heads, without dropout unless `config` says so."""
    import torch
    import transformers

    small = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 64}
    bert = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32, "num_labels": len(LABELS)}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
    torch.manual_seed(seed)
    made: Any
    if task is Task.CAUSAL_LM:
        gpt = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3}
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2}
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=small["vocab_size"], **(gpt | still | config)))
    else:
        kind = {
            Task.CLASSIFICATION: transformers.BertForSequenceClassification,
            Task.TOKEN_CLASSIFICATION: transformers.BertForTokenClassification,
            Task.EMBEDDING: transformers.BertModel,
        }[task]
        made = kind(transformers.BertConfig(**(small | bert | still | config)))
    made.save_pretrained(folder)
    write_tokenizer(folder)
    return Model(folder, signature(task, made.config.vocab_size))


def signature(task: Task, vocabulary: int = len(SPECIAL) + len(WORDS)) -> Signature:
    outputs = {
        Task.CLASSIFICATION: TensorSpec(name="logits", datatype="FP32", shape=(-1, len(LABELS))),
        Task.TOKEN_CLASSIFICATION: TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, len(LABELS))),
        Task.CAUSAL_LM: TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, vocabulary)),
        Task.EMBEDDING: TensorSpec(name="embedding", datatype="FP32", shape=(-1, 16)),
    }
    return Signature(
        task=task,
        format=Format.HUGGINGFACE,
        inputs=tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")),
        outputs=(outputs[task],),
        labels=LABELS if task in (Task.CLASSIFICATION, Task.TOKEN_CLASSIFICATION) else (),
        max_tokens=32,
        pooling=Pooling.MEAN if task is Task.EMBEDDING else None,
    )


def sentences(count: int, seed: int = 0) -> Examples:
    """Texts of 2 to 12 words, labelled by their first word's number."""
    random = np.random.default_rng(seed)
    rows = [random.integers(0, len(WORDS), random.integers(2, 13)) for _ in range(count)]
    labels = np.array([2 if row[0] < 5 else row[0] % 2 for row in rows], np.int64)
    return Examples(texts=tuple(" ".join(WORDS[index] for index in row) for row in rows), labels=labels)


ContextOf = Callable[..., Context]


class Told(list[tuple[float, str, int, Mapping[str, float]]]):
    """Everything that was told."""

    def __call__(self, fraction: float, message: str, *, step: int = 0, metrics: Mapping[str, float] = NO_METRICS) -> None:
        self.append((fraction, message, step, metrics))
