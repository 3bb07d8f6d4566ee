"""SECURITY.md names what is there, and what it says of unpickling holds everywhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for folder in ("modules", "datamodules", "callbacks", "pipelines") for path in (ROOT / folder).rglob("*.py")
]


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:modules|datamodules|pipelines|docs|tests)/[^`]*)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_nothing_is_unpickled() -> None:
    found = []
    for path in SOURCES:
        text = path.read_text()
        calls = re.findall(r"\btorch\.load\((?!\.\.\.)[^)]*\)", text) + re.findall(r"\bnp\.load\([^=]*=\w+", text)
        found += [call for call in calls if "weights_only=True" not in call and "allow_pickle=False" not in call]
        found += re.findall(r"^\s*(?:import|from) (?:pickle|dill|cloudpickle|joblib|shelve)\b", text, re.MULTILINE)
        found += re.findall(r"\b(?:broadcast|all_gather|gather|scatter|send|recv)_object(?:_list)?\(", text)
    assert found == []
