"""Breaks good files: bytes cut, changed, inserted and removed; values, keys, lines and nesting changed."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

Break = Callable[[bytes, Random], bytes]

DEEP, DEEPER = ("[" * depth + "]" * depth for depth in (600, 3000))
ODD = (
    *("null", "true", "false", "0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "1e308", "-0.0"),
    *("123456789012345678901234567890", "-9223372036854775809", "9" * 5000, '""', '" "', '"x"', '"007"', '"yes"'),
    *('"\\ud800"', '"\\u0000"', '"a\\nb"', '"../../x"', '"/"', f'"{"a" * 300}"', '"{0}%s${x}"', '"\\u2028é犬"'),
    *("[]", "{}", "[[]]", "[null]", '{"a": 1}', '["a", 1, null]', DEEP, DEEPER),
)
"""JSON values that do not belong where others are."""
ODD_YAML = (
    *("!!python/object/apply:os.getcwd []", "&a [*a]", "*nowhere", "${nowhere}", "${oc.env:HOME}", "???", ".nan"),
    *("2001-01-01", "0x1F", "!!binary aGk=", "<<", "{<<: 5}", "!unknown x", "no", "~", "1:30", "'", "[", "- x"),
    "[&a [x, x, x, x], &b [*a, *a, *a, *a], &c [*b, *b, *b, *b], &d [*c, *c, *c, *c], *d]",
)
ODD_BYTES = (
    *(b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r\n", b'"', b"{", b"]", b",", b"\t"),
    *(b"\\", b"-", b"9" * 20, b"version https://git-lfs.github.com/spec/v1\n"),
)


def broken_bytes(good: bytes, random: Random) -> bytes:
    """``good`` with one to three changes of its bytes."""
    content = good
    for _ in range(random.randint(1, 3)):
        place = random.randint(0, len(content))
        other = min(len(content), place + random.choice((1, 2, 4, 30, 500)))
        content = random.choice(
            (
                content[:place],
                content[:place] + content[other:],
                content[:place] + random.choice(ODD_BYTES) + content[place:],
                content[:place] + content[place:other] * 2 + content[other:],
                content[:place] + bytes([random.randint(0, 255)]) + content[place + 1 :],
                random.choice(ODD_BYTES) + content,
                content[:place] + bytes(other - place) + content[other:],
            )
        )
    return content


def broken_json(good: bytes, random: Random) -> bytes:
    """The JSON value ``good`` with one or two of its values, keys or entries changed."""
    value = json.loads(good)
    for _ in range(random.randint(1, 2)):
        value = _changed(value, random, ODD)
    return _text(value).encode(errors="surrogatepass")


def broken_lines(good: bytes, random: Random) -> bytes:
    """A file of one JSON value per line with one of its lines changed, repeated, removed or joined to the next."""
    lines = good.splitlines(keepends=True)
    place = random.randrange(len(lines))
    lines[place] = random.choice(
        (broken_json(lines[place], random) + b"\n", lines[place] * 2, b"", lines[place].rstrip(b"\n"), b"\n")
    )
    return b"".join(lines)


def broken_yaml(good: bytes, random: Random) -> bytes:
    """The YAML mapping ``good``, given as JSON, with some of its values changed."""
    value = json.loads(good)
    for _ in range(random.randint(1, 2)):
        value = _changed(value, random, ODD_YAML if random.random() < 0.5 else ODD)
    return _text(value).encode(errors="surrogatepass")


def broken_table(good: bytes, random: Random) -> bytes:
    """A table with one cell per line changed, added or removed."""
    mark = b"\t" if b"\t" in good else b","
    lines = [line.split(mark) for line in good.split(b"\n")]
    cells = random.choice(lines)
    place = random.randrange(len(cells))
    odd = (b"", b'"', b"\0", b"-1", b"1" * 30, b"a" * 300, b"\xff", b'a"b', "²".encode(), b'"a\nb"')
    cells[place : place + 1] = random.choice(([], [random.choice(odd)], [cells[place]] * 2))
    return b"\n".join(mark.join(cells) for cells in lines)


def either(structure: Break) -> Break:
    """Breaks the structure of a file two times of three, and otherwise its bytes."""
    return lambda good, random: (structure if random.random() < 0.67 else broken_bytes)(good, random)


class _Raw(str):
    """A value that is written as it is."""


class _Pairs(list[tuple[str, Any]]):
    """The pairs of an object, in which a key may be there twice."""


def _changed(value: Any, random: Random, odd: tuple[str, ...]) -> Any:
    """``value`` with one thing in it changed, at any depth."""
    if isinstance(value, dict):
        value = _Pairs(value.items())
    if not isinstance(value, list) or isinstance(value, _Raw) or not value or random.random() < 0.1:
        return _Raw(random.choice(odd))
    place = random.randrange(len(value))
    what = random.choice(("inside", "inside", "inside", "drop", "repeat", "add"))
    if what == "drop":
        return type(value)(value[:place] + value[place + 1 :])
    if isinstance(value, _Pairs):
        key, inner = value[place]
        pair = {
            "inside": (key, _changed(inner, random, odd)),
            "repeat": (key, _Raw(random.choice(odd))),
            "add": (random.choice(("", "extra", "\0", "a.b")), inner),
        }[what]
        return _Pairs([*value[:place], *([] if what == "inside" else [value[place]]), pair, *value[place + 1 :]])
    inner = {"inside": _changed(value[place], random, odd), "repeat": value[place], "add": _Raw(random.choice(odd))}[
        what
    ]
    return [*value[:place], *([] if what == "inside" else [value[place]]), inner, *value[place + 1 :]]


def _text(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        value = _Pairs(value.items())
    if isinstance(value, _Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {_text(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return json.dumps(value)
