"""The page of `python -m sskd_fast.demo`: its pictures and texts, and the real page in a real browser."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sskd_fast.data.errors import DataError
from sskd_fast.demo import page as demo_page
from sskd_fast.demo.__main__ import main
from sskd_fast.demo.analysis import (
    SMALLEST,
    Analysis,
    Found,
    analyse,
    heading,
    models_of,
    note,
    shown_instances,
    table,
    trouble,
    view,
)
from sskd_fast.predictor import Prediction
from sskd_fast.report.overlays import COLORS, UNMATCHED

ROOT = Path(__file__).resolve().parent.parent
SIDE = 120
ARROW_RIGHT = "\ue014"  # a key, as WebDriver writes it


def prediction(*instances: tuple[int, int, int, float]) -> Prediction:
    """Squares of 40 pixels in an image of 120 x 120: (top, left, category, score), best score first."""
    results = []
    for top, left, category, score in instances:
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        mask[top : top + 40, left : left + 40] = 1
        code = coco_mask.encode(np.asfortranarray(mask))
        rle = {"size": [SIDE, SIDE], "counts": code["counts"].decode()}
        results.append({"category_id": category, "score": score, "segmentation": rle})
    return Prediction.of_results(results, (SIDE, SIDE), ("cell <a>", "disc"), (3, 7))


@pytest.fixture
def analysis() -> Analysis:
    """A teacher with three instances; a student with the first, one more, and the third at a low score."""
    teacher = prediction((0, 0, 3, 0.9), (0, 80, 7, 0.8), (80, 0, 3, 0.7))
    student = prediction((2, 0, 3, 0.95), (80, 80, 7, 0.6), (80, 2, 3, 0.2))
    return Analysis(
        "a.png",
        Image.new("RGB", (SIDE, SIDE), (90, 90, 90)),
        (Found("Adapted teacher", 1_350_000, 41.6, teacher), Found("Refined student", 101_000, 3.14, student)),
    )


def cells(html: str) -> list[list[str]]:
    """The texts of an HTML table's cells by row."""
    rows = re.findall(r"<tr.*?</tr>", html)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_the_table_counts_instances_by_class(analysis: Analysis) -> None:
    assert cells(table(analysis.above(0.5))) == [
        ["", "Adapted teacher", "Refined student"],
        ["Parameters", "1.35 M", "101 k"],
        ["Prediction time", "41.6 ms", "3.1 ms"],
        ["Instances", "3", "2"],
        ["cell &lt;a&gt;", "2", "1"],
        ["disc", "1", "1"],
    ]
    assert cells(table(analysis))[3] == ["Instances", "3", "3"]
    assert [row[0] for row in cells(table(analysis.above(0.99)))][3:] == ["Instances"]


def test_an_object_has_one_colour_in_both_pictures(analysis: Analysis) -> None:
    teacher, student = shown_instances(analysis.above(0.5))
    assert [shown.number for shown in teacher] == [1, 2, 3] and [shown.number for shown in student] == [1, None]
    (left, right), html = view(analysis, 0.5)
    assert left.size == right.size == analysis.picture.size
    assert left.getpixel((20, 39)) == COLORS[0] == right.getpixel((20, 41))
    lower_left, lower_right, grey = (39, 100), (80, 100), (90, 90, 90)
    assert left.getpixel(lower_left) == COLORS[2] and right.getpixel(lower_left) == grey
    assert left.getpixel(lower_right) == grey and right.getpixel(lower_right) == UNMATCHED
    assert (
        "The refined student finds 1 of the adapted teacher&#x27;s 3 instances" in html and "1 more, in white" in html
    )


def test_the_note_says_what_is_left_out(analysis: Analysis) -> None:
    nothing = analysis.above(0.99)
    assert note(nothing, shown_instances(nothing), 0.99) == (
        "a.png, 120 x 120 pixels. No instance has a score of 0.99 or more: lower the score to see less certain ones."
    )
    alone = dataclasses.replace(analysis, found=analysis.found[1:])
    assert note(alone, shown_instances(alone), 0.5) == "a.png, 120 x 120 pixels."
    assert len(view(alone, 0.5)[0]) == 1 and cells(view(alone, 0.5)[1])[3] == ["Instances", "2"]


def test_a_run_gives_two_columns_and_a_checkpoint_one(plates_run: Path) -> None:
    image = plates_run.parent / "val" / "plate 1.png"
    pair = models_of(str(plates_run), "cpu")
    assert [model.title for model in pair] == ["Adapted teacher", "Refined student"]
    both = analyse(pair, image)
    for model, found in zip(pair, both.found, strict=True):
        assert found.prediction.to_coco(1) == model.predictor.predict(image).to_coco(1)
        assert found.milliseconds > 0 and found.parameters == model.predictor.model.parameter_count()
    single = models_of(str(plates_run / "checkpoints" / "distilled_student.safetensors"), "cpu")
    assert [model.title for model in single] == ["Distilled student"] and len(analyse(single, image).found) == 1
    assert heading(single) == "# Distilled student\n\nFinds square, disc. Images stay on this machine."


def test_a_picture_shows_the_image_as_the_model_sees_it(plates_run: Path) -> None:
    """The plates are dim 16-bit images; read with 8 bits they would be black."""
    picture = analyse(models_of(str(plates_run), "cpu"), plates_run.parent / "val" / "plate 1.png").picture
    assert picture.size == (SMALLEST, SMALLEST)
    assert np.percentile(np.asarray(picture), 99) > 120


def test_an_image_that_cannot_be_read_gets_a_message_with_the_cure(plates_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a<b>.png").write_text("no image")
    with pytest.raises(DataError) as caught:
        analyse(models_of(str(plates_run), "cpu"), tmp_path / "a<b>.png")
    message = trouble(caught.value)
    assert 'role="alert">a&lt;b&gt;.png: the image file cannot be read (' in message
    assert "Choose another file (png, " in message and str(tmp_path) not in message


def test_labels_in_place_of_an_image_are_not_read(plates_run: Path, tmp_path: Path) -> None:
    image = next((plates_run.parent / "plain").glob("*.png"))
    (tmp_path / "labels.json").write_text(json.dumps({"images": [{"id": 1, "file_name": str(image)}]}))
    with pytest.raises(DataError, match=r"labels\.json: .* \(its content is of no known image format\)"):
        analyse(models_of(str(plates_run), "cpu"), tmp_path / "labels.json")


def test_bad_input_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option, problem in (
        (["--port", "70000"], "found '70000', expected a whole number from 1 to 65535"),
        (["--score", "2"], "found '2', expected a number from 0 to 1"),
        (["--score", "high"], "found 'high', expected a number from 0 to 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path), *option])
        assert problem in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out.endswith("python -m sskd_fast.demo runs/embedded --score 0.4\n")
    pytest.importorskip("gradio")
    assert main([str(tmp_path), "--no-browser"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: has neither checkpoints/ nor model.safetensors")


def test_without_gradio_one_line_says_what_to_install() -> None:
    command = [
        sys.executable,
        "tests/only_these.py",
        "sskd_fast,huggingface_hub",
        "--",
        "-m",
        "sskd_fast.demo",
        "runs/embedded",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: the demo needs gradio: pip install 'sskd_fast[demo]'"


def test_a_taken_port_is_named(plates_run: Path) -> None:
    pytest.importorskip("gradio")
    page = demo_page.build_page(models_of(str(plates_run), "cpu"), 0.5)
    with (
        listening() as taken,
        pytest.raises(
            demo_page.DemoError, match=rf"port {taken}: another program uses it; end that program, or omit --port"
        ),
    ):
        demo_page.serve(page, taken, browser=False)


@contextmanager
def listening() -> Iterator[int]:
    """A port that is in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


# The command as a user starts it; it prints what it wants of other machines, and heeds Ctrl-C in the background too.
SERVER = """
import runpy, signal, sys

def heard(event, args):
    address = {"socket.connect": args[1:2], "socket.getaddrinfo": args[:1], "socket.gethostbyname": args[:1]}.get(event)
    host = address and (address[0][0] if isinstance(address[0], tuple) else address[0])
    if host and host not in ("127.0.0.1", "::1", "localhost"):
        print("LEFT THIS MACHINE:", event, args, flush=True)

sys.addaudithook(heard)
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("sskd_fast.demo", run_name="__main__")
"""


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium that resolves no name; skips the test if there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs pip install 'sskd_fast[browser-test]'")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture
def server(plates_run: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The running command, started while the default port is taken."""
    pytest.importorskip("gradio", reason="needs pip install 'sskd_fast[demo]'")
    command = [sys.executable, "-c", SERVER, str(plates_run), "--no-browser", "--score", "0.05"]
    with listening() as taken, (tmp_path / "errors.txt").open("w") as errors:
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(taken), "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def hosts(browser: Any) -> set[str]:
    """The hosts that the page sent requests to, as "host:port", without data URLs."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            url = urlsplit(parameters.get("url") or parameters["request"]["url"])
            found |= {url.netloc} if url.scheme not in ("data", "blob") else set()
    return found


def counts(predictions: list[Prediction], score: float) -> list[list[str]]:
    """The rows of the table from the instances on, computed from the models."""
    found = [Counter(p.above(score).names) for p in predictions]
    names = [name for name, _ in sum(found, Counter()).most_common()]
    return [["Instances", *(str(c.total()) for c in found)], *([n, *(str(c[n]) for c in found)] for n in names)]


class Page:
    """The page in the browser; each lookup waits up to a minute."""

    def __init__(self, browser: Any, url: str) -> None:
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        changing = [NoSuchElementException, StaleElementReferenceException]
        self.browser, self.wait = browser, WebDriverWait(browser, 60, ignored_exceptions=changing)
        browser.get(url)

    def present(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def visible(self, selector: str) -> list[Any]:
        found: list[Any] = self.wait.until(lambda _: [e for e in self.present(selector) if e.is_displayed()])
        return found

    def upload(self, path: Path) -> None:
        self.wait.until(lambda _: self.present("#file input[type=file]"))[0].send_keys(str(path))

    def table(self) -> list[list[str]]:
        return cells(self.browser.find_element("id", "facts").get_attribute("innerHTML"))

    def wait_for(self, rows: list[list[str]], pictures: list[Image.Image]) -> None:
        """Waits until the table ends in these rows and the pictures are these, pixel by pixel."""
        self.wait.until(lambda _: self.table()[3:] == rows)
        self.wait.until(lambda _: [p.tobytes() for p in self.pictures()] == [p.tobytes() for p in pictures])

    def pictures(self) -> list[Image.Image]:
        sources = [element.get_attribute("src") for element in self.visible("#picture-0 img, #picture-1 img")]
        return [Image.open(io.BytesIO(urllib.request.urlopen(source).read())) for source in sources]


def address_said(process: subprocess.Popen[str]) -> str:
    """The address that the command prints after a line on the taken port."""
    assert process.stdout is not None
    text = process.stdout.readline() + process.stdout.readline()
    line = r"port (\d+) is taken; using the next free one, (\d+)\n(http://127\.0\.0\.1:\2/) serves .*Ctrl-C to stop\n"
    said = re.fullmatch(line, text)
    assert said is not None and said[1] != said[2], text
    return said[3]


@pytest.mark.slow
def test_the_page_in_a_browser(plates_run: Path, server: subprocess.Popen[str], browser: Any, tmp_path: Path) -> None:
    url = address_said(server)
    page = Page(browser, url)
    image = plates_run.parent / "val" / "plate 1.png"
    models = models_of(str(plates_run), "cpu")
    predictions = [model.predictor.predict(image) for model in models]
    analysis = analyse(models, image)
    assert min(len(prediction.above(0.05)) for prediction in predictions) > 0

    page.upload(image)
    page.wait_for(counts(predictions, 0.05), view(analysis, 0.05)[0])
    assert [picture.size for picture in page.pictures()] == [(SMALLEST, SMALLEST)] * 2
    assert page.table()[0] == ["", "Adapted teacher", "Refined student"]

    measured = page.table()[2]
    steps = next(n for n in range(1, 96) if counts(predictions, 0.05) != counts(predictions, (5 + n) / 100))
    page.visible("#score input[type=range]")[0].send_keys(ARROW_RIGHT * steps)
    page.wait_for(counts(predictions, (5 + steps) / 100), view(analysis, (5 + steps) / 100)[0])
    assert page.table()[2] == measured  # drawn anew, not predicted anew

    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    page.upload(broken)
    message = page.visible("#trouble")[0].text
    assert re.fullmatch(r"broken\.png: the image file cannot be read \(.*\)\. Choose another file \(png.*\)\.", message)
    assert not page.present("#facts")
    page.upload(plates_run.parent / "val" / "plate 2.png")
    page.wait.until(lambda _: "plate 2.png, 160 x 160 pixels" in page.visible("#facts")[0].text)
    assert not page.present("#trouble")

    assert list(tmp_path.glob("sskd_fast_demo_*/*/plate 2.png"))  # gone at the end
    assert hosts(browser) == {urlsplit(url).netloc}
    server.send_signal(signal.SIGINT)
    said_later, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "LEFT THIS MACHINE" not in said_later
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
    assert list(tmp_path.glob("sskd_fast_demo_*")) == []
