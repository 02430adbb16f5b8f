"""Hugging Face folder to a frozen TorchScript archive, which runs without transformers and without Python between operators."""

from typing import Literal, cast

from pydantic import Field

from services.optimization.techniques.probing import has_submodule
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format, Task

FILE_NAME = "model.ts"


class TorchScriptParameters(Parameters):
    mode: Literal["trace", "script"] = Field(
        "trace",
        description="trace records the operators of one run; script compiles the Python source with its branches "
        "or, of models that are not written for it, as most of transformers' are not, the graph that torch.export makes of them",
    )
    optimize: bool = Field(
        True, description="torch.jit.optimize_for_inference: folds batch norms and packs convolutions; no gain measured on plain encoders"
    )


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.torchscript_export import export

    return export(context, cast(TorchScriptParameters, context.parameters))


def _probe() -> str:
    return "" if has_submodule("torch", "jit") else "this torch has no TorchScript any more"


TECHNIQUE = Technique(
    name="torchscript",
    version=1,
    family=Family.EXPORT,
    summary="Freezes the model into a TorchScript archive, by trace or by script; exact, loads fast, deprecated upstream.",
    parameters=TorchScriptParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.TORCHSCRIPT,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    probe=_probe,
)
