"""The page of a report in a real browser, on a desk and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from carmodel.evaluation.predictions import Evaluation
from carmodel.evaluation.report import write_report
from carmodel.evaluation.tables import Material
from tests.browsing import DESK, PHONE, chromium
from tests.stores import store_of

pytestmark = pytest.mark.slow

CLASSES = 40
NAMES = [f"{'Audi' if i % 2 else 'Aston Martin'} A{i} {'Coupe' if i % 3 else 'Sedan'} 2012" for i in range(CLASSES)]
ROWS = 3 * CLASSES


def predicted(seed: int, labels: np.ndarray) -> Evaluation:
    """Predictions of which about nine in ten are right."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(CLASSES, 0.1), ROWS)
    probabilities[np.arange(ROWS), labels] += 2 * (rng.random(ROWS) < 0.9)
    return Evaluation(labels, probabilities / probabilities.sum(axis=1, keepdims=True), NAMES, milliseconds=7.5)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on photos of noise with everything but heat maps. The first test photo is in the training store, too."""
    folder = tmp_path_factory.mktemp("report")
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 24, 24, 3), np.uint8)
    labels = np.arange(ROWS) % CLASSES
    test = store_of(folder / "test.h5", images, labels, NAMES, split="test")
    train = store_of(folder / "train.h5", images[[0]], [1], NAMES)
    evaluation = predicted(1, labels)
    material = Material(
        model="models:/cars/7",
        calibrated=evaluation.calibrated(1.5),
        temperature=1.5,
        whole=predicted(2, labels),
        boxes=pd.DataFrame({"x1": 0, "y1": 0, "x2": np.arange(ROWS) + 50, "y2": 80}),
        train=train,
        other=(predicted(3, labels), "models:/cars/6"),
        recipe={"the training": {"epochs": "<30>"}},
    )
    write_report(folder / "report", evaluation, test, subtitle="synthetic sample", material=material)
    return folder / "report"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Page]:
    """The open page. It may load nothing else, and its script must not fail."""
    context = browser.new_context(viewport=getattr(request, "param", DESK), color_scheme="light")
    page = context.new_page()
    requested, faults = list[str](), list[str]()
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((report / "index.html").as_uri())
    yield page
    context.close()
    assert [url for url in requested[1:] if not url.startswith("data:")] == []
    assert faults == []


@pytest.mark.parametrize("page", [DESK, PHONE], ids=["desk", "phone"], indirect=True)
def test_the_report_fits_the_window_and_has_no_barrier(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_report_says_what_its_tables_say(page: Page, report: Path) -> None:
    intervals = pd.read_csv(report / "intervals.csv", index_col="metric")
    cards = page.get_by_label("Headline figures")
    expect(cards).to_contain_text(f"{intervals.loc['top1', 'value']:.1%}")
    expect(cards).to_contain_text(f"{intervals.loc['top1', 'low']:.1%} to {intervals.loc['top1', 'high']:.1%}")
    expect(cards).to_contain_text("7.5 ms")
    changed = pd.read_csv(report / "changed.csv")
    expect(page.locator("#comparison h3")).to_contain_text(f"All {len(changed)} photos")
    expect(page.locator("#twins")).to_contain_text("1 of them have different labels")
    expect(page.locator("#boxes tbody tr")).to_have_count(4)
    expect(page.locator("#data")).to_contain_text("<30>")


def test_the_table_of_classes_is_sorted_and_searched(page: Page, report: Path) -> None:
    table = pd.read_csv(report / "per_class.csv")
    rows = page.locator("#per-class tbody tr:visible")
    page.locator("#per-class").get_by_role("button", name="recall").click()
    expect(rows.first).to_contain_text(f"{table['accuracy'].max():.3f}")
    page.locator("#per-class").get_by_role("button", name="recall").click()
    expect(rows.first).to_contain_text(f"{table['accuracy'].min():.3f}")
    page.locator("#classes input").fill("aston martin a2 ")
    expect(rows).to_have_count(1)


def test_a_class_is_found_in_the_confusion_matrix_and_its_squares_are_explained(page: Page) -> None:
    matrix = page.locator("#matrix")
    before = matrix.evaluate("box => box.style.getPropertyValue('--cell')")
    page.get_by_label("Zoom in").click()
    assert matrix.evaluate("box => box.style.getPropertyValue('--cell')") != before
    page.get_by_label("Find a class").fill("Audi A7 ")
    expect(page.locator("#cell")).to_have_text("1 of 40 classes")
    found = matrix.locator(".rows-names .found")
    expect(found).to_be_in_viewport()
    row = found.evaluate("name => [...name.parentElement.children].indexOf(name)")
    matrix.locator(f"rect[x='{row}'][y='{row}']").dispatch_event("click")
    expect(page.locator("#cell")).to_contain_text("Audi A7 Coupe 2012: ")


def test_a_report_with_nothing_but_predictions_has_no_empty_sections(tmp_path: Path) -> None:
    names = ["red", "green"]
    store = store_of(tmp_path / "test.h5", np.zeros((4, 24, 24, 3), np.uint8), [0, 1, 0, 1], names, split="test")
    evaluation = Evaluation(store.labels, np.eye(2)[store.labels], names)
    write_report(tmp_path, evaluation, store)
    text = (tmp_path / "index.html").read_text()
    for section in ("comparison", "groups", "boxes", "heat"):
        assert f'id="{section}"' not in text
    assert "There are no mistakes." in text and "No class is confused with another." in text
