import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_it_ends_well_if_standard_error_is_gone_too(tmp_path: Path) -> None:
    words = ["sh", "-c", '"$@" >/dev/full 2>/dev/full', "sh", sys.executable, "-c", TALKS, str(tmp_path / "done")]
    assert subprocess.run(words).returncode == 0
    assert (tmp_path / "done").exists()
