"""Reads the project's pages: the commands and the tables in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(page: str) -> list[str]:
    """The commands in a page's bash blocks, one a line: continued lines are joined, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [command for line in lines if (command := line.split("#")[0].strip())]


def table(page: str, first: str) -> list[dict[str, str]]:
    """The rows of the page's table whose first column is called ``first``, by column."""
    lines = iter((ROOT / page).read_text().splitlines())
    head = next(cells for line in lines if (cells := _cells(line))[:1] == [first])
    next(lines)  # the rule below the head
    rows = []
    for line in lines:
        if not (cells := _cells(line)):
            break
        rows.append(dict(zip(head, cells, strict=True)))
    return rows


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
