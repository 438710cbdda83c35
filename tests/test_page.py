"""The page in a real browser: photos dropped, pasted or chosen, on a desk and on a phone, and what `make serve` says."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import mlflow
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from carmodel.data.images import decode
from carmodel.data.pictures import class_examples
from carmodel.serving.examples import EXAMPLES
from carmodel.serving.page import preview
from carmodel.serving.registry import CANDIDATE
from tests.stores import store_of
from tests.tiny import NAMES, SIZE, free_port, log_tiny, tiny_network
from tests.tracked import new_database, tracked_in

pytestmark = pytest.mark.slow

expect.set_options(timeout=30_000)  # milliseconds, for a browser, a page and a network on two busy cores

QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
WINDOWS = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
ALONE = "models:/tiny@candidate"


@dataclass(frozen=True)
class Serving:
    """A running `make serve`: its page's address, the endpoint's port, its process and what it has printed."""

    page: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tracking store, in which a packaged classifier with example pictures is the candidate."""
    folder = tmp_path_factory.mktemp("page")
    store = folder / "train.h5"
    images = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
    store_of(store, images, np.arange(16) % len(NAMES), NAMES)
    (pictures := folder / EXAMPLES).mkdir()
    class_examples(store, pictures, 2, side=50)
    with tracked_in(folder):
        with mlflow.start_run():
            version = mlflow.register_model(log_tiny(tiny_network()), "tiny").version
            mlflow.log_artifacts(str(pictures), EXAMPLES)
        mlflow.MlflowClient().set_registered_model_alias("tiny", CANDIDATE, version)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "carmodel.serving.serve", *arguments]


def variables(folder: Path) -> dict[str, str]:
    # NiceGUI behaves otherwise where it finds pytest.
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    uri = f"sqlite:///{folder}/mlflow.db" if (folder / "mlflow.db").exists() else new_database(folder)
    return kept | {"MLFLOW_TRACKING_URI": uri}


@pytest.fixture(scope="module")
def serving(registry: Path) -> Iterator[Serving]:
    """`make serve` without arguments but ports: it finds the candidate."""
    port, page = free_port(), free_port()
    log = registry / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command("--port", str(port), "--page-port", str(page)),
            env=variables(registry), stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not listens(page):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.25)
        yield Serving(f"http://localhost:{page}", port, process, log)
    finally:
        process.terminate()
        process.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or playwright.chromium.executable_path
        if not Path(program).exists():
            pytest.skip("no Chromium here: make browser")
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def window() -> str:
    return "desk"


@pytest.fixture
def page(window: str, browser: Browser, serving: Serving) -> Iterator[Page]:
    """The open page; it may talk to its own server alone, and its scripts must not fail."""
    context = browser.new_context(viewport=WINDOWS[window], has_touch=window == "phone")
    page = context.new_page()
    asked, faults = list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(serving.page)
    expect(page.get_by_text("Drop, paste or choose photos")).to_be_visible()
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((serving.page, "data:", "blob:"))] == []
    assert faults == []


def drawn(sample: Path, number: int = 0) -> Path:
    return sorted((sample / "cars_test").glob("*.jpg"))[number]


def choose(page: Page, *files: Path) -> None:
    page.locator("input[type=file]").set_input_files(files)


def likeliest(page: Page, place: int = 0) -> str:
    return page.locator(".q-card").nth(place).get_by_text("Synthetic").first.inner_text()


@pytest.mark.parametrize("window", WINDOWS)
def test_chosen_photos_get_five_bars_each_and_a_bad_file_its_error(page: Page, sample: Path, tmp_path: Path) -> None:
    (bad := tmp_path / "bad.jpg").write_text("no photo")
    choose(page, drawn(sample), bad, drawn(sample, 1))
    cards = page.locator(".q-card")
    expect(cards).to_have_count(3)
    for place in (0, 2):
        expect(cards.nth(place).get_by_role("progressbar")).to_have_count(5)
        expect(cards.nth(place).get_by_text("%")).to_have_count(5)
    expect(cards.nth(1)).to_contain_text("not a JPEG, PNG, WebP or BMP image")
    expect(cards.nth(1).get_by_role("progressbar")).to_have_count(0)
    expect(page.get_by_text("3 photos answered in")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_answer_comes_with_example_pictures_of_its_class(page: Page, sample: Path) -> None:
    choose(page, drawn(sample))
    expect(page.get_by_text(f"Examples of {likeliest(page)} in the training photos")).to_be_visible()
    strip = page.locator(".q-card img:not([src^='data:'])")
    strip.scroll_into_view_if_needed()
    expect(strip).to_have_js_property("naturalWidth", 100)
    expect(strip).to_have_js_property("naturalHeight", 50)


def test_a_photo_is_pasted_or_dropped_anywhere(page: Page, sample: Path) -> None:
    data = base64.b64encode(drawn(sample).read_bytes()).decode()
    for count, (kind, field) in enumerate([("Clipboard", "clipboardData"), ("Drag", "dataTransfer")], start=1):
        name = {"Clipboard": "paste", "Drag": "drop"}[kind]
        page.evaluate(
            """([data, kind, name, field]) => {
                const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "car.jpg", {type: "image/jpeg"}));
                const event = new window[kind + "Event"](name, {[field]: transfer, bubbles: true, cancelable: true});
                document.body.dispatchEvent(event);
            }""",
            [data, kind, name, field],
        )
        expect(page.locator(".q-card")).to_have_count(count)
        expect(page.get_by_text("1 photo answered in")).to_be_visible()


def test_newer_answers_stand_above_older_ones(page: Page, sample: Path) -> None:
    choose(page, drawn(sample, 0))
    expect(page.locator(".q-card")).to_have_count(1)
    choose(page, drawn(sample, 1), drawn(sample, 2))
    expect(page.locator(".q-card")).to_have_count(3)
    names = page.locator(".q-card").evaluate_all("cards => cards.map((card) => card.innerText.match(/\\d+\\.jpg/)[0])")
    assert names == [drawn(sample, number).name for number in (1, 2, 0)]


def test_a_box_goes_along_and_half_a_box_is_an_error(page: Page, sample: Path) -> None:
    page.get_by_text("A box around the car").click()
    page.get_by_label("x1").fill("3")
    choose(page, drawn(sample))
    expect(page.locator(".q-card").first).to_contain_text("y1 is missing")
    for corner, side in {"y1": "3", "x2": "90", "y2": "80"}.items():
        page.get_by_label(corner).fill(side)
    choose(page, drawn(sample))
    expect(page.locator(".q-card")).to_have_count(2)
    expect(page.locator(".q-card").first.get_by_role("progressbar")).to_have_count(5)


def test_a_file_that_is_no_photo_by_name_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    (notes := tmp_path / "notes.txt").write_text("no photo")
    choose(page, notes)
    expect(page.get_by_text("JPEG, PNG, WebP or BMP, up to")).to_be_visible()


def test_a_real_photo_gets_five_bars(page: Page, photos: Path) -> None:
    choose(page, next((photos / "cars_test").glob("*.jpg")))
    expect(page.locator(".q-card").get_by_role("progressbar")).to_have_count(5)
    assert likeliest(page) in NAMES


@pytest.mark.parametrize(("size", "shown"), [((1200, 800), (480, 320)), ((90, 60), (90, 60)), ((3000, 1), (480, 1))])
def test_a_large_photo_is_shown_smaller(size: tuple[int, int], shown: tuple[int, int]) -> None:
    photo = cv2.imencode(".png", np.zeros((size[1], size[0], 3), np.uint8))[1].tobytes()
    header, _, data = str(preview(photo)).partition(",")
    assert header == "data:image/jpeg;base64"
    assert decode(base64.b64decode(data)).shape[1::-1] == shown


def test_what_is_no_photo_is_not_shown() -> None:
    assert preview(b"no photo") is None


def test_serving_says_its_addresses_and_an_interrupt_ends_page_and_endpoint(serving: Serving) -> None:
    said = serving.log.read_text()
    assert ALONE in said
    assert serving.page in said
    assert f"http://127.0.0.1:{serving.port}/invocations" in said
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(30) == 0
    deadline = time.monotonic() + 15
    while listens(serving.port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listens(serving.port)
    assert "Traceback" not in serving.log.read_text()


def test_an_endpoint_that_is_gone_is_an_error_in_words(browser: Browser, sample: Path, tmp_path: Path) -> None:
    port = free_port()
    code = f"from carmodel.serving.page import show; show('http://127.0.0.1:9', '127.0.0.1', {port}, 'none', {{}})"
    process = subprocess.Popen([sys.executable, "-c", code], env=variables(tmp_path))
    try:
        while not listens(port):
            assert process.poll() is None
            time.sleep(0.1)
        page = browser.new_page()
        page.goto(f"http://localhost:{port}")
        choose(page, drawn(sample))
        expect(page.get_by_text("does not answer")).to_be_visible(timeout=15_000)
        page.close()
    finally:
        process.terminate()
        process.wait(10)


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--model", "models:/none@candidate", "--port", str(free_port()), "--page-port", str(free_port())),
        env=variables(tmp_path), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "models:/none@candidate: no such model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_an_error_in_words(registry: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("--port", port, "--page-port", str(free_port())),
            env=variables(registry), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"127.0.0.1:{port} can't be used" in done.stderr
