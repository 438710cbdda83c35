"""The conditions under which an accuracy was measured, which must be those of the classifier that it describes."""

from carmodel.data.store import Store, content_digest
from carmodel.parameters import Evaluate, PackagePyfunc
from carmodel.tracking.cache import digest_of_input


def conditions(settings: Evaluate | PackagePyfunc, test: Store) -> dict[str, object]:
    """Return image_size and flip, and the digests of the model and of the test photos (model, test_store), for JSON."""
    return {
        "image_size": settings.image_size or test.image_size,
        "flip": settings.flip,
        "model": digest_of_input(settings.model_uri),
        "test_store": content_digest(test),
    }
