"""The accuracy of a packaged classifier on photos with boxes, whole photos and composites."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carmodel.data.images import decode
from carmodel.errors import InputError
from carmodel.serving.accuracy import (
    KINDS,
    SHARES,
    ask,
    composite,
    measures,
    most_confused,
    place,
    read_test_photos,
    request_of,
)
from tests.stores import store_of

MARGIN = 0.1
WHITE, BLACK = np.full((50, 100, 3), 255, np.uint8), np.zeros((60, 90, 3), np.uint8)


def test_a_photo_at_half_the_side_fades_into_the_scene() -> None:
    picture = place(WHITE, BLACK, share=0.5, corner=(0.5, 0.5))
    assert picture.shape == (100, 200, 3)
    assert (picture[25:75, 50:150] == 255).all()
    assert (picture[:20] == 0).all() and (picture[:, :40] == 0).all()
    edge = picture[50, 40:50, 0].astype(int)
    assert 0 < edge[5] < edge[8] < 255 and (np.diff(edge) >= 0).all()


@pytest.mark.parametrize("corner", [(0.0, 0.0), (1.0, 1.0)])
def test_a_photo_is_placed_in_the_given_corner(corner: tuple[float, float]) -> None:
    picture = place(WHITE, BLACK, 0.5, corner)
    at = slice(0, 50) if corner[1] == 0 else slice(50, 100), slice(0, 100) if corner[0] == 0 else slice(100, 200)
    assert (picture[at] == 255).all()


def test_a_photo_at_the_whole_side_is_unchanged() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)
    assert np.array_equal(place(photo, BLACK, 1.0, (0.3, 0.7)), photo)


def test_a_composite_shows_the_box_at_half_to_all_of_the_side(sample: Path) -> None:
    path, _, box = read_test_photos(sample, sample)[0]
    assert box is not None
    files = [composite(path.read_bytes(), box, 0.0, number) for number in range(20)]
    assert files[3] == composite(path.read_bytes(), box, 0.0, 3)
    shares = np.array([(box[2] - box[0]) / decode(file).shape[1] for file in files])
    assert SHARES[0] * 0.98 < shares.min() < 0.65 and 0.85 < shares.max() <= SHARES[1]


def test_only_requests_with_boxes_have_boxes_and_composites_are_other_photos(sample: Path) -> None:
    photos = read_test_photos(sample, sample)
    requests = {kind: request_of(kind, photos, MARGIN) for kind in KINDS}
    assert requests["with boxes"][["x1", "y1", "x2", "y2"]].astype(int).to_numpy().tolist() == [
        list(box or ()) for *_, box in photos
    ]
    assert requests["whole"]["x1"].isna().all() and requests["composite"]["x1"].isna().all()
    assert requests["whole"]["image"].equals(requests["with boxes"]["image"])
    assert not requests["whole"]["image"].isin(requests["composite"]["image"]).any()


def test_answers_are_compared_with_the_class_of_their_photo(sample: Path) -> None:
    photos = read_test_photos(sample, sample)[:4]
    names = [name for _, name, _ in photos]
    labels = [names[0], "another", names[2], None]
    best = [[{"label": "another"}, {"label": name}] for name in names[:3]]
    columns = {"label": labels, "certain": [True, True, False, None], "probability": [1.0, 1.0, 0.5, None]}
    answers = pd.DataFrame(columns | {"top_k": [*best, None]}, dtype=object)
    asked = ask(lambda _: answers, "whole", photos, MARGIN)
    assert measures(asked) == {"top1": 0.5, "top5": 0.75, "ece": 0.5, "certain": 0.5, "precision": 0.5}
    assert most_confused(asked).to_numpy().tolist() == [[names[1], "another", 1]]


def test_no_request_has_more_rows_than_the_classifier_takes(sample: Path) -> None:
    sizes: list[int] = []

    def classify(request: pd.DataFrame) -> pd.DataFrame:
        sizes.append(len(request))
        return pd.DataFrame({"label": ["x"] * len(request)})

    photos = read_test_photos(sample, sample)
    assert len(ask(classify, KINDS[0], photos, MARGIN, batch=4)) == len(photos)
    assert max(sizes) == 4


def test_stores_are_refused(tmp_path: Path) -> None:
    for name in ("train.h5", "test.h5"):
        store_of(tmp_path / name, np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), ["a"])
    with pytest.raises(InputError, match="contains stores"):
        read_test_photos(tmp_path, tmp_path)
