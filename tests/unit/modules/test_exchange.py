from pathlib import Path
from typing import Any

import pytest
from torch import distributed, multiprocessing

from modules import exchange


def test_a_single_process_keeps_its_value() -> None:
    assert exchange.gathered({"a": 1}) == [{"a": 1}]
    assert exchange.from_rank_0("x") == "x"


class Trap:
    """Would run code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap"),))


def work(rank: int, store: str, found: Any) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    long = "é" * (rank * 100_000)
    found[rank] = [
        exchange.gathered({"rank": rank, "text": long, "none": None, "list": [1.5, []]}),
        exchange.from_rank_0([rank, "of 2"]),
    ]
    for call in (exchange.gathered, exchange.from_rank_0):
        with pytest.raises(TypeError, match="Trap is not JSON serializable"):  # before anything is sent
            call(Trap())
    exchange.MOST_BYTES = 100
    with pytest.raises(ValueError, match="a rank sends 1002 bytes, more than the 100 that are accepted"):
        exchange.gathered("x" * 1000)
    with pytest.raises(ValueError, match="a rank sends 1002 bytes, more than the 100 that are accepted"):
        exchange.from_rank_0("x" * 1000)
    distributed.destroy_process_group()


def test_two_processes_see_the_same_plain_data(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(work, (str(tmp_path / "store"), found), nprocs=2)  # type: ignore[no-untyped-call]
        assert found[0] == found[1]
        values, first = found[0]
    assert first == [0, "of 2"]
    assert [(each["rank"], len(each["text"]), each["none"], each["list"]) for each in values] == [
        (0, 0, None, [1.5, []]),
        (1, 100_000, None, [1.5, []]),
    ]
