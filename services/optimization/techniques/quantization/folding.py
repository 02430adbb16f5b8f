"""Batch normalization folded into the convolution before it: weights are then quantized as the final graph has them.

Training goes on without batch statistics, whose estimates are the model's own by now; unfolded, each update of them would
move the scales of all weights.
"""

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def _pairs(module: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, convolution's name, normalization's name) of children that follow each other and fit together."""
    found = []
    for parent in module.modules():
        children = list(parent.named_children())
        for (first, convolution), (second, norm) in itertools.pairwise(children):
            fits = isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            if fits and convolution.out_channels == norm.num_features and norm.track_running_stats:
                found.append((parent, first, second))
    return found


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with an identity where a normalization was folded.

    That children follow each other does not prove that they are called so: compare the answers.
    """
    copied = copy.deepcopy(module).eval()
    for parent, convolution, norm in _pairs(copied):
        setattr(parent, convolution, fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())
    return copied
