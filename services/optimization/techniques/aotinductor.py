"""Hugging Face folder to a package of native code: torch.export, compiled ahead of time by Inductor with a C++ compiler."""

import shutil
from typing import Literal, cast

from pydantic import Field

from services.optimization.environment import has_bf16
from services.optimization.techniques.technique import EVERY_TASK, Context, Family, Outcome, Parameters, Technique
from services.repository.manifest import Format, Task

FILE_NAME = "model.pt2"
COMPILERS = ("g++", "clang++")


class AotInductorParameters(Parameters):
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="what weights and products are compiled in; bfloat16 is fast where the processor has it; null: the source's"
    )
    freezing: bool = Field(True, description="weights are constants, packed for the kernels while compiling instead of at every run")


def _apply(context: Context) -> Outcome:
    from services.optimization.techniques.aotinductor_compile import compile_package

    return compile_package(context, cast(AotInductorParameters, context.parameters))


def _probe() -> str:
    if any(shutil.which(name) for name in COMPILERS):
        return ""
    return f"no C++ compiler: none of {', '.join(COMPILERS)} is on the path"


def _note_hardware(features: frozenset[str]) -> str:
    if has_bf16(features):
        return ""
    return "This processor has no bfloat16 arithmetic: compile for float32, bfloat16 is emulated."


TECHNIQUE = Technique(
    name="aotinductor",
    version=2,
    family=Family.COMPILE,
    summary="Compiles the model to native code for this processor with torch.export and AOTInductor, any rows and lengths.",
    parameters=AotInductorParameters,
    source_formats=(Format.HUGGINGFACE,),
    target_format=Format.AOTINDUCTOR,
    tasks=EVERY_TASK - {Task.TENSOR},
    apply=_apply,
    note_hardware=_note_hardware,
    probe=_probe,
    assume_seconds=lambda megabytes, _: 40 + 0.3 * megabytes,
)
