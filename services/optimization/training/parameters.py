"""How a training run goes and what it minimises, as techniques embed it in their own parameters."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingParameters(BaseModel):
    """A fine-tuning run of a small model. A step is one update of the weights, on `batch_rows * gradient_accumulation` rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(3, ge=1, le=10_000, description="times that every training example is seen")
    max_steps: int = Field(0, ge=0, le=10_000_000, description="stop after so many steps; 0: the epochs decide")
    batch_rows: int = Field(32, ge=1, le=4096, description="rows in memory at once")
    gradient_accumulation: int = Field(1, ge=1, le=1024, description="batches whose gradients make one step")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="its peak, after warm-up")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's; biases and normalization weights never decay")
    warmup_share: float = Field(0.06, ge=0, le=1, description="share of the steps in which the learning rate rises from zero")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the learning rate falls after warm-up")
    max_gradient_norm: float = Field(1.0, ge=0, le=1e6, description="gradients longer than this are scaled down to it; 0: never")
    validation_share: float = Field(0.1, ge=0, le=0.5, description="share of the examples held out to find the best weights; 0: the last")
    patience: int = Field(3, ge=0, le=1000, description="evaluations without a better validation loss before stopping; 0: never stop early")
    evaluations_per_epoch: int = Field(1, ge=1, le=1000, description="validations in one epoch")
    max_tokens: int = Field(0, ge=0, le=1 << 20, description="texts are cut here for training; 0: at the model's own limit")
    checkpoint_seconds: float = Field(60.0, ge=0, le=86_400, description="seconds between checkpoints; each epoch ends with one too")
    freeze_embeddings: bool = Field(False, description="leave the token or patch embeddings as they are")


class LossParameters(BaseModel):
    """Distillation (Hinton et al. 2015, arXiv 1503.02531): `alpha * T^2 * KL(teacher || student at T) + (1 - alpha) * CE(labels)`.

    For embeddings `alpha` weighs the distance of each vector to the teacher's, `1 - alpha` that of the similarities within a batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(2.0, gt=0, le=100, description="softens both distributions before they are compared")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher against the labels; counts as 1 without labels")
    hidden: float = Field(0.0, ge=0, le=1000, description="weight of the distance between hidden states of matched layers")
    attention_relation: float = Field(
        0.0, ge=0, le=1000, description="weight of the distance between the last layers' relations among queries, keys and values"
    )
    labels: bool | None = Field(None, description="true: labels must be there; false: they are not used; null: used where they are")
