"""Run folders written by hand, and a reader of the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

VOID = {"meta", "link", "img", "br", "input"}
BAD = "<script>alert(1)</script>"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_run(folder: Path, steps: int = 6, name: str = "") -> Path:
    """A complete run of one attempt, without evaluation."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"name: {name or folder.name}\nstage: {{name: unified_finetune}}\ntrainer: {{max_steps: {steps}}}\n"
        "optim: {lr: 0.25}\ntracking: {project: omnimamba}\n"
    )
    attempt = {"time": 1e9, "resumed": None, "data": {"mmu": "abc"}, "code": "c0de", "cpu_cores": 2}
    write_json(folder / "provenance.json", {"wandb_run_id": "run1", "attempts": [attempt]})
    rows = [{"step": step, "time": 1e9 + step, "attempt": 1, "train/loss": 1 / step} for step in range(1, steps + 1)]
    write_lines(folder / "metrics.jsonl", rows)
    (folder / "COMPLETE").write_text(f"{steps}\n")
    return folder


def result(metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"metrics": metrics, "standard_errors": {}, "baselines": {}, "protocol": {"n": 8}, **more}


def add_results(run: Path, step: int, results: dict[str, Any]) -> None:
    write_json(run / f"records/step-{step:09d}/results.json", results)


def add_samples(run: Path, step: int, captions: list[str]) -> None:
    folder = run / f"samples/step-{step:09d}"
    write_json(folder / "captions.json", {f"{i:03d}": caption for i, caption in enumerate(captions)})
    for i in range(len(captions)):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / f"{i:03d}.png")


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(self.html)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] == "script":
            self.script += text
        elif self._open and self._open[-1] != "style":
            self.text = re.sub(r"\s+", " ", self.text + text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]

    def of_class(self, name: str) -> int:
        return sum(name in (attributes.get("class") or "").split() for _, attributes in self.tags)
