"""The parameters of every entry point: name, type, bounds, default and meaning. This is their only definition."""

from carmodel.parameters.common import Settings
from carmodel.parameters.data import Augment, OnEngine, Preprocess
from carmodel.parameters.deployment import SETTINGS_FILES, Deploy
from carmodel.parameters.score import Score
from carmodel.parameters.serving import Evaluate, PackagePyfunc
from carmodel.parameters.sweep import Range, Sweep
from carmodel.parameters.training import PUBLISHED, Train

__all__ = [
    "ENTRY_POINTS",
    "INPUTS",
    "LINK_OF",
    "NOT_IN_CACHE_KEY",
    "PUBLISHED",
    "SETTINGS_FILES",
    "STEPS",
    "Augment",
    "Deploy",
    "Evaluate",
    "OnEngine",
    "PackagePyfunc",
    "Preprocess",
    "Range",
    "Recipe",
    "Score",
    "Settings",
    "Sweep",
    "Train",
]


class Recipe(Settings):
    """The parameters of every entry point except main, which chains all of them but deploy, score and sweep."""

    preprocess: Preprocess
    augment: Augment
    train: Train
    evaluate: Evaluate
    package_pyfunc: PackagePyfunc
    deploy: Deploy
    score: Score
    sweep: Sweep


ENTRY_POINTS: dict[str, type[Settings]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}
STEPS = {name: parameters for name, parameters in ENTRY_POINTS.items() if name not in ("deploy", "score", "sweep")}
"""The entry points that main chains, in this order."""

LINK_OF = {"data": "store_uri", "augmented": "augmented_uri", "model": "model_uri", "report": "evaluation_uri"}
"""The parameter by which later steps take each output. main sets these; a user who runs one step alone names them."""

INPUTS = (*LINK_OF.values(), "data_uri", "compare_uri", "weights", "init", "backbone")
"""Parameters that name an input. The cache key has the digest of its contents instead of its path.

A value that is neither a URI nor an existing file, such as backbone=resnet, enters the key unchanged.
"""

NOT_IN_CACHE_KEY = ("spark_master", "work_folder", "resume")
"""Parameters that do not change the result of a step, only where it runs."""
