"""The parameters of every entry point: name, type, bounds, default and meaning. This is their only definition."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from carmodel.applications import APPLICATIONS

ROOT = Path(__file__).resolve().parents[1]

SparkMaster = Annotated[str, Field(pattern=r"^$|^local(\[[^\]]+\])?$|^yarn$|^(spark|k8s)://\S+$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# Values of -P are strings, and pydantic does not convert a string to a number of a Literal.
Depth = Annotated[Literal[14, 26, 50, 101, 152], BeforeValidator(lambda v: int(v) if str(v).isdigit() else v)]
# Depths of the residual network for which keras.applications publishes ImageNet weights.
PUBLISHED = (50, 101, 152)

# A number of epochs, or several image sizes, each with its number of epochs: 128x4,160x4.
Schedule = Annotated[str, BeforeValidator(str), Field(pattern=r"^[1-9]\d*$|^[1-9]\d+x[1-9]\d*(,[1-9]\d+x[1-9]\d*)*$")]

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Settings(BaseModel):
    """The parameters of an entry point. Raises a `ValidationError` for an unknown name or a value out of bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OnEngine(Settings):
    """Parameters of a step that can process images on this machine or on a Spark cluster."""

    engine: Literal["local", "spark"] = Field(
        "local", description="where images are processed: on this machine or a Spark cluster, with the same result"
    )
    spark_master: SparkMaster = Field(
        "",
        description="URL of the Spark cluster, spark://HOST:PORT (empty: the active session or Spark's own configuration)",
    )
    partitions: int = Field(0, ge=0, description="Spark tasks per store (0: at most eight per core)")
    work_folder: str = Field(
        "",
        description="directory that the Spark driver and executors share, for unfinished stores (empty: a temporary one)",
    )

    @field_validator("work_folder")
    @classmethod
    def _work_folder_exists(cls, folder: str) -> str:
        if folder and not Path(folder).expanduser().is_dir():
            raise ValueError("no such directory")
        return str(Path(folder).expanduser().resolve()) if folder else ""

    @model_validator(mode="after")
    def _spark_parameters_need_spark(self) -> Self:
        if self.engine == "local" and (self.spark_master or self.partitions):
            raise ValueError("spark_master and partitions need engine=spark")
        return self


class Preprocess(OnEngine):
    """Convert photos and annotations to the stores train.h5 and test.h5."""

    data_uri: str = Field(
        "", description="photos: a directory or any URI that MLflow can download (empty: the built-in synthetic sample)"
    )
    image_size: int = Field(224, ge=16, le=1024, description="side of the square images, in pixels")
    crop: Literal["box", "none", "both"] = Field(
        "box",
        description="crop each photo to its annotated box, use the whole photo, or both: each training photo twice",
    )
    margin: Fraction = Field(0.0, description="context kept around the box, as a fraction of the box's side")
    classes: int = Field(0, ge=0, description="number of classes to keep, for quick trials (0: all)")
    validation_fraction: float = Field(
        0.1, ge=0.0, lt=1.0, description="fraction of the training photos held out for validation"
    )
    max_bad_fraction: Fraction = Field(0.01, description="fail if more than this fraction of the photos is unusable")
    sample_photos: int = Field(100, ge=4, description="built-in sample: photos per class; one fifth become test photos")
    sample_classes: int = Field(8, ge=2, le=8, description="built-in sample: number of classes")
    seed: Seed = Field(0, description="seed of the validation split and of the built-in sample")


class Augment(OnEngine):
    """Write augmented copies of the training rows to augmented.h5."""

    store_uri: str = Field("", description="directory with train.h5: the `data` output of preprocess")
    copies: int = Field(1, ge=0, le=100, description="augmented copies per training row (0: main skips the step)")
    crop: float = Field(0.15, ge=0.0, lt=1.0, description="largest fraction of a side that is cropped (0: off)")
    pad: float = Field(0.1, ge=0.0, lt=1.0, description="largest fraction of a side that is padded (0: off)")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip (0: off)")
    transform: str = Field(
        "",
        pattern=r"^([\w.]+:\w+)?$",
        description="your own function, package.module:function, applied after crop, pad and flip (empty: none)",
    )
    seed: Seed = Field(
        0, description="random seed; each image depends only on the seed, its source row and the number of the copy"
    )


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
        "or pretrained (empty: none)",
    )
    head_init: Literal["random", "lda"] = Field(
        "random", description="initial weights of the classifier; lda: linear discriminant analysis of the features"
    )
    unfreeze: str = Field("all", description="layers to train: all, head, or the name of the first layer to train")
    batch_norm: Literal["train", "inference"] = Field(
        "train",
        description="normalise with the statistics of each batch, or with the stored ones (faster, for fine-tuning)",
    )
    epochs: Schedule = Field(
        "30", description="number of epochs, or image sizes with epochs for each: 128x4,160x4,192x2"
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
        5e-3, ge=0.0, description="weight decay per step, multiplied by the learning rate; vectors do not decay"
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
        "float32", description="bfloat16: mixed precision on hardware where it is faster"
    )
    processes: int = Field(
        0, ge=0, description="number of processes that train together (0: one per slot of hosts, or one)"
    )
    hosts: str = Field("", description="machines to train on by ssh: HOST:SLOTS,HOST:SLOTS (empty: this machine)")
    launcher: Literal["ssh", "spark"] = Field(
        "ssh", description="how to start processes on other machines: by ssh or on Spark executors"
    )
    spark_master: SparkMaster = Field(
        "", description="URL of the Spark cluster for launcher=spark (empty: as for preprocess)"
    )
    scale_learning_rate: bool = Field(True, description="multiply the learning rate by the number of processes")
    compression: Literal["none", "float16", "bfloat16"] = Field(
        "none", description="data type in which processes exchange gradients (none: their own)"
    )
    resume: str = Field("", description="id of an unfinished train run to resume from its last checkpoint")
    seed: Seed = Field(
        0, description="seed of the initial weights, the order of rows and the augmentation on the device"
    )

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        if name.endswith(".keras"):
            if not Path(name).expanduser().is_file():
                raise ValueError("no such file; give the path of a Keras model saved without its top")
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
    def _imagenet_has_this_network(self) -> Self:
        if (
            self.backbone == "resnet"
            and self.weights == "imagenet"
            and (self.depth not in PUBLISHED or self.width != 64)
        ):
            raise ValueError(f"weights=imagenet needs width=64 and one of the depths {', '.join(map(str, PUBLISHED))}")
        return self


class Evaluate(Settings):
    """Measure the accuracy of a logged Keras model on the test store."""

    store_uri: str = Field("", description="directory with test.h5: the `data` output of preprocess")
    model_uri: str = Field(
        "", description="any logged Keras model: the `model` output of train, runs:/RUN/model, models:/NAME/VERSION …"
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="resize the photos to this side, in pixels (0: keep the size of the store)"
    )
    flip: bool = Field(False, description="average the predictions for each photo and its mirror image")
    batch_size: int = Field(64, ge=1, description="rows per forward pass")
    mistakes: int = Field(16, ge=1, le=100, description="number of worst mistakes in the picture")


class PackagePyfunc(Settings):
    """Package the trained network as a classifier of Base64 photos, register it and promote it."""

    model_uri: str = Field("", description="Keras model to package: the `model` output of train")
    evaluation_uri: str = Field(
        "", description="the `report` output of evaluate, whose accuracy decides on promotion to `champion`"
    )
    store_uri: str = Field(
        "",
        description="directory with test.h5, whose photos check the packaged classifier: the `data` output of preprocess",
    )
    registered_model_name: str = Field("carmodel", pattern=r"^[^/:]+$", description="name in the model registry")
    min_accuracy: Fraction = Field(0.5, description="lowest test top-1 accuracy that can become `champion`")
    folded: bool = Field(True, description="fold BatchNorm and Scale into the convolutions")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: if the processor supports it and the predictions stay nearly the same"
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="side of the images at serving time, in pixels (0: the size that training used)"
    )
    flip: bool = Field(
        False, description="average the predictions for each photo and its mirror image (takes twice the time)"
    )
    max_rows: int = Field(256, ge=1, description="largest number of rows per request; further rows get an error")
    max_bytes: int = Field(20_000_000, ge=1, description="largest photo file, in bytes; larger ones get an error")
    max_pixels: int = Field(
        50_000_000, ge=1, description="largest photo, in pixels; larger ones get an error before they are decoded"
    )
    max_decoded_bytes: int = Field(
        1_200_000_000,
        ge=1,
        description="memory for decoding the photos of all requests together, at 24 bytes per pixel",
    )
    example_pictures: int = Field(3, ge=0, le=10, description="training photos per class to log for the page (0: none)")


# The settings of a target's services, unless the user names another file.
SETTINGS_FILES = {
    "aci": "backends/aci.yml",
    "aks": "backends/aks.yml",
    "online": "backends/online/deployment.yml",
    "kubernetes-online": "backends/kubernetes-online/deployment.yml",
}


class Deploy(Settings):
    """Deploy a registered classifier and test it with one photo; show its status, promote, roll back or delete it."""

    target: Literal["local", "docker", "aci", "aks", "online", "kubernetes-online"] = Field(
        "local",
        description="local, docker, or Azure ML's online (recommended), kubernetes-online, aci, aks (retired by Azure)",
    )
    action: Literal["deploy", "status", "promote", "rollback", "delete"] = Field(
        "deploy", description="deploy, status or delete; promote or rollback moves the traffic of an online endpoint"
    )
    model_uri: str = Field(
        "", pattern=r"^$|^models:/[^/@]+(/\d+|@[\w.-]+)$", description="models:/NAME/VERSION or models:/NAME@ALIAS"
    )
    name: str = Field(
        "carmodel",
        pattern=r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$",
        description="the name of the service or endpoint: 3 to 32 of a-z, 0-9, -",
    )
    traffic: int = Field(
        10, ge=0, le=100, description="percent of requests to a new version of an online endpoint until it is promoted"
    )
    settings_file: str = Field("", description="settings of the service (empty: the target's file in backends/)")
    photo: str = Field("", description="photo for the smoke test (empty: a drawn car)")
    folder: str = Field("deployed", description="folder for the log and the state of a local server")
    port: int = Field(5001, ge=1, le=65535, description="port on this machine: local, docker")
    timeout: float = Field(1800.0, gt=0.0, description="longest time for a deployment, in seconds")

    @property
    def settings_path(self) -> Path:
        """The settings file of the service, for the targets in `SETTINGS_FILES`."""
        return ROOT / (self.settings_file or SETTINGS_FILES[self.target])

    @property
    def model_version(self) -> tuple[str, str]:
        """Name and version of the registered model in ``models:/NAME/VERSION``."""
        name, _, version = self.model_uri.removeprefix("models:/").rpartition("/")
        return name, version

    @field_validator("settings_file")
    @classmethod
    def _settings_file_exists(cls, file: str) -> str:
        if file and not (ROOT / file).is_file():
            raise ValueError("no such file; leave it empty for the target's file in backends/")
        return file

    @model_validator(mode="after")
    def _only_endpoints_have_traffic(self) -> Self:
        if self.action in ("promote", "rollback") and not self.target.endswith("online"):
            raise ValueError(
                f"action={self.action} is for online and kubernetes-online; deploy the other version instead"
            )
        return self


class Recipe(Settings):
    """The parameters of every entry point except main, which chains all of them but deploy."""

    preprocess: Preprocess
    augment: Augment
    train: Train
    evaluate: Evaluate
    package_pyfunc: PackagePyfunc
    deploy: Deploy


ENTRY_POINTS: dict[str, type[Settings]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}
STEPS = {name: parameters for name, parameters in ENTRY_POINTS.items() if name != "deploy"}
"""The entry points that main chains, in this order."""

LINK_OF = {"data": "store_uri", "augmented": "augmented_uri", "model": "model_uri", "report": "evaluation_uri"}
"""The parameter by which later steps take each output. main sets these; a user who runs one step alone names them."""

INPUTS = (*LINK_OF.values(), "data_uri", "weights", "init", "backbone")
"""Parameters that name an input. The cache key has the digest of its contents instead of its path.

A value that is neither a URI nor an existing file, such as backbone=resnet, enters the key unchanged.
"""

NOT_IN_CACHE_KEY = ("spark_master", "work_folder", "resume")
"""Parameters that do not change the result of a step, only where it runs."""
