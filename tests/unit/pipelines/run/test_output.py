import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from pipelines.run.output import show_table

ROOT = Path(__file__).parents[4]
TALKS = """
import sys
from rich.console import Console
from pipelines.run.console import run_verb, say
from pipelines.run.output import outlived_output
def main():
    with outlived_output():
        for number in range(3):
            say("x" * 10_000)
            Console().print("y" * 10_000)
        print("unfinished", end="")
        open(sys.argv[1], "w").write("done")
run_verb(main)
"""


@pytest.mark.parametrize("where", ["closed pipe", "full disk", "nowhere"])
def test_what_cannot_be_written_is_lost_and_the_work_goes_on(tmp_path: Path, where: str) -> None:
    done, script = tmp_path / "done", [sys.executable, "-c", TALKS, str(tmp_path / "done")]
    if where == "nowhere":
        result = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *script], stderr=subprocess.PIPE, text=True)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        output = writer if where == "closed pipe" else os.open("/dev/full", os.O_WRONLY)
        result = subprocess.run(script, stdout=output, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert result.stderr.count("standard output can no longer be written") == 1
    assert result.returncode == 0, result.stderr
    assert done.read_text() == "done"


SPEAKS = """
import logging
from pathlib import Path
from modules.files import write_json
from modules.json_lines import append_rows
from pipelines.run.console import run_verb, say, warn
def main():
    say("un été à Łódź")
    warn("été")
    logging.getLogger().warning("été")
    write_json(Path("été.json"), {"a": "été"})
    append_rows(Path("été.jsonl"), [{"a": "été"}])
run_verb(main)
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"LC_ALL": "C"}, "un été à Łódź\n".encode()),
        ({"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}, b"un ?t? ? ??d?\n"),
        ({"PYTHONIOENCODING": "latin-1"}, "un été à ?ód?\n".encode("latin-1")),
    ],
)
def test_whatever_the_locale_files_are_utf_8_and_output_has_replacements(
    tmp_path: Path, settings: dict[str, str], said: bytes
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run([sys.executable, "-c", SPEAKS], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert (tmp_path / "été.json").read_bytes() == '{\n "a": "été"\n}\n'.encode()
    assert (tmp_path / "été.jsonl").read_bytes() == '{"a": "été"}\n'.encode()


@pytest.mark.parametrize("columns", ["10", "80", "200"])
def test_a_table_is_never_cut(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("measure", "value", title="all")
    table.add_row("m" * 150, "1")
    show_table(table)
    assert f"│ {'m' * 150} │ 1     │" in capsys.readouterr().out


def test_it_ends_well_if_standard_error_is_gone_too(tmp_path: Path) -> None:
    words = ["sh", "-c", '"$@" >/dev/full 2>/dev/full', "sh", sys.executable, "-c", TALKS, str(tmp_path / "done")]
    assert subprocess.run(words).returncode == 0
    assert (tmp_path / "done").exists()
