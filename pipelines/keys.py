"""List the keys of a run's configuration, with type, default and meaning.

    python -m pipelines.keys [SECTION or KEY] [--markdown]

Examples:
    python -m pipelines.keys                       # all of them
    python -m pipelines.keys trainer               # one section
    python -m pipelines.keys evaluation.fid
    python -m pipelines.keys max_steps             # the keys of this name, wherever they are
    python -m pipelines.keys --markdown            # what docs/configuration.md is made of

The same words are set in a YAML file or on the command line: `trainer.max_steps=20`.
"""

import argparse
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pipelines.run.console import run_verb, say

if TYPE_CHECKING:
    from pipelines.run.declared import Key

WIDTH = 110
"""Longest line of the list."""
PAGE = """\
# Configuration

All keys of a run's configuration. The page is made from the dataclasses by `python -m pipelines.keys --markdown`, and a
test holds it in step with them. `omnimamba keys` prints the keys, and `omnimamba keys SECTION` a part of them.

A configuration is a YAML file, and `key=value` words on the command line override it:

```yaml
include: [model/tiny.yaml, data/scenes_small.yaml]
name: mine
stage: {name: unified_finetune}
trainer: {max_steps: 20}
```

- **`include`** names one file, or a list of them. They are read first, in order, and later ones override earlier ones;
  the file itself overrides them all. Each is looked for beside the file that names it, then in the `configs/` of this
  project. So a file of your own, anywhere, may include `model/tiny.yaml`. Included files may include others.
- **Words** name keys with dots: `trainer.max_steps=20`, `"data.micro_batch={mmu: 6}"`, `evaluation.pope=null`. A value
  with brackets, braces or blanks needs quotes in most shells.
- **Sections that may be null** are off until one of their keys is set. A key whose default is *required* must then be
  set too.
- `omnimamba train CONFIG --print-config` shows what all of it comes to, and trains nothing. `--smoke` tries it: two
  steps, one save, one evaluation of two samples, of which nothing is kept.
- Relative paths in a configuration count from its folder, and in `configs/` from the folder above; on the command line
  they count from the current folder.

Defaults are in YAML's own words; `""` is an empty text.
"""


def main() -> None:
    """Parse the command line and print the keys."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", nargs="?", metavar="SECTION", help="a section, or a key; default: all of them")
    parser.add_argument("--markdown", action="store_true", help="print docs/configuration.md")
    arguments = parser.parse_args()
    # imported here to keep --help fast
    from pipelines.run.declared import configuration_keys

    if arguments.markdown:
        say(page(list(configuration_keys().values())).rstrip("\n"))
        return
    with suppress(BrokenPipeError):  # a reader such as head may have enough
        for key in chosen(arguments.section):
            say(as_text(key))


def chosen(section: str | None) -> "list[Key]":
    """The keys of a section, or those of this name; all of them if None.

    Raises:
        ValueError: there are none.
    """
    from pipelines.run.declared import configuration_keys
    from pipelines.run.keys import near_keys

    known = configuration_keys()
    if section is None:
        return list(known.values())
    found = [key for name, key in known.items() if name == section or name.startswith(f"{section}.")]
    found = found or [key for name, key in known.items() if name.endswith(f".{section}")]
    if not found:
        near = " or ".join(near_keys(section))
        hint = f"did you mean {near}?" if near else "without a word all of them are listed"
        raise ValueError(f"there is no section or key {section}; {hint}")
    return found


def as_text(key: "Key") -> str:
    """A key in lines: what to write, and what it means."""
    if key.is_section:
        head = f"{key.name}:  {key.default}".rstrip()
    else:
        head = f"{key.name}={key.default}   ({key.kind})" if key.default != "required" else (
            f"{key.name}=   ({key.kind}, required)"
        )  # fmt: skip
    meaning = textwrap.fill(key.meaning, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{head}\n{meaning}" if meaning else head


def page(keys: "Sequence[Key]") -> str:
    """docs/configuration.md: a table for each top-level section, after one for the keys that are in none."""
    alone = [key for key in keys if "." not in key.name and not key.is_section]
    parts = [PAGE, "## In no section\n", _table(alone)]
    for section in (key for key in keys if "." not in key.name and key.is_section):
        inside = [key for key in keys if key.name.startswith(f"{section.name}.")]
        off = " Null, that is off, unless set." if section.default == "null" else ""
        parts += [f"## {section.name}\n", f"{_escaped(section.meaning)}{off}\n", _table(inside)]
    return "\n".join(parts)


def _table(keys: "Sequence[Key]") -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = f"`{key.default}`" if key.default not in ("", "required") else f"*{key.default}*".replace("**", "")
        kind = "*section*" + (" or null" if key.kind.endswith(" or null") else "") if key.is_section else key.kind
        lines.append(f"| `{key.name}` | {kind} | {default} | {_escaped(key.meaning)} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Plain text for a table of Markdown."""
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    run_verb(main)
