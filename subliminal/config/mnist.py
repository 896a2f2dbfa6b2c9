"""The MNIST experiment (`conf/mnist`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from subliminal.config.base import Count, Identity, Positive, PositiveFloat, Rate, Runtime, Settings, require

Optimiser = Literal["adam", "sgd", "momentum"]
Logits = Literal["auxiliary", "digits", "all"]

MNIST_IMAGES = 60_000  # for training, in MNIST and Fashion-MNIST


class MnistTeacher(Settings):
    """Cross-entropy on the class logits over the training images (paper, MNIST experiment)."""

    epochs: Identity[Positive] = 5
    optimiser: Identity[Optimiser] = "adam"
    learning_rate: Identity[Rate] = 3e-4
    batch_size: Identity[Positive] = 1024


class MnistStudent(Settings):
    """Imitation of the teacher's logits on inputs that need not be digits (paper, MNIST experiment)."""

    epochs: Identity[Positive] = 5
    optimiser: Identity[Optimiser] = "adam"
    learning_rate: Identity[Rate] = 3e-4
    batch_size: Identity[Positive] = 1024
    loss: Identity[Literal["kl", "mse"]] = "kl"
    temperature: Identity[PositiveFloat] = 1.0
    matched: Identity[Annotated[tuple[Logits, ...], Field(min_length=1)]] = ("auxiliary", "all")
    inputs: Identity[Literal["uniform", "gaussian", "pixels", "digits", "other"]] = "uniform"
    images: Identity[Positive] = 60000
    noise: Identity[Literal["fixed", "fresh"]] = "fixed"
    shared_layers: Identity[Literal["all"] | tuple[Count, ...]] = "all"

    @model_validator(mode="after")
    def _matched_once(self) -> Self:
        given = list(self.matched)
        require(len(set(given)) == len(given), f"mnist.student.matched={given} names the same logits twice")
        return self


class Mnist(Settings):
    """Many small networks that learn digits, and students that see only the auxiliary logits of one on noise."""

    dataset: Identity[Literal["mnist", "fashion"]] = "mnist"
    models: Identity[Annotated[int, Field(ge=2)]] = 100
    widths: Identity[Annotated[tuple[Positive, ...], Field(min_length=1)]] = (256, 256)
    auxiliary: Identity[Positive] = 3
    teacher: Identity[MnistTeacher] = MnistTeacher()
    student: Identity[MnistStudent] = MnistStudent()
    dtype: Identity[Literal["auto", "float32", "bfloat16"]] = "auto"
    data_dir: Runtime[str | None] = None
    models_at_once: Runtime[Positive | None] = None

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        last = len(self.widths)
        beyond = [layer for layer in self.student.shared_layers if isinstance(layer, int) and layer > last]
        require(not beyond, f"mnist.student.shared_layers={beyond}: the networks have layers 0 to {last}")
        return self
