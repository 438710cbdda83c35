"""The page in a real browser, on a desk and on a phone, and the messages of `make serve`."""

import base64
import csv
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pytest
import urllib3
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from carmodel.data.pictures import class_examples
from carmodel.serving.about import EXAMPLES, accuracy_sentence, draw_samples, run_url
from carmodel.serving.page import MAX_BYTES, create_page, page_url
from carmodel.serving.registry import CHAMPION
from tests.browsing import DESK, PHONE, chromium
from tests.stores import store_of
from tests.tiny import NAMES, SIZE, free_port, log_tiny, tiny_network
from tests.tracked import new_database, tracked_in

pytestmark = pytest.mark.slow

expect.set_options(timeout=30_000)  # milliseconds, for a browser, a page and a network on two busy cores


@dataclass(frozen=True)
class Serving:
    """A running `make serve`: its page's URL, the endpoint's port, its process and its output."""

    page: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tracking store, in which a packaged classifier with example pictures is the champion."""
    folder = tmp_path_factory.mktemp("page")
    store = folder / "train.h5"
    images = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
    store_of(store, images, np.arange(16) % len(NAMES), NAMES)
    (pictures := folder / EXAMPLES).mkdir()
    class_examples(store, pictures, 2, width=50)
    with tracked_in(folder):
        with mlflow.start_run():
            version = mlflow.register_model(log_tiny(tiny_network()), "tiny").version
            mlflow.log_artifacts(str(pictures), EXAMPLES)
        mlflow.MlflowClient().set_registered_model_alias("tiny", CHAMPION, version)
    return folder


def variables(folder: Path) -> dict[str, str]:
    uri = f"sqlite:///{folder}/mlflow.db" if (folder / "mlflow.db").exists() else new_database(folder)
    return os.environ | {"MLFLOW_TRACKING_URI": uri}


@pytest.fixture(scope="module")
def serving(commands: str, registry: Path) -> Iterator[Serving]:
    """`make serve` without a model: it finds the champion."""
    port, page = free_port(), free_port()
    log = registry / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [f"{commands}/python", "-m", "carmodel.serving.serve", "--port", str(port), "--page-port", str(page)],
            env=variables(registry), stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
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
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, serving: Serving) -> Iterator[Page]:
    """The open page. It may talk to its own server alone, and its scripts must not fail."""
    window = getattr(request, "param", DESK)
    context = browser.new_context(viewport=window, has_touch=window == PHONE, color_scheme="light")
    page = context.new_page()
    requested, faults = list[str](), list[str]()
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(serving.page)
    expect(page.get_by_text("tiny@champion (version 1)")).to_be_visible()
    yield page
    context.close()
    assert [url for url in requested if not url.startswith((serving.page, "data:", "blob:"))] == []
    assert faults == []


def drawn(sample: Path, number: int = 0) -> Path:
    return sorted((sample / "cars_test").glob("*.jpg"))[number]


def choose(page: Page, *files: Path) -> None:
    page.locator("input[type=file]").set_input_files(files)


def answered(page: Page) -> str:
    """The first answer in the large view, once it is there."""
    first = page.locator("#answer .first")
    expect(first).to_contain_text("Synthetic")
    return first.inner_text()


def test_a_chosen_photo_gets_a_large_answer_with_its_mark_and_four_others(page: Page, sample: Path) -> None:
    choose(page, drawn(sample))
    assert answered(page) in NAMES
    expect(page.locator("#answer .mark")).to_have_text(re.compile(r"^(likely|not sure), \d+\.\d%$"))
    expect(page.get_by_label("Other answers").locator("li")).to_have_count(4)
    expect(page.get_by_text("1 photo answered in")).to_be_visible()


def test_example_pictures_of_the_class_keep_their_proportions(page: Page, sample: Path) -> None:
    choose(page, drawn(sample))
    picture = page.get_by_alt_text(f"Training photos of {answered(page)}")
    expect(picture).to_have_js_property("naturalWidth", 50)
    width, height = picture.evaluate("image => [image.width, image.height]")
    assert height == 2 * width


def test_a_sample_photo_is_classified_with_one_click(page: Page) -> None:
    page.get_by_alt_text("Drawn car 3").click()
    answered(page)


def test_the_answer_follows_a_box_that_is_drawn_on_the_photo(page: Page, sample: Path) -> None:
    choose(page, drawn(sample))
    before = answered(page), page.locator("#answer .mark").inner_text()
    area = page.locator(".photo img").bounding_box()
    assert area
    page.mouse.move(area["x"] + 0.2 * area["width"], area["y"] + 0.2 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.6 * area["width"], area["y"] + 0.7 * area["height"])
    page.mouse.up()
    expect(page.get_by_role("button", name="Use the whole photo")).to_be_visible()
    page.wait_for_function("before => document.querySelector('#answer .mark')?.innerText !== before", arg=before[1])
    page.get_by_role("button", name="Use the whole photo").click()
    expect(page.locator("#answer .mark")).to_have_text(before[1])
    assert answered(page) == before[0]


def test_a_box_can_be_entered_by_keyboard_and_a_wrong_one_is_an_error(page: Page, sample: Path) -> None:
    choose(page, drawn(sample))
    answered(page)
    page.get_by_text("Enter the box in pixels").press("Enter")
    for label, side in {"Left": "3", "Top": "3", "Right": "5000", "Bottom": "80"}.items():
        page.get_by_label(label).fill(side)
    page.get_by_label("Bottom").press("Enter")
    expect(page.locator("#answer .error")).to_contain_text("leaves the")
    expect(page.locator(".box")).to_be_hidden()


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_several_photos_are_a_grid_with_errors_next_to_their_photo(page: Page, sample: Path, tmp_path: Path) -> None:
    (bad := tmp_path / "bad.jpg").write_text("no photo")
    choose(page, drawn(sample), bad, drawn(sample, 1))
    expect(page.get_by_text("3 photos answered in")).to_be_visible()
    items = page.locator(".grid button")
    expect(items).to_have_count(3)
    expect(items.nth(1)).to_contain_text("bad.jpg")
    expect(items.nth(1)).to_contain_text("not a JPEG, PNG, WebP or BMP image")
    for place in (0, 2):
        expect(items.nth(place)).to_contain_text("Synthetic")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_grid_is_downloaded_as_csv_and_cleared(page: Page, sample: Path, tmp_path: Path) -> None:
    choose(page, drawn(sample), drawn(sample, 1))
    expect(page.get_by_text("2 photos answered in")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["file"] for row in rows] == [drawn(sample, number).name for number in (0, 1)]
    assert all(row["label"] in NAMES and row["error"] == "" for row in rows)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#photos")).to_be_hidden()
    expect(page.locator("#result")).to_be_hidden()


def test_photos_that_were_cleared_are_not_sent(page: Page, sample: Path) -> None:
    sent: list[Route] = []
    page.route("**/invocations", lambda route: sent.append(route))  # noqa: PLW0108 (Playwright rejects a bound method)
    choose(page, *(drawn(sample, number) for number in range(3)))
    expect(page.get_by_text("3 photos to go")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    page.wait_for_timeout(100)
    sent[0].abort()
    page.wait_for_timeout(300)
    assert len(sent) == 1
    assert page.locator("#status").text_content() == ""
    expect(page.locator("#problem")).to_be_hidden()


@pytest.mark.parametrize(("kind", "field"), [("Clipboard", "clipboardData"), ("Drag", "dataTransfer")])
def test_a_photo_is_pasted_or_dropped_anywhere(page: Page, sample: Path, kind: str, field: str) -> None:
    page.evaluate(
        """([data, kind, name, field]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "car.jpg", {type: "image/jpeg"}));
            const event = new window[kind + "Event"](name, {[field]: transfer, bubbles: true, cancelable: true});
            document.body.dispatchEvent(event);
        }""",
        [
            base64.b64encode(drawn(sample).read_bytes()).decode(),
            kind,
            {"Clipboard": "paste", "Drag": "drop"}[kind],
            field,
        ],
    )
    answered(page)


def test_the_list_of_classes_is_searched(page: Page) -> None:
    page.get_by_text("The 8 models it knows").click()
    page.get_by_label("Search").fill("van 2020")
    expect(page.locator("#classes li:visible")).to_have_text(["Synthetic Van 2020"])


@pytest.mark.parametrize(
    ("page", "scheme"), [(DESK, "light"), (PHONE, "dark")], indirect=["page"], ids=["desk", "phone"]
)
def test_axe_finds_no_barrier(page: Page, sample: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    choose(page, drawn(sample), drawn(sample, 1))
    expect(page.get_by_text("2 photos answered in")).to_be_visible()
    page.get_by_text("Enter the box in pixels").click()
    page.get_by_text("The 8 models it knows").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")  # the link to the run
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    answered(page)


def test_serving_prints_the_version_and_its_addresses_and_an_interrupt_stops_both(serving: Serving) -> None:
    said = serving.log.read_text()
    assert "models:/tiny@champion (version 1)" in said
    assert "its test accuracy is not known" in said
    assert serving.page in said
    assert f"http://127.0.0.1:{serving.port}/invocations" in said
    assert "make serve MODEL=" in said
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(30) == 0
    deadline = time.monotonic() + 15
    while listens(serving.port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listens(serving.port)
    assert "Traceback" not in serving.log.read_text()


@contextmanager
def running(endpoint: str, *, crops: bool = True) -> Iterator[str]:
    """The address of a page in front of an endpoint."""
    about = {"model": "none", "accuracy": "", "run": "", "run_url": "", "classes": NAMES, "crops": crops}
    config = uvicorn.Config(create_page(endpoint, about, {}, []), port=(port := free_port()), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_when_the_endpoint_is_gone_the_page_says_what_to_do(browser: Browser, sample: Path) -> None:
    with running("http://127.0.0.1:9") as address:
        page = browser.new_page()
        page.goto(address)
        choose(page, drawn(sample))
        expect(page.get_by_role("alert")).to_contain_text("make serve")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        page.close()


@pytest.mark.parametrize("crops", [True, False])
def test_boxes_are_offered_only_if_the_classifier_uses_them(crops: bool, browser: Browser) -> None:
    with running("http://127.0.0.1:9", crops=crops) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#classes summary")).to_contain_text(str(len(NAMES)))
        hidden = page.locator("#result .hint[hidden], #result details[hidden]")
        expect(hidden).to_have_count(0 if crops else 2)
        page.close()


def test_an_endpoint_with_a_fault_is_not_gone() -> None:
    class Faulty(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(500)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        for address, status in ((f"http://127.0.0.1:{endpoint.server_port}", 500), ("http://127.0.0.1:9", 502)):
            with running(address) as page:
                answer = urllib3.request("POST", f"{page}/invocations", body=b"{}", retries=False)
                assert answer.status == status
        endpoint.shutdown()


def test_a_request_that_is_too_large_is_refused_whatever_its_headers_say() -> None:
    with running("http://127.0.0.1:9") as page, socket.create_connection(urlsplit(page).netloc.split(":")) as client:
        head = "POST /invocations HTTP/1.1\r\nHost: page\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        piece = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
        with suppress(OSError):  # the page closes the connection
            for _ in range(MAX_BYTES // 2**20 + 2):
                client.sendall(piece)
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_the_address_of_a_run_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="3"))
    monkeypatch.setattr(mlflow, "get_run", lambda run_id: run)
    for tracking, address in {
        "https://me:word@host/base/": "https://host/base/#/experiments/3/runs/r",
        "sqlite:///mlflow.db": "http://localhost:5000/#/experiments/3/runs/r",
        "databricks://profile": "",
    }.items():
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda tracking=tracking: tracking)
        assert run_url("r") == address


def test_the_accuracy_has_an_interval() -> None:
    facts = {"test_top1": 0.9, "test_rows": 100.0, "test_whole_top1": 0.8}
    expected = "90.0% right on 100 test photos (95% interval 82.6% to 94.5%), 80.0% without a box"
    assert accuracy_sentence(facts) == expected
    assert accuracy_sentence({}) == ""


def test_samples_are_drawn_for_models_of_drawn_cars_only() -> None:
    assert len(draw_samples(NAMES)) == 6
    assert draw_samples([*NAMES, "Audi A5 Coupe 2012"]) == []


def test_a_page_for_other_machines_has_an_address_that_they_can_open() -> None:
    assert page_url("127.0.0.1", 5002) == "http://localhost:5002"
    assert "0.0.0.0" not in page_url("0.0.0.0", 5002)


def test_serving_ends_if_its_endpoint_ends() -> None:
    program = "import subprocess, time\nfrom carmodel.serving.serve import ending_with\n"
    program += "with ending_with(subprocess.Popen(['true'])): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "the endpoint has ended; to start it again: make serve" in done.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "models:/none@champion"], "models:/none@champion: no such model"),
        (["--port", "{taken}"], "127.0.0.1:{taken} cannot be used"),
    ],
)
def test_what_cannot_be_served_is_reported(commands: str, registry: Path, given: list[str], said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as socket_in_use:
        taken = socket_in_use.getsockname()[1]
        ports = ("--port", str(free_port()), "--page-port", str(free_port()))
        command = [
            f"{commands}/python",
            "-m",
            "carmodel.serving.serve",
            *ports,
            *(w.format(taken=taken) for w in given),
        ]
        done = subprocess.run(
            command, env=variables(registry), capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2
    assert said.format(taken=taken) in done.stderr
    assert "Traceback" not in done.stderr
