"""The parameters of the entry point train."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from carmodel.parameters.applications import APPLICATIONS
from carmodel.parameters.common import Fraction, Seed, Settings, SparkMaster

# Values of -P are strings, and pydantic does not convert a string to a number of a Literal.
Depth = Annotated[Literal[14, 26, 50, 101, 152], BeforeValidator(lambda v: int(v) if str(v).isdigit() else v)]
# Depths of the residual network for which keras.applications publishes ImageNet weights.
PUBLISHED = (50, 101, 152)

# A number of epochs, or several image sizes, each with its number of epochs: 128x4,160x4.
Schedule = Annotated[str, BeforeValidator(str), Field(pattern=r"^[1-9]\d*$|^[1-9]\d+x[1-9]\d*(,[1-9]\d+x[1-9]\d*)*$")]


class Train(Settings):
    """Train a network on the stores."""

    store_uri: str = Field("", description="directory with train.h5: the `data` output of preprocess")
    augmented_uri: str = Field(
        "", description="directory with augmented.h5: the `augmented` output of augment (empty: none)"
    )
    backbone: str = Field(
        "resnet",
        description="resnet (this project's network with Scale), a keras.applications name such as MobileNetV2, or FILE.keras",
    )
    depth: Depth = Field(50, description="layers of the residual network")
    width: int = Field(64, ge=4, le=256, description="channels of the residual network's first stage")
    stride_in_3x3: bool = Field(False, description="residual network: stride in the 3x3 convolutions (ResNet v1.5)")
    drop_path: float = Field(
        0.0, ge=0.0, lt=1.0, description="residual network: probability of dropping the last block (stochastic depth)"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the classifier")
    weights: str = Field(
        "none", description="initial weights: none, imagenet (Keras downloads them), or a Keras weights file"
    )
    init: str = Field(
        "",
        description="trained model to start from, with classes matched by name: models:/NAME@ALIAS, runs:/RUN/model, a path, "
        "or pretrained (empty: none). It replaces backbone, weights and the parameters of the architecture",
    )
    head_init: Literal["random", "lda"] = Field(
        "random", description="initial weights of the classifier; lda: linear discriminant analysis of the features"
    )
    unfreeze: str = Field("all", description="layers to train: all, head, or the name of the first layer to train")
    batch_norm: Literal["train", "inference"] = Field(
        "train",
        description="train: normalise with the statistics of each batch; inference: with the stored ones, for fine-tuning",
    )
    epochs: Schedule = Field(
        "30", description="number of epochs, or image sizes with the epochs of each: 128x4,160x4,192x2"
    )
    batch_size: int = Field(32, ge=1, description="rows per step and process")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW")
    learning_rate: float = Field(0.05, gt=0.0, description="peak learning rate, reached after the warm-up")
    layer_decay: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="learning rate of each stage as a fraction of the learning rate of the next stage",
    )
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of SGD")
    weight_decay: float = Field(
        5e-3,
        ge=0.0,
        description="weight decay of kernels per step, multiplied by the learning rate; none for biases, gamma and beta",
    )
    warmup_epochs: float = Field(1.0, ge=0.0, description="epochs of linear warm-up before the cosine decay")
    ema: float = Field(0.0, ge=0.0, lt=1.0, description="momentum of the moving average of the weights (0: off)")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="label smoothing of the cross-entropy")
    random_crop: float = Field(
        1.0, gt=0.0, le=1.0, description="on the device: smallest area of a random resized crop, as a fraction (1: off)"
    )
    random_flip: bool = Field(False, description="on the device: horizontal flips")
    zoom_out: Fraction = Field(0.0, description="on the device: probability of shrinking a photo onto a background")
    colors: Fraction = Field(
        0.0, description="on the device: strength of the colour operations of TrivialAugment (0: off)"
    )
    erase: Fraction = Field(0.0, description="on the device: probability of erasing a random box")
    mixup: float = Field(0.0, ge=0.0, description="on the device: alpha of the Beta distribution of mixup (0: off)")
    cutmix: float = Field(0.0, ge=0.0, description="on the device: alpha of the Beta distribution of CutMix (0: off)")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: mixed precision, on hardware where it is faster"
    )
    processes: int = Field(
        0, ge=0, description="number of processes that train together (0: one per slot of hosts, or one)"
    )
    hosts: str = Field("", description="machines to train on by ssh: HOST:SLOTS,HOST:SLOTS (empty: this machine)")
    launcher: Literal["ssh", "spark"] = Field(
        "ssh", description="how to start processes on other machines: by ssh or on Spark executors"
    )
    spark_master: SparkMaster = Field(
        "",
        description="URL of the Spark cluster for launcher=spark (empty: the active session or Spark's own configuration)",
    )
    scale_learning_rate: bool = Field(
        True, description="multiply the learning rate by the number of processes (workers)"
    )
    compression: Literal["none", "float16", "bfloat16"] = Field(
        "none", description="data type of the gradients that processes exchange (none: unchanged)"
    )
    resume: str = Field("", description="ID of an unfinished train run, to resume from its last checkpoint")
    seed: Seed = Field(
        0, description="seed of the initial weights, the order of rows and the augmentation on the device"
    )

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        if name.endswith(".keras"):
            if not Path(name).expanduser().is_file():
                # Wheels do not contain it, and docs/azure_databricks.md says which jobs get it.
                hint = " (pretrained/ is in a clone of the repository)" if name.startswith("pretrained/") else ""
                raise ValueError(f"no such file; give the path of a Keras model saved without its top{hint}")
            return str(Path(name).expanduser())
        if name not in ("resnet", *APPLICATIONS):
            raise ValueError(f"not resnet, FILE.keras or one of {', '.join(APPLICATIONS)}")
        return name

    @field_validator("hosts")
    @classmethod
    def _hosts_have_slots(cls, hosts: str) -> str:
        if hosts and not re.fullmatch(r"[\w.@-]+:[1-9]\d*(,[\w.@-]+:[1-9]\d*)*", hosts):
            raise ValueError("must be HOST:SLOTS,HOST:SLOTS")
        return hosts

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, weights: str) -> str:
        if weights in ("none", "imagenet"):
            return weights
        if not (file := Path(weights).expanduser()).is_file():
            raise ValueError("not none, imagenet or an existing Keras weights file")
        return str(file)

    @field_validator("init")
    @classmethod
    def _init_exists(cls, init: str) -> str:
        if init in ("", "pretrained") or ":/" in init or Path(init).expanduser().exists():
            return init
        raise ValueError("not pretrained, a URI or an existing FILE.keras")

    @model_validator(mode="after")
    def _parameters_fit_the_network(self) -> Self:
        if self.init:  # it replaces these parameters
            return self
        if self.backbone.endswith(".keras") and self.weights != "none":
            raise ValueError(f"weights={self.weights} cannot replace the weights of {self.backbone}; use weights=none")
        if self.backbone != "resnet":
            for name, off in {"stride_in_3x3": "false", "drop_path": "0"}.items():
                if getattr(self, name):
                    raise ValueError(f"{name} is for backbone=resnet, not for {self.backbone}; use {name}={off}")
        elif self.weights == "imagenet":
            if self.depth not in PUBLISHED or self.width != 64:
                depths = ", ".join(map(str, PUBLISHED))
                raise ValueError(f"weights=imagenet needs width=64 and one of the depths {depths}")
            if self.stride_in_3x3:
                raise ValueError("weights=imagenet has its strides in the 1x1 convolutions; use stride_in_3x3=false")
        return self
