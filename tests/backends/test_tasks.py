"""Every task's real model, loaded from its folder: what it answers, and that it has learnt what it was trained for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import corpus
from services import backends
from services.backends.text import pad
from services.backends.torch import load_module
from services.optimization.examples import Examples
from services.optimization.rows import TextRows, encode, prepare
from services.repository.manifest import Signature
from tests.models import (
    causal_lm,
    causal_lm_signature,
    digits_resnet,
    digits_resnet_signature,
    digits_vit,
    digits_vit_signature,
    token_classifier,
    token_classifier_signature,
)

IMAGES = [(digits_resnet, digits_resnet_signature()), (digits_vit, digits_vit_signature())]
PER_TOKEN = [(token_classifier, token_classifier_signature()), (causal_lm, causal_lm_signature())]


def logits(folder: Path, signature: Signature, inputs: backends.Array | dict[str, backends.Array]) -> backends.Array:
    found = backends.load(folder, signature, threads=1).run(inputs, ["logits"])["logits"]
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize(("build", "signature"), IMAGES)
def test_image_classifiers_know_digits_that_they_have_not_seen(build, signature, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    held_out = corpus.digits("held_out")
    found = logits(build(tmp_path / "model"), signature, {"pixel_values": held_out.pixel_values})
    assert found.shape == (len(held_out.labels), 10)
    assert (found.argmax(axis=1) == held_out.labels).mean() > 0.9


@pytest.mark.parametrize(("build", "signature"), IMAGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_take_the_dtype_of_the_weights(build, signature, dtype: torch.dtype, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    module = load_module(build(tmp_path / "model"), signature)
    pixels = torch.from_numpy(corpus.digits("held_out").pixel_values[:4])
    with torch.inference_mode():
        wanted = module(pixel_values=pixels)
        found = module.to(dtype)(pixel_values=pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.3)


def test_an_image_of_another_size_is_a_run_error(tmp_path: Path) -> None:
    backend = backends.load(digits_resnet(tmp_path / "model"), digits_resnet_signature(), threads=1)
    with pytest.raises(backends.RunError, match=r"\[2, 3, 8, 8\]; the model takes FP32"):
        backend.run({"pixel_values": np.zeros((2, 3, 8, 8), np.float32)}, ["logits"])


def test_token_classifier_tags_source_that_it_has_not_seen(tmp_path: Path) -> None:
    folder, signature = token_classifier(tmp_path / "model"), token_classifier_signature()
    lines = corpus.source_lines(100, "held_out")
    rows = prepare(folder, signature, Examples(words=tuple(lines.words), word_labels=tuple(lines.tags)))
    assert isinstance(rows, TextRows)
    assert rows.labels is not None
    found = logits(folder, signature, dict(rows.batch(range(len(rows)))))
    assert found.shape[2] == len(corpus.TAGS)
    hits = [found[index, : len(row)].argmax(axis=1)[row >= 0] == row[row >= 0] for index, row in enumerate(rows.labels)]
    assert np.concatenate(hits).mean() > 0.9


def test_causal_lm_predicts_sentences_that_it_has_not_seen(tmp_path: Path) -> None:
    folder, signature = causal_lm(tmp_path / "model"), causal_lm_signature()
    batch = pad(encode(folder, signature, corpus.prose(60, "held_out")), signature)
    found = torch.from_numpy(logits(folder, signature, dict(batch))).log_softmax(2)
    target, counted = torch.from_numpy(batch["input_ids"])[:, 1:], torch.from_numpy(batch["attention_mask"])[:, 1:]
    surprise = -found[:, :-1].gather(2, target[..., None])[..., 0]
    perplexity = float(torch.exp((surprise * counted).sum() / counted.sum()))
    assert perplexity < found.shape[2] / 3  # of a guess that knows no word from another


@pytest.mark.parametrize(("build", "signature"), PER_TOKEN)
def test_padding_changes_no_answer_per_token(build, signature, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = build(tmp_path / "model")
    rows = [np.arange(3, 3 + length, dtype=np.int64) for length in (4, 9)]
    together = logits(folder, signature, dict(pad(rows, signature)))
    for index, row in enumerate(rows):
        np.testing.assert_allclose(together[index, : len(row)], logits(folder, signature, dict(pad([row], signature)))[0], atol=1e-4)
