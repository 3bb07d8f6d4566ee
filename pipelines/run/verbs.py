"""The verbs that there are, found without importing one."""

import ast
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

_PIPELINES = Path(__file__).parents[1]


def verbs() -> dict[str, str]:
    """Every verb, with the first line of what it says of itself."""
    files = {file.stem: file for file in _PIPELINES.glob("*.py") if not file.stem.startswith("_")}
    files |= {file.parent.name: file for file in _PIPELINES.glob("*/__main__.py")}
    return {name: _about(files[name]) for name in sorted(files)}


def no_such_verb(word: str) -> str:
    """What to say of a verb that there is not, with the near one."""
    near = get_close_matches(word, verbs(), 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"error: there is no verb {word}{hint} There are {', '.join(verbs())}"


def mistaken_module(command: Sequence[str]) -> str | None:
    """The message about ``python -m pipelines.trian``, where ``command`` are the words of this process; None if all is
    well. Python itself would only say that there is no such module."""
    if "-m" not in command[:-1]:
        return None
    package, _, rest = command[command.index("-m") + 1].partition(".")
    name = rest.partition(".")[0]
    there = (_PIPELINES / name).is_dir() or (_PIPELINES / f"{name}.py").is_file()
    return None if package != "pipelines" or not name or there else no_such_verb(name)


def _about(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())
