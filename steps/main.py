"""Run the whole pipeline, each step as an MLflow run. A step is reused if its inputs, parameters and code did not change."""

import gc
import sys
from typing import NamedTuple

from carmodel.cloud.placement import Place, load_placement
from carmodel.model.weights import find_weights
from carmodel.parameters import LINK_OF, STEPS, Recipe, Train
from carmodel.recipe import parse_flag, resolve
from carmodel.tracking.paths import local_path
from steps.command import errors_reported, make_parser, parse


def main(arguments: list[str]) -> None:
    """Parse the command line, run the pipeline, and print what to do next."""
    with errors_reported("main"):
        recipe, fresh, placement, given = parse_main(arguments)
        # Imported modules stay, so the garbage collector need not visit all of their objects again and again.
        gc.disable()
        from steps.pipeline import run_pipeline  # imports MLflow

        gc.freeze()
        gc.enable()
        run_pipeline(recipe, fresh, placement, given)


class Arguments(NamedTuple):
    """The command line of main.

    Attributes:
        recipe: the parameters of all steps.
        fresh: run every step, and reuse no earlier run.
        placement: the steps that run on other machines.
        given: the parameters as given.
    """

    recipe: Recipe
    fresh: bool
    placement: dict[str, Place]
    given: dict[str, str]


def parse_main(arguments: list[str]) -> Arguments:
    """Parse and validate the command line."""
    own = {step: [n for n in model.model_fields if n not in LINK_OF.values()] for step, model in STEPS.items()}
    parser = make_parser("main", __doc__, own)
    parser.add_argument(
        "--fresh", default="", metavar="VALUE", help="true: run every step and reuse no earlier run (default: false)"
    )
    parser.add_argument(
        "--placement",
        default="",
        metavar="FILE",
        help="file that says which steps run on another machine, such as backends/placement.yaml",
    )
    given = parse(parser, arguments, sorted({name for of in own.values() for name in of} | {"fresh", "placement"}))
    overrides = {step: {name: given[name] for name in of} for step, of in own.items()}
    recipe, fresh = resolve(given["config"], given["set"], overrides), parse_flag("fresh", given["fresh"])
    placement = load_placement(given["placement"])
    if "train" not in placement:
        train = with_local_weights(recipe.train, recipe.preprocess.data_uri)
        recipe = recipe.model_copy(update={"train": train})
    return Arguments(recipe, fresh, placement, given)


def with_local_weights(train: Train, data_uri: str) -> Train:
    """Replace weights=imagenet by a file in a directory ``weights/`` in or next to the data, which saves the download."""
    if train.weights != "imagenet" or not data_uri or not (folder := local_path(data_uri)):
        return train
    name = f"ResNet{train.depth}" if train.backbone == "resnet" else train.backbone
    found = find_weights(name, [folder / "weights", folder.parent / "weights"])
    if found is None:
        return train
    print(f"main: weights of {name}: {found}")
    return train.model_copy(update={"weights": str(found)})


if __name__ == "__main__":
    main(sys.argv[1:])
