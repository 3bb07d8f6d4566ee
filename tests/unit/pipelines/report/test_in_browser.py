"""The report in a browser: it fits every width, shows values under the pointer, and is whole without its script."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from pipelines.report.page import write_report
from tests.browser import browser, complaints, needs_browser

from .reporting import add_results, add_samples, make_run, result, write_lines

pytestmark = needs_browser
HEIGHTS = {390: 844, 768: 1024, 1366: 768}
RED = (250, 1, 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that may be wide: long names, wide tables, pictures and answers."""
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder / name) for name in ("one", "a_run_with_quite_a_long_name_" * 3)]
    for number, run in enumerate(runs, start=1):
        rows = [
            {"step": s, "time": 1e9 + 360 * s, "attempt": 1, "train/loss_t2i": number / s, "data/samples_t2i": 48 * s}
            for s in range(1, 31)
        ]
        write_lines(run / "metrics.jsonl", rows)
        for step in (0, 6):
            metrics = {"f1_macro": 0.25 + step / 10, **{f"a_long_name_of_a_metric_{i}": 0.5 for i in range(3)}}
            more = {"baselines": {"f1_macro": 0.6667}, "protocol": {"n": 9000, "baseline": "the most frequent answer"}}
            add_results(run, step, {"pope": result(metrics, **more)})
            add_samples(run, step, ["a red picture with a caption of some length"])
        asked = {"sample_id": "x" * 80, "question": "Is it red?" * 9, "raw": "yes", "gold": "yes", "image": "a.jpg"}
        write_lines(run / "records/step-000000006/pope/rank0.jsonl", [asked])
    Image.new("RGB", (64, 64), RED).save(runs[0] / "samples/step-000000006/000.png")
    kept = folder / "kept.csv"
    kept.write_text("step,key,value\n1,train/loss_t2i,3\n30,train/loss_t2i,0.5\n")
    return write_report(runs, folder / "report.html", kept)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Page]:
    view = chromium.new_page(viewport={"width": 1366, "height": 768})
    found = complaints(view)
    view.goto(file.as_uri())
    yield view
    view.close()
    assert found == []


def chart(page: Page, axis: str = "step") -> Locator:
    return page.locator(f"#losses .by-{axis} svg")


def point(page: Page, axis: str, share: float) -> list[str]:
    """What is said when the pointer is at a share of the chart's width."""
    chart(page, axis).scroll_into_view_if_needed()
    box = chart(page, axis).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    expect(page.locator("#losses .tip")).to_be_visible()
    return page.locator("#losses .tip > div").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_width_and_shows_what_is_in_it(page: Page, scheme: str, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for width, height in HEIGHTS.items():
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = "[...document.querySelectorAll('.scores td, .chart, .chart text, .answer, .values span, h2, h3')]"
        right = f"{outside}.map((e) => e.getBoundingClientRect().right).filter((right) => right > {width})"
        assert page.evaluate(right) == [], width
        assert page.evaluate("document.querySelector('nav').offsetHeight") < 50
    page.screenshot(path=tmp_path / "shot.png", full_page=True)
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    colours = {colour: count for count, colour in shot.getcolors(2**24) or []}
    curve, ground = {"light": ((0, 0x72, 0xB2), (0xF5, 0xF7, 0xF9)), "dark": ((0x4F, 0xA8, 0xE0), (0x12, 0x17, 0x1D))}[
        scheme
    ]
    assert colours[RED] > 70 * 70
    assert colours[curve] > 200
    assert colours[ground] > shot.width * shot.height / 10


@pytest.mark.parametrize("width", HEIGHTS)
def test_the_menu_hides_no_heading_it_leads_to(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
    for link in page.locator("nav a").all():
        link.click()
        target = (link.get_attribute("href") or "")[1:]
        top = page.evaluate(
            "(id) => document.getElementById(id).querySelector('h2').getBoundingClientRect().top", target
        )
        bottoms = "['nav', '.bar'].map((it) => document.querySelector(it).getBoundingClientRect().bottom)"
        assert top >= max(page.evaluate(bottoms)), target


def test_the_pointer_shows_the_values_under_it(page: Page) -> None:
    assert point(page, "step", 0.99) == ["step 30", "0.03333", "0.06667", "0.5"]
    assert point(page, "step", 0.14) == ["step 1", "1", "2", "3"]
    for width, height in HEIGHTS.items():
        page.set_viewport_size({"width": width, "height": height})
        for share in (0.14, 0.5, 0.99):
            point(page, "step", share)
            line, tip = (page.locator(f"#losses {it}").bounding_box() for it in (".pointer", ".tip"))
            assert line is not None
            assert tip is not None
            assert 0 <= tip["x"] <= width - tip["width"]
            assert min(abs(tip["x"] - line["x"]), abs(tip["x"] + tip["width"] - line["x"])) < 20  # beside it
    page.mouse.move(0, 0)
    expect(page.locator("#losses .tip")).to_be_hidden()
    assert page.locator("#losses .pointed").count() == 0


def test_a_run_can_be_hidden_and_shown(page: Page) -> None:
    lines = [chart(page).locator(f"g.of-{run}") for run in (0, 1)]
    page.get_by_role("checkbox", name="one").uncheck()
    expect(lines[0]).to_be_hidden()
    expect(lines[1]).to_be_visible()
    assert point(page, "step", 0.99) == ["step 30", "0.06667", "0.5"]
    page.get_by_role("checkbox", name="reference").uncheck()
    assert point(page, "step", 0.99) == ["step 30", "0.06667"]
    page.get_by_role("checkbox", name="one").check()
    expect(lines[0]).to_be_visible()


def test_charts_may_run_over_samples_and_hours(page: Page) -> None:
    for axis, last in (("samples", "samples 1440"), ("hours", "hours 3")):
        page.get_by_role("radio", name=axis).check()
        expect(chart(page)).to_be_hidden()
        assert point(page, axis, 0.99)[0] == last


def test_without_scripts_only_the_values_under_the_pointer_are_missing(chromium: Browser, file: Path) -> None:
    view = chromium.new_page(java_script_enabled=False)
    view.goto(file.as_uri())
    expect(chart(view)).to_be_visible()
    expect(chart(view, "hours")).to_be_hidden()
    chart(view).hover()
    assert view.locator(".tip").count() == 0
    view.get_by_role("radio", name="hours").check()
    expect(chart(view, "hours")).to_be_visible()
    view.get_by_role("checkbox", name="one").uncheck()
    expect(chart(view, "hours").locator("g.of-0")).to_be_hidden()
    view.close()


def test_no_other_script_would_run(chromium: Browser, file: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.html"
    forged.write_text(file.read_text().replace("</body>", "<script>document.title = 'forged'</script></body>"))
    view = chromium.new_page()
    found = complaints(view)
    view.goto(forged.as_uri())
    assert view.title() != "forged"
    assert len(found) == 1
    view.close()
