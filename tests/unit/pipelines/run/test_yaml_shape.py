"""What no configuration looks like is found before a parser hangs or crashes on it."""

from pathlib import Path

import pytest

from pipelines.run.overrides import ConfigError, read_yaml
from pipelines.run.yaml_shape import shape_problem
from pipelines.sweep.file import read_sweep

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("word", "must hold keys and values at its top level"),
        ("a: " + "[" * 60 + "]" * 60, "nests lists or keys more than 50 deep"),
        ("a: " + "{a: " * 100_000, "nests lists or keys more than 50 deep"),
        ("a: &a [*a]", r"holds \*a inside &a itself; write it out"),
        ("a: &a {b: [1, *a]}", r"holds \*a inside &a itself"),
        (LAUGHS, "holds more than 10000 values, once its aliases are replaced"),
        ("a: [" + "1, " * 10_001 + "]", "holds more than 10000 values"),
    ],
    ids=range(7),
)
def test_files_on_which_parsers_hang_or_crash_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for read in (read_yaml, read_sweep):
        with pytest.raises(ConfigError, match=rf"a\.yaml {problem}"):
            read(path)


def test_aliases_are_fine_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffa: &a [1, 2]\nb: [*a, *a]\nc: &a 3\nd: *a\n")
    assert shape_problem(path) is None
