"""The parameters of every step: name, type, bounds, default and meaning. Nothing else lists them."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

SparkMaster = Annotated[str, Field(pattern=r"^$|^local(\[[^\]]+\])?$|^yarn$|^(spark|k8s)://\S+$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# -P gives texts, and pydantic turns no text into a Literal's number by itself.
Depth = Annotated[Literal[14, 26, 50, 101, 152], BeforeValidator(lambda v: int(v) if str(v).isdigit() else v)]
# The depths of our network for which keras.applications has weights.
PUBLISHED = (50, 101, 152)

# A number of epochs, or image sizes with a number of epochs for each.
Schedule = Annotated[str, BeforeValidator(str), Field(pattern=r"^[1-9]\d*$|^[1-9]\d+x[1-9]\d*(,[1-9]\d+x[1-9]\d*)*$")]

# The names in keras.applications, which takes seconds to import; a test compares them.
# fmt: off
APPLICATIONS = [
    "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtSmall", "ConvNeXtTiny", "ConvNeXtXLarge", "DenseNet121",
    "DenseNet169", "DenseNet201", "EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3",
    "EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7", "EfficientNetV2B0", "EfficientNetV2B1",
    "EfficientNetV2B2", "EfficientNetV2B3", "EfficientNetV2L", "EfficientNetV2M", "EfficientNetV2S",
    "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small",
    "NASNetLarge", "NASNetMobile", "ResNet101", "ResNet101V2", "ResNet152", "ResNet152V2", "ResNet50", "ResNet50V2",
    "VGG16", "VGG19", "Xception",
]
# fmt: on
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """Parameters of a step. Unknown names are refused and values are checked when the object is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OnEngine(Settings):
    """Parameters of a step whose images are made on this machine or on a cluster."""

    engine: Literal["local", "spark"] = Field(
        "local", description="this machine's cores, or a Spark cluster; same images"
    )
    spark_master: SparkMaster = Field(
        "", description="Spark cluster, spark://HOST:PORT (empty: the active session, Spark's settings, or local cores)"
    )
    partitions: int = Field(0, ge=0, description="Spark tasks a store (0: eight a core at most)")
    work_folder: str = Field(
        "", description="folder that driver and executors share, for unfinished stores (empty: a temporary one here)"
    )

    @field_validator("work_folder")
    @classmethod
    def _work_folder_is_there(cls, folder: str) -> str:
        if folder and not Path(folder).expanduser().is_dir():
            raise ValueError("not a folder that is there")
        return str(Path(folder).expanduser().resolve()) if folder else ""

    @model_validator(mode="after")
    def _spark_is_asked_for(self) -> Self:
        if self.engine == "local" and (self.spark_master or self.partitions):
            raise ValueError("spark_master and partitions are for engine=spark")
        return self


class Preprocess(OnEngine):
    """Photos and annotations to train.h5 and test.h5."""

    data_uri: str = Field(
        "", description="photos: empty (built-in synthetic sample), a folder, or any URI that MLflow can download"
    )
    image_size: int = Field(224, ge=16, le=1024, description="side of the square images, in pixels")
    crop: Literal["box", "none"] = Field("box", description="crop each photo to its annotated box, or not")
    margin: Fraction = Field(0.0, description="context kept around the box, as a fraction of the box's side")
    classes: int = Field(0, ge=0, description="keep the first n classes only, for quick tries (0: all)")
    validation_fraction: float = Field(
        0.1, ge=0.0, lt=1.0, description="part of the training photos kept for validation"
    )
    max_bad_fraction: Fraction = Field(0.01, description="stop when more than this part of the photos is unusable")
    sample_photos: int = Field(100, ge=4, description="built-in sample: photos a class, a fifth of them for the test")
    sample_classes: int = Field(8, ge=2, le=8, description="built-in sample: number of classes")
    seed: Seed = Field(0, description="seed of the validation split and of the built-in sample")


class Augment(OnEngine):
    """Augmented copies of the training rows, beside the originals."""

    store_uri: str = Field("", description="folder with train.h5, the `data` output of preprocess")
    copies: int = Field(1, ge=0, le=100, description="augmented copies of each training row (0: main skips the step)")
    crop: float = Field(0.15, ge=0.0, lt=1.0, description="largest part of a side that is cut away (0: off)")
    pad: float = Field(0.1, ge=0.0, lt=1.0, description="largest part of a side that is padded (0: off)")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip (0: off)")
    transform: str = Field(
        "",
        pattern=r"^([\w.]+:\w+)?$",
        description="package.module:function of yours, after crop, pad, flip (empty: none)",
    )
    seed: Seed = Field(0, description="seed; an image depends on (seed, source row, copy) alone")


class Train(Settings):
    """A network fitted on the stores."""

    store_uri: str = Field("", description="folder with train.h5, the `data` output of preprocess")
    augmented_uri: str = Field("", description="folder with augmented.h5, the output of augment (empty: none)")
    backbone: str = Field(
        "resnet",
        description="resnet (this project's, with Scale), a keras.applications name such as MobileNetV2, or FILE.keras",
    )
    depth: Depth = Field(50, description="layers of the residual network")
    width: int = Field(64, ge=4, le=256, description="channels of the residual network's first stage")
    stride_in_3x3: bool = Field(False, description="residual network: stride in the 3x3 convolutions (version 1.5)")
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, description="residual network: stochastic depth of the last block")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the classifier")
    weights: str = Field("none", description="none, imagenet (Keras downloads them), or a Keras weights file")
    init: str = Field(
        "",
        description="trained model to continue from, its classes matched by name: models:/NAME@ALIAS, runs:/RUN/model, a "
        "path, or pretrained (empty: none)",
    )
    head_init: Literal["random", "lda"] = Field(
        "random", description="first weights of the classifier; lda: linear discriminant analysis of the features"
    )
    unfreeze: str = Field("all", description="layers to train: all, head, or the first of them by name")
    batch_norm: Literal["train", "inference"] = Field(
        "train", description="statistics of each batch, or the stored ones (for fine-tuning: folded, and faster)"
    )
    epochs: Schedule = Field(
        "30", description="passes over the training rows, as a number or with image sizes: 128x4,160x4,192x2"
    )
    batch_size: int = Field(32, ge=1, description="rows per step, on each process")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW")
    learning_rate: float = Field(0.05, gt=0.0, description="peak learning rate, after the warm-up")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="learning rate of each stage, as a fraction of that of the stage above it"
    )
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of SGD")
    weight_decay: float = Field(
        5e-3, ge=0.0, description="decay of the weights per step, times the learning rate; none on vectors"
    )
    warmup_epochs: float = Field(1.0, ge=0.0, description="epochs of linear warm-up before the cosine decay")
    ema: float = Field(0.0, ge=0.0, lt=1.0, description="momentum of the moving average of the weights (0: off)")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="label smoothing of the cross-entropy")
    random_crop: float = Field(
        1.0, gt=0.0, le=1.0, description="on the device: smallest area of a resized crop (1: off)"
    )
    random_flip: bool = Field(False, description="on the device: horizontal flips")
    zoom_out: Fraction = Field(0.0, description="on the device: probability of a photo shown smaller, on a background")
    colors: Fraction = Field(0.0, description="on the device: strength of TrivialAugment's colour operations (0: off)")
    erase: Fraction = Field(0.0, description="on the device: probability of erasing a random box")
    mixup: float = Field(0.0, ge=0.0, description="on the device: alpha of mixup's Beta distribution (0: off)")
    cutmix: float = Field(0.0, ge=0.0, description="on the device: alpha of CutMix's Beta distribution (0: off)")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: mixed precision where it is fast"
    )
    processes: int = Field(0, ge=0, description="processes that train together (0: one for each slot of hosts, or one)")
    hosts: str = Field("", description="machines to train on by ssh, HOST:SLOTS,HOST:SLOTS (empty: this one)")
    launcher: Literal["ssh", "spark"] = Field(
        "ssh", description="how other machines are reached: ssh or Spark executors"
    )
    spark_master: SparkMaster = Field("", description="Spark cluster of launcher=spark (empty: as for preprocess)")
    scale_learning_rate: bool = Field(True, description="multiply the learning rate by the number of processes")
    compression: Literal["none", "float16", "bfloat16"] = Field(
        "none", description="how processes send gradients: as they are, or rounded to half the size"
    )
    resume: str = Field("", description="run id of an unfinished train run, whose last checkpoint is continued")
    seed: Seed = Field(0, description="seed of weights, order and on-device augmentation")

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        if name.endswith(".keras"):
            if not Path(name).expanduser().is_file():
                raise ValueError("no such file; give the path of a saved Keras model without its top")
            return str(Path(name).expanduser())
        if name not in ("resnet", *APPLICATIONS):
            raise ValueError(f"not resnet, FILE.keras or one of {', '.join(APPLICATIONS)}")
        return name

    @field_validator("hosts")
    @classmethod
    def _hosts_have_slots(cls, hosts: str) -> str:
        if hosts and not re.fullmatch(r"[\w.@-]+:[1-9]\d*(,[\w.@-]+:[1-9]\d*)*", hosts):
            raise ValueError("not HOST:SLOTS,HOST:SLOTS")
        return hosts

    @field_validator("weights")
    @classmethod
    def _weights_are_there(cls, weights: str) -> str:
        if weights in ("none", "imagenet"):
            return weights
        if not (file := Path(weights).expanduser()).is_file():
            raise ValueError("not none, imagenet, or a Keras weights file that is there")
        return str(file)

    @model_validator(mode="after")
    def _imagenet_has_this_network(self) -> Self:
        if (
            self.backbone == "resnet"
            and self.weights == "imagenet"
            and (self.depth not in PUBLISHED or self.width != 64)
        ):
            raise ValueError(f"weights=imagenet are there for width=64 and the depths {', '.join(map(str, PUBLISHED))}")
        return self


class Evaluate(Settings):
    """A logged model's accuracy on the test store."""

    store_uri: str = Field("", description="folder with test.h5, the `data` output of preprocess")
    model_uri: str = Field("", description="any logged Keras model: runs:/RUN/model, models:/NAME/VERSION …")
    image_size: int = Field(
        0, ge=0, le=1024, description="side in pixels to which the photos are resized (0: as they are in the store)"
    )
    flip: bool = Field(False, description="average the answers for each photo and its mirror image")
    batch_size: int = Field(64, ge=1, description="rows per forward pass")
    mistakes: int = Field(16, ge=1, le=100, description="worst mistakes shown in the picture")


class PackagePyfunc(Settings):
    """The classifier that takes Base64 photos: logged, registered, checked."""

    model_uri: str = Field("", description="the Keras model logged by train")
    evaluation_uri: str = Field("", description="the `report` output of evaluate: its accuracy decides on `champion`")
    store_uri: str = Field(
        "", description="folder with test.h5; its photos check the folding and the registered version"
    )
    registered_model_name: str = Field("carmodel", pattern=r"^[^/:]+$", description="name in the model registry")
    min_accuracy: Fraction = Field(0.5, description="test top-1 below which `champion` never moves to this version")
    folded: bool = Field(True, description="fold BatchNorm and Scale into the convolutions")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: where the processor has it and the answers allow it"
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="side in pixels at which photos are served (0: that of the store of the training)"
    )
    flip: bool = Field(False, description="average the answers for each photo and its mirror image (twice the time)")
    max_rows: int = Field(256, ge=1, description="rows answered per request; the others get an error")
    max_bytes: int = Field(20_000_000, ge=1, description="photos in larger files are refused")
    max_pixels: int = Field(50_000_000, ge=1, description="photos with more pixels are refused before decoding")
    max_decoded_bytes: int = Field(
        1_200_000_000, ge=1, description="memory for decoding photos, of all requests together, at 24 bytes a pixel"
    )
    example_pictures: int = Field(
        3, ge=0, le=10, description="training photos of each class kept in the run, for the page (0: none)"
    )


class Deploy(Settings):
    """A registered classifier, answering photos somewhere: deployed, looked at, promoted, rolled back or deleted."""

    target: Literal["local", "docker", "aci", "aks", "online", "kubernetes-online"] = Field(
        "local",
        description="local, docker, or Azure ML's online (recommended), kubernetes-online, aci, aks (retired by Azure)",
    )
    action: Literal["deploy", "status", "promote", "rollback", "delete"] = Field(
        "deploy", description="deploy, status or delete; promote or rollback: an online endpoint's traffic"
    )
    model_uri: str = Field(
        "", pattern=r"^$|^models:/[^/@]+(/\d+|@[\w.-]+)$", description="models:/NAME/VERSION or models:/NAME@ALIAS"
    )
    name: str = Field(
        "carmodel",
        pattern=r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$",
        description="of the service or endpoint: 3 to 32 of a-z, 0-9, -",
    )
    traffic: int = Field(
        10, ge=0, le=100, description="percent of requests that a new version of an online endpoint gets until promoted"
    )
    settings_file: str = Field("", description="settings of the service (empty: those in backends/)")
    photo: str = Field("", description="photo of the smoke test (empty: a drawn car)")
    folder: str = Field("deployed", description="folder for what is kept here: a server's log, a docker context")
    port: int = Field(5001, ge=1, le=65535, description="of a server on this machine: local, docker")
    timeout: float = Field(1800.0, gt=0.0, description="seconds that a deployment may take")

    @model_validator(mode="after")
    def _traffic_is_of_endpoints(self) -> Self:
        if self.action in ("promote", "rollback") and not self.target.endswith("online"):
            raise ValueError(
                f"action={self.action} is for online and kubernetes-online; deploy the other version instead"
            )
        return self


STEPS: dict[str, type[Settings]] = {
    "preprocess": Preprocess,
    "augment": Augment,
    "train": Train,
    "evaluate": Evaluate,
    "package_pyfunc": PackagePyfunc,
}

# main is the chain of the steps; a deployment is asked for by itself.
ENTRY_POINTS: dict[str, type[Settings]] = STEPS | {"deploy": Deploy}

# How the steps hang together: each output, and the parameter by which later steps take it. main fills these; on a step
# run alone the user names them.
LINK_OF = {"data": "store_uri", "augmented": "augmented_uri", "model": "model_uri", "report": "evaluation_uri"}

# Parameters that name an input. Its contents go into the cache key, not its path. A value that is no URI and no existing file,
# such as backbone=resnet, goes into the key as it is.
INPUTS = (*LINK_OF.values(), "data_uri", "weights", "init", "backbone")
# Parameters that say where or how far work is done, and do not change its result.
NOT_IN_CACHE_KEY = ("spark_master", "work_folder", "resume")
