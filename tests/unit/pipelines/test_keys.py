"""The list of configuration keys, read from source, against the dataclasses themselves."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pipelines import keys
from pipelines.run.config import RunConfig
from pipelines.run.declared import REQUIRED, as_yaml, configuration_keys
from pipelines.run.keys import near_keys, unknown_keys
from pipelines.run.texts import some
from tests.verbs import call

ROOT = Path(__file__).parents[3]


def value_of(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def leaves(cls: Any, prefix: str = "", made: Any = None) -> Iterator[tuple[str, str]]:
    """Every key of a dataclass with its default, sections without."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        value = getattr(made, field.name) if made is not None else value_of(field)
        kind = some(hints[field.name])
        if is_dataclass(kind):
            yield f"{prefix}{field.name}", "null" if value is None else ""
            yield from leaves(kind, f"{prefix}{field.name}.", None if value in (None, MISSING) else value)
        else:
            yield f"{prefix}{field.name}", REQUIRED if value is MISSING else as_yaml(value)


def test_what_is_read_from_the_source_is_what_the_dataclasses_hold() -> None:
    found = {key.name: key.default for key in configuration_keys().values()}
    assert list(found.items()) == list(leaves(RunConfig))


def test_every_key_has_a_meaning_and_a_type() -> None:
    assert [key.name for key in configuration_keys().values() if not key.meaning or not key.kind] == []


def test_the_page_is_in_step_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(keys, "--markdown") == 0
    page = capsys.readouterr().out
    assert page == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), (
        "write it again: python -m pipelines.keys --markdown >docs/configuration.md"
    )
    assert "| `trainer.max_steps` | whole number | *required* | Optimizer steps of the whole run. |" in page
    assert "| `hardware.accelerator` | cpu or gpu | `cpu` |" in page


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        (["trainer"], "trainer:", "trainer.deterministic=false   (true or false)"),
        (["evaluation.fid.n"], "evaluation.fid.n=   (whole number, required)", "evaluation.fid.n="),
        (["max_steps"], "trainer.max_steps=   (whole number, required)", "trainer.max_steps="),
        ([], "name=   (text, required)", "scenes.per_shard=1000   (whole number)"),
    ],
)
def test_a_section_a_key_or_all_of_them(
    words: list[str], first: str, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(keys, *words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert lines[0] == first
    assert lines[-1].startswith(last)


def test_a_section_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(keys, "trainr") == 2
    assert capsys.readouterr().err == "error: there is no section or key trainr; did you mean trainer?\n"
    assert call(keys, "wombat") == 2
    assert "no section or key wombat; without a word all of them are listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trainer.max_steps", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("micro_batch.mmu", "data.micro_batch.mmu"),
        ("trainer.max_step", "trainer.max_steps"),
        ("tranier.max_steps", "trainer.max_steps"),
        ("trainer.accelerator", "hardware.accelerator"),
        ("optimizer.lr", "optim.lr"),
        ("optimizer", "optim"),
        ("evaluation.pop.limit", "evaluation.pope.limit"),
        ("init_frm", "init_from"),
        ("wombat", None),
    ],
)
def test_the_key_that_was_meant(key: str, meant: str | None) -> None:
    assert (near_keys(key) or [None])[0] == meant


def test_unknown_keys_are_found_at_any_depth() -> None:
    values = {"seed": 1, "data": {"micro_batch": {"mmu": 1, "t3i": 2}, "pad": "none"}, "evaluation": {"pope": None}}
    assert list(unknown_keys(values)) == [
        "data.micro_batch.t3i (given: 2): there is no such key; did you mean data.micro_batch.t2i?"
    ]
