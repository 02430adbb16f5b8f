"""Where transformers keeps the parts of a layer, by model type: names, and which axis of a weight is which width."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from services.optimization.failures import UnsupportedOperator


class Width(StrEnum):
    """What an axis of a weight runs over; its value is its letter in the patterns below."""

    HIDDEN = "H"  # the residual stream
    ATTENTION = "A"  # all heads' dimensions, head by head
    FUSED = "3"  # queries', keys' and values' ATTENTION one after the other
    FEED_FORWARD = "F"
    OTHER = "-"


@dataclass(frozen=True)
class Anatomy:
    """Names below a layer, dotted. `axes` are (pattern of a parameter's name, a letter of Width per axis), the first match counts."""

    query: str
    key: str
    value: str
    axes: Sequence[tuple[str, str]]
    fused: bool = False  # `query`, `key` and `value` are one module that answers all three, one after the other
    feed_forward_size: str = "intermediate_size"  # its name in the config

    def widths(self, name: str, weight: Tensor) -> tuple[Width, ...]:
        """Raises UnsupportedOperator for a parameter that the table does not know."""
        for pattern, letters in self.axes:
            if re.search(rf"(?:^|\.){pattern}$", name):
                if len(letters) != weight.ndim:
                    break
                return tuple(Width(letter) for letter in letters)
        raise UnsupportedOperator(f"the weight {name!r} {list(weight.shape)} is of no known place in the model: its width cannot change")


_BERT = Anatomy(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    axes=(
        (r"(?:word|position|token_type)_embeddings\.weight", "-H"),
        (r"LayerNorm\.(?:weight|bias)", "H"),
        (r"self\.(?:query|key|value)\.weight", "AH"),
        (r"self\.(?:query|key|value)\.bias", "A"),
        (r"attention\.output\.dense\.weight", "HA"),
        (r"intermediate\.dense\.weight", "FH"),
        (r"intermediate\.dense\.bias", "F"),
        (r"output\.dense\.weight", "HF"),
        (r"output\.dense\.bias", "H"),
        (r"(?:pooler|classifier)\.dense\.weight", "HH"),
        (r"(?:pooler|classifier)\.dense\.bias", "H"),
        (r"classifier(?:\.out_proj)?\.weight", "-H"),
        (r"classifier(?:\.out_proj)?\.bias", "-"),
    ),
)
_DISTILBERT = Anatomy(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    feed_forward_size="hidden_dim",
    axes=(
        (r"(?:word|position)_embeddings\.weight", "-H"),
        (r"(?:LayerNorm|sa_layer_norm|output_layer_norm)\.(?:weight|bias)", "H"),
        (r"attention\.[qkv]_lin\.weight", "AH"),
        (r"attention\.[qkv]_lin\.bias", "A"),
        (r"attention\.out_lin\.weight", "HA"),
        (r"attention\.out_lin\.bias", "H"),
        (r"ffn\.lin1\.weight", "FH"),
        (r"ffn\.lin1\.bias", "F"),
        (r"ffn\.lin2\.weight", "HF"),
        (r"ffn\.lin2\.bias", "H"),
        (r"pre_classifier\.weight", "HH"),
        (r"pre_classifier\.bias", "H"),
        (r"classifier\.weight", "-H"),
        (r"classifier\.bias", "-"),
    ),
)
_VIT = Anatomy(
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    axes=(
        (r"(?:cls_token|distillation_token|mask_token|position_embeddings)", "--H"),
        (r"patch_embeddings\.projection\.weight", "H---"),
        (r"patch_embeddings\.projection\.bias", "H"),
        (r"layernorm(?:_before|_after)?\.(?:weight|bias)", "H"),
        (r"attention\.[qkv]_proj\.weight", "AH"),
        (r"attention\.[qkv]_proj\.bias", "A"),
        (r"attention\.o_proj\.weight", "HA"),
        (r"attention\.o_proj\.bias", "H"),
        (r"mlp\.fc1\.weight", "FH"),
        (r"mlp\.fc1\.bias", "F"),
        (r"mlp\.fc2\.weight", "HF"),
        (r"mlp\.fc2\.bias", "H"),
        (r"classifier\.weight", "-H"),
        (r"classifier\.bias", "-"),
    ),
)
_GPT2 = Anatomy(  # its weights are stored [in, out]
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    fused=True,
    feed_forward_size="n_inner",
    axes=(
        (r"(?:wte|wpe)\.weight", "-H"),
        (r"lm_head\.weight", "-H"),
        (r"ln_(?:1|2|f)\.(?:weight|bias)", "H"),
        (r"attn\.c_attn\.weight", "H3"),
        (r"attn\.c_attn\.bias", "3"),
        (r"attn\.c_proj\.weight", "AH"),
        (r"attn\.c_proj\.bias", "H"),
        (r"mlp\.c_fc\.weight", "HF"),
        (r"mlp\.c_fc\.bias", "F"),
        (r"mlp\.c_proj\.weight", "FH"),
        (r"mlp\.c_proj\.bias", "H"),
        (r"(?:score|classifier)\.weight", "-H"),
        (r"(?:score|classifier)\.bias", "-"),
    ),
)
ANATOMIES: Mapping[str, Anatomy] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "vit": _VIT,
    "deit": _VIT,
    "gpt2": _GPT2,
}


def anatomy_of(model: nn.Module) -> Anatomy:
    """Raises UnsupportedOperator for a model type that the table does not know."""
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind not in ANATOMIES:
        raise UnsupportedOperator(f"models of the type {kind!r} are not known from inside; known are {', '.join(ANATOMIES)}")
    return ANATOMIES[kind]


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The one list with as many modules as the config counts layers, in their order. Raises UnsupportedOperator."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(found) != 1:
        raise UnsupportedOperator(f"a {type(model).__name__} has no single list of layers that could be told apart")
    return found[0]


def inner_model(module: nn.Module) -> nn.Module:
    """The transformers model in a module of services.backends.torch."""
    inner: Any = module.model
    found: nn.Module = inner
    return found
