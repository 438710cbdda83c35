"""The parameters of the entry points that take a trained network: evaluate and package_pyfunc."""

from typing import Literal

from pydantic import Field

from carmodel.parameters.common import Fraction, Settings


class Evaluate(Settings):
    """Measure the accuracy of a logged Keras model on the test store."""

    store_uri: str = Field("", description="directory with test.h5: the `data` output of preprocess")
    model_uri: str = Field(
        "",
        description="any logged Keras model, such as runs:/RUN/model, or a classifier of package_pyfunc: models:/NAME/VERSION",
    )
    compare_uri: str = Field(
        "", description="another logged Keras model, to compare with this one in the report (empty: none)"
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="resize the photos to this side, in pixels (0: keep the size of the store)"
    )
    flip: bool = Field(False, description="average the predictions for each photo and its mirror image")
    batch_size: int = Field(64, ge=1, description="rows per forward pass")
    mistakes: int = Field(16, ge=1, le=100, description="number of photos in the picture of the worst mistakes")


class PackagePyfunc(Settings):
    """Package the trained network as a classifier of Base64 photos, register it and promote it."""

    model_uri: str = Field("", description="Keras model to package: the `model` output of train")
    evaluation_uri: str = Field(
        "", description="the `report` output of evaluate, whose predictions decide whether to promote to `champion`"
    )
    store_uri: str = Field(
        "",
        description="directory with test.h5, whose photos check the packaged classifier: the `data` output of preprocess",
    )
    registered_model_name: str = Field(
        "carmodel", pattern=r"^[^/:]+$", description="name in the registry, without / and :"
    )
    min_accuracy: Fraction = Field(
        0.5, description="lowest test top-1 accuracy with which a version becomes `champion`"
    )
    folded: bool = Field(True, description="fold BatchNorm and Scale into the convolutions")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16 is used only if it is faster on the processor and the predictions stay nearly the same",
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="side of the images at serving time, in pixels (0: the size of the store)"
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
