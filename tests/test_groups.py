"""Groups of photos: makes and body types from class names, and sizes of boxes."""

import numpy as np
import pandas as pd
import pytest

from carmodel.evaluation import groups


@pytest.mark.parametrize(
    ("name", "make", "body"),
    [
        ("AM General Hummer SUV 2000", "AM General", "SUV"),
        ("Aston Martin V8 Vantage Convertible 2012", "Aston Martin", "Convertible"),
        ("Ford F-150 Regular Cab 2007", "Ford", "Cab"),
        ("Ford F-450 Super Duty Crew Cab 2012", "Ford", "Cab"),
        ("Dodge Caravan Minivan 1997", "Dodge", "Minivan"),
        ("Acura TL Type-S 2008", "Acura", groups.NO_BODY),
        ("Land Rover LR2 SUV 2012", "Land Rover", "SUV"),
    ],
)
def test_make_and_body_type_are_read_from_a_class_name(name: str, make: str, body: str) -> None:
    assert (groups.make_of(name), groups.body_of(name)) == (make, body)


def test_names_without_makes_or_bodies_give_no_groups() -> None:
    assert groups.makes(["red", "green", "blue"]) is None
    assert groups.bodies(["red", "green", "blue"]) is None
    drawn = ["Synthetic Sedan 2020", "Synthetic Van 2020"]
    assert groups.makes(drawn) is None, "one make is no comparison"
    assert groups.bodies(drawn) == ["Sedan", "Van"]


def test_the_accuracy_of_a_group_has_its_rows_and_interval() -> None:
    table = groups.accuracy_by(["Audi", "BMW", "BMW", "BMW"], np.array([True, True, False, True]))
    assert table["group"].tolist() == ["BMW", "Audi"]
    assert table["rows"].tolist() == [3, 1]
    assert table["accuracy"].tolist() == pytest.approx([2 / 3, 1])
    assert (table["low"] < table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()


def boxes(*sides: int) -> pd.DataFrame:
    return pd.DataFrame({"x1": 0, "y1": 0, "x2": sides, "y2": sides})


def test_photos_are_grouped_in_quarters_by_the_size_of_the_box() -> None:
    right = np.array([False, False, True, True, True, True, True, True])
    table = groups.accuracy_by_box(boxes(90, 10, 20, 30, 40, 50, 60, 70), right, ~right)
    assert table["group"].tolist() == ["10 to 28 px", "28 to 45 px", "45 to 62 px", "62 to 90 px"]
    assert table["rows"].tolist() == [2, 2, 2, 2]
    assert table["accuracy"].tolist() == [0.5, 1, 1, 0.5]
    assert table["whole_accuracy"].tolist() == [0.5, 0, 0, 0.5]


def test_boxes_of_one_size_are_one_group_and_photos_without_a_box_do_not_count() -> None:
    table = groups.accuracy_by_box(pd.concat([boxes(20, 20), -boxes(1) * 0 - 1]), np.array([True, False, True]), None)
    assert table[["group", "rows", "accuracy"]].to_numpy().tolist() == [["20 px", 2, 0.5]]
