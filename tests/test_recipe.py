"""Recipes and overrides: precedence, and errors that name what exists."""

from pathlib import Path

import pytest
import yaml

from carmodel.parameters import Recipe
from carmodel.recipe import SettingsError, load_recipe, parse_flag, parse_set, resolve

RECIPES = sorted(Path("configs").glob("*.yaml"))


def write(folder: Path, **steps: dict) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(steps))
    return str(path)


def test_later_sources_take_precedence(tmp_path: Path) -> None:
    recipe = write(tmp_path, train={"epochs": 2, "batch_size": 4, "depth": "14"})
    train = resolve(recipe, "train.epochs=3,train.batch_size=5", {"train": {"epochs": "7"}}).train
    assert (train.epochs, train.batch_size, train.depth, train.width) == ("7", 5, 14, 64)


def test_an_empty_value_counts_as_not_given(tmp_path: Path) -> None:
    recipe = write(tmp_path, train={"epochs": 2})
    assert resolve(recipe, "", {"train": {"epochs": ""}}).train.epochs == "2"


@pytest.mark.parametrize(
    ("set_", "said"),
    [
        ("augment.zzz=1", "choose one of engine, spark_master"),
        ("train.epoch=3", "no parameter 'epoch'; did you mean `epochs`?"),
        ("training.epochs=3", "no step 'training'; the steps are preprocess, augment, train"),
        ("epochs=3", "not step.parameter=value"),
        ("train.epochs=many", "train.epochs='many': not valid; expected: number of epochs"),
        ("train.batch_size=0", "greater than or equal to 1"),
        ("train.optimizer=lion", "'sgd' or 'adamw'"),
        ("train.depth=18", "14, 26, 50, 101 or 152"),
        ("preprocess.crop=tight", "'box', 'none' or 'both'"),
        ("train.weights=imagenet,train.depth=26", "one of the depths 50, 101, 152"),
        ("train.learning_rate=inf", "train.learning_rate='inf'"),
        ("package_pyfunc.registered_model_name=my/model", "package_pyfunc.registered_model_name='my/model'"),
        ("train.store_uri=x", "train.store_uri is set by main"),
        ("train.backbone=vgg16", "train.backbone='vgg16': not resnet, FILE.keras or one of ConvNeXtBase"),
        ("train.weights=no/such.h5", "train.weights='no/such.h5'"),
        ("train.backbone=pretrained/efficientnet_lite2.keras,train.weights=imagenet", "lite2.keras; use weights=none"),
        ("train.weights=imagenet,train.stride_in_3x3=true", "use stride_in_3x3=false"),
        ("train.backbone=MobileNetV2,train.drop_path=0.1", "drop_path is for backbone=resnet, not for MobileNetV2"),
        ("train.backbone=MobileNetV2,train.stride_in_3x3=true", "not for MobileNetV2; use stride_in_3x3=false"),
        ("train.init=none.keras", "train.init='none.keras': not pretrained, a URI or an existing FILE.keras"),
    ],
)
def test_a_wrong_name_or_value_is_refused_with_what_exists(set_: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve("", set_, {})
    assert said in str(error.value)


def test_a_training_may_start_from_a_uri() -> None:
    assert resolve("", "train.init=models:/cars@champion", {}).train.init == "models:/cars@champion"


def test_a_step_run_alone_takes_its_inputs() -> None:
    recipe = resolve("", "", {"augment": {"store_uri": "runs:/1/data"}}, only="augment")
    assert recipe.augment.store_uri == "runs:/1/data"


def test_a_recipe_is_named_by_its_path_or_its_name_in_configs() -> None:
    assert load_recipe("demo") == load_recipe("configs/demo.yaml")
    with pytest.raises(SettingsError, match="configs/demo.yaml"):
        load_recipe("configs/nothing.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "train: 3", "a: b: c"])
def test_a_recipe_that_is_no_mapping_of_steps_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SettingsError, match="bad.yaml"):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_flags_are_true_or_false() -> None:
    assert parse_flag("fresh", "true")
    assert not parse_flag("fresh", "")
    with pytest.raises(SettingsError, match="fresh='maybe'"):
        parse_flag("fresh", "maybe")


def test_set_is_split_at_the_commas_between_items_and_at_the_first_equals() -> None:
    assert parse_set("train.hosts=a:1,b:2,train.epochs=2") == {"train": {"hosts": "a:1,b:2", "epochs": "2"}}
    assert parse_set("train.weights=a=b, train.epochs=2") == {"train": {"weights": "a=b", "epochs": "2"}}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    assert isinstance(resolve(str(recipe), "", {}), Recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_crops_photos_both_in_augment_and_on_the_device(recipe: Path) -> None:
    """Cropping twice would resample each photo twice."""
    settings = resolve(str(recipe), "", {})
    assert settings.augment.copies == 0 or (settings.train.random_crop == 1 and settings.train.zoom_out == 0)


def test_a_bad_value_of_a_shared_name_is_refused_with_the_way_to_address_one_step() -> None:
    with pytest.raises(SettingsError, match=r"preprocess, augment have a parameter crop.*-P set=augment.crop=VALUE"):
        resolve("", "", {"preprocess": {"crop": "0.2"}, "augment": {"crop": "0.2"}})
