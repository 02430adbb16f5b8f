"""One small model of random weights per way of naming modules: for laws that hold whatever a model has learnt."""

from pathlib import Path
from typing import Any

import torch
import transformers

from services.repository.manifest import Format, Signature, Task, TensorSpec

_SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}
_TEXT = _SIZES | {"vocab_size": 50}
_IMAGE = {"image_size": 8, "patch_size": 2, "num_channels": 1}
_BLOCKS = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic", "downsample_in_first_stage": False}
_DISTIL = {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 3, "vocab_size": 50}
_GPT2 = {"n_embd": 32, "n_head": 4, "n_inner": 64, "n_layer": 3, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = {"num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 0}
_GROUPED = _LLAMA | {"num_attention_heads": 8, "num_key_value_heads": 4}

# Every transformer has three layers of four heads (or groups of them), 64 feed-forward neurons and 32 positions wide.
TRANSFORMERS = {
    "bert": ("BertForSequenceClassification", transformers.BertConfig, _TEXT, Task.CLASSIFICATION),
    "bert-embedding": ("BertModel", transformers.BertConfig, _TEXT, Task.EMBEDDING),
    "roberta": ("RobertaForTokenClassification", transformers.RobertaConfig, _TEXT | {"pad_token_id": 1}, Task.TOKEN_CLASSIFICATION),
    "distilbert": ("DistilBertForSequenceClassification", transformers.DistilBertConfig, _DISTIL, Task.CLASSIFICATION),
    "vit": ("ViTForImageClassification", transformers.ViTConfig, _SIZES | _IMAGE, Task.IMAGE_CLASSIFICATION),
    "deit": ("DeiTForImageClassification", transformers.DeiTConfig, _SIZES | _IMAGE, Task.IMAGE_CLASSIFICATION),
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config, _GPT2, Task.CAUSAL_LM),
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig, _TEXT | _LLAMA, Task.CAUSAL_LM),
    "llama-grouped": ("LlamaForCausalLM", transformers.LlamaConfig, _TEXT | _GROUPED, Task.CAUSAL_LM),
}
FAMILIES = TRANSFORMERS | {
    "resnet": ("ResNetForImageClassification", transformers.ResNetConfig, _BLOCKS | {"num_channels": 1}, Task.IMAGE_CLASSIFICATION),
    "albert": ("AlbertModel", transformers.AlbertConfig, _TEXT | {"embedding_size": 16}, Task.EMBEDDING),
}


def build(family: str, folder: Path) -> tuple[Path, Signature]:
    """Writes the model; answers its folder and signature."""
    name, config, sizes, task = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, name)(config(**sizes))
        for parameter in model.parameters():  # biases and class tokens start as zeros, which hide what was cut wrongly
            if parameter.dim() == 1 or parameter.shape[0] == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder, _signature(task)


def _signature(task: Task) -> Signature:
    inputs = [TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")]
    if not task.takes_text:
        inputs = [TensorSpec(name="pixel_values", datatype="FP32", shape=(-1, 1, 8, 8))]
    output = TensorSpec(name="embedding" if task is Task.EMBEDDING else "logits", datatype="FP32", shape=(-1, 32))
    return Signature(task=task, format=Format.HUGGINGFACE, inputs=tuple(inputs), outputs=(output,))


def inputs(signature: Signature, size: int) -> dict[str, torch.Tensor]:
    """Noise: three texts of up to `size` tokens, the second a third as long; or `size` images."""
    generator = torch.Generator().manual_seed(size)
    if not signature.task.takes_text:
        return {"pixel_values": torch.rand(size, 1, 8, 8, generator=generator)}
    mask = torch.ones(3, size, dtype=torch.int64)
    mask[1, max(1, size // 3) :] = 0
    return {"input_ids": torch.randint(2, 50, (3, size), generator=generator), "attention_mask": mask}
