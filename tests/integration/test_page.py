"""The page of a trained run, used in a browser: what it shows is what the run draws and answers."""

import io
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pipelines.run.trained import Trained, load_trained
from tests.browser import browser, complaints, needs_browser
from tests.pages import commands

from .running import ENVIRONMENT, ROOT, UNIFIED, Train

pytestmark = needs_browser
PHONE = {"width": 390, "height": 844}
SECONDS = 30_000


@pytest.fixture(scope="module")
def run_folder(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "run"
    train(UNIFIED, folder, "trainer.max_steps=4")
    return folder


@pytest.fixture(scope="module")
def trained(run_folder: Path) -> Trained:
    return load_trained(run_folder)


def command(run: Path, *more: object) -> list[str]:
    """The README's command, with ``run`` for its run."""
    (words,) = [each.split() for each in commands("README.md") if "-m pipelines.page " in each]
    assert words[1:] == ["-m", "pipelines.page", "runs/demo_unified"]
    return [sys.executable, *words[1:3], str(run), *map(str, more)]


@pytest.fixture(scope="module")
def address(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running page; ended by Ctrl-C, after which none of its files are left."""
    place = tmp_path_factory.mktemp("temporary")
    environment = {**ENVIRONMENT, "TMPDIR": str(place)}
    words = command(run_folder, "--port", 0)
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"run at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)", said)
        assert found, said
        yield found[1]
        assert list(place.iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    view = chromium.new_page()
    found = complaints(view)
    view.goto(address)
    yield view
    view.close()
    assert found == []


def draw(page: Page, caption: str) -> None:
    page.get_by_label("Caption").first.fill(caption)
    page.get_by_role("button", name="Draw", exact=True).click()


def drawn(page: Page, number: int) -> list[bytes]:
    """The pictures that the page shows, as raw bytes, once there are ``number``."""
    shown = page.locator(".drawn img")
    expect(shown).to_have_count(number, timeout=SECONDS)
    files = [page.request.get(shown.nth(i).get_attribute("src") or "").body() for i in range(number)]
    return [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]


def ask(page: Page, picture: Path | None, question: str) -> None:
    page.get_by_role("tab", name="Ask").click()
    if picture is not None:
        page.locator("input[type=file]").set_input_files(picture)
        expect(page.get_by_label("Remove")).to_be_visible(timeout=SECONDS)
    page.get_by_label("Question").first.fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_it_draws_what_the_run_draws(page: Page, trained: Trained) -> None:
    page.get_by_label("Seed").fill("3")
    draw(page, "a red circle")
    assert drawn(page, 4) == [picture.tobytes() for picture in trained.draw("a red circle", n=4, seed=3)]
    text = page.inner_text("body")
    assert "step 4 of stage unified_finetune" in text
    assert re.search(r"Drawing captions: learnt from \d+ samples of \S+/t2i/manifest\.json\.", text)
    page.get_by_role("button", name=re.compile("^an? (small|large) ")).first.click()  # a caption that it was trained on
    expect(page.get_by_label("Caption").first).to_have_value(re.compile("^an? (small|large) "))


def test_it_answers_what_the_run_answers(page: Page, trained: Trained, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    ask(page, tmp_path / "red.png", "Is there a red circle in the image?")
    answer = trained.answer(tmp_path / "red.png", "Is there a red circle in the image?", short=True)
    assert answer.strip()
    expect(page.get_by_label("Answer")).to_have_value(answer, timeout=SECONDS)


def test_what_cannot_be_used_is_said_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    draw(page, " ")
    expect(page.get_by_text("the caption is empty; say what to draw")).to_be_visible(timeout=SECONDS)
    draw(page, "a red circle " * 20)
    expect(page.get_by_text(re.compile(r"model\.caption_length=\d+; shorten it by"))).to_be_visible(timeout=SECONDS)
    ask(page, None, "What is in the image?")
    expect(page.get_by_text("there is no picture yet; upload one")).to_be_visible(timeout=SECONDS)
    (tmp_path / "notes.png").write_text("no picture")
    ask(page, tmp_path / "notes.png", "What is in the image?")
    said = page.get_by_text("notes.png cannot be used: no picture of a known kind")
    expect(said).to_be_visible(timeout=SECONDS)


def told_by_the_server(page: Page, address: str, picture: str) -> str:
    """What the server says to a client that sends a question about ``picture`` without a browser."""
    jobs = page.request.get(f"{address}/config").json()["dependencies"]
    (job, *_) = [each["id"] for each in jobs if len(each["inputs"]) == 3]
    data = [{"path": picture, "meta": {"_type": "gradio.FileData"}}, "What is in the image?", True]
    words = {"data": data, "fn_index": job, "session_hash": "raw"}
    assert page.request.post(f"{address}/gradio_api/queue/join", data=words).ok
    return page.request.get(f"{address}/gradio_api/queue/data?session_hash=raw").text()


def test_only_uploads_are_read(page: Page, address: str, tmp_path: Path) -> None:
    """A client need not be a browser: it may name any file of the server, or an address for the server to fetch."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "private.png")
    said = told_by_the_server(page, address, str(tmp_path / "private.png"))
    assert '"success":false' in said.replace(" ", "")
    assert "process_generating" not in said
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.5)
        place = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        assert "this page fetches no addresses; upload the picture itself" in told_by_the_server(page, address, place)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_other_names_than_its_own_are_refused(page: Page, address: str) -> None:
    port = address.rpartition(":")[2]
    assert page.request.get(address, headers={"Host": f"elsewhere.example:{port}"}).status == 400
    assert page.request.get(address, headers={"Host": f"localhost:{port}"}).status == 200


def test_a_huge_picture_is_refused(page: Page, tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png", compress_level=1)
    ask(page, tmp_path / "huge.png", "What is in the image?")
    said = page.get_by_text("huge.png cannot be used: it has 100,000,000 pixels, more than 50,000,000; scale it down")
    expect(said).to_be_visible(timeout=SECONDS)


def test_users_queue_and_one_who_leaves_holds_up_nobody(chromium: Browser, address: str, page: Page) -> None:
    leaver, other = chromium.new_page(), chromium.new_page()
    for view in (leaver, other):
        view.goto(address)
        view.get_by_label("number input for Pictures").fill("16")
        draw(view, "a blue square")
    leaver.close()
    draw(page, "a red circle")
    assert len(set(drawn(page, 4))) > 1
    assert len(drawn(other, 16)) == 16
    other.close()


def test_it_fits_a_phone(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for tab in ("Draw", "Ask", "Scores"):
        page.get_by_role("tab", name=tab).click()
        page.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab


def test_a_port_in_use_is_said_before_the_run_is_loaded(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())  # it has no checkpoint to load
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(command(tmp_path, "--port", port), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 is in use; name another, for example --port {port + 1}" in done.stderr
