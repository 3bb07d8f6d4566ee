"""Kernels are made ready by one process of a node, the others follow."""

import os
import stat
import time
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest
import torch

from modules.omnimamba.kernels import choose_deterministic
from pipelines.run.ending import USER_ERRORS
from pipelines.run.hardware import HardwareConfig, use_kernel_cache
from pipelines.run.overrides import ConfigError
from pipelines.run.warmup import LOCK, one_first, run_blocks
from tests.unit.modules.omnimamba.conftest import TINY


def _work(lock: Path, inside: "Synchronized[int]", first_done: "Synchronized[int]", order: Path) -> None:
    def work() -> None:
        with inside.get_lock():
            inside.value += 1
            alone = inside.value == 1
        if alone:
            time.sleep(0.5)  # long enough for the others to come, and to be kept waiting
            assert inside.value == 1
            first_done.value = 1
        (order / str(os.getpid())).write_text(f"{int(alone)}{first_done.value}")

    one_first(lock, work)


def test_one_process_works_first_and_all_work(tmp_path: Path) -> None:
    context = get_context("spawn")
    inside, first_done = context.Value("i", 0), context.Value("i", 0)
    order = tmp_path / "order"
    order.mkdir()
    processes = [context.Process(target=_work, args=(tmp_path / "lock", inside, first_done, order)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    notes = sorted(path.read_text() for path in order.iterdir())
    assert notes == ["01", "01", "11"]  # one was alone; the others came when it was done


def test_the_cache_is_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "theirs"))
    monkeypatch.delenv("TRITON_CACHE_AUTOTUNING", raising=False)
    assert use_kernel_cache(HardwareConfig()) == tmp_path / "theirs"
    assert use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / "ours"))) == tmp_path / "ours"
    assert (os.environ["TRITON_CACHE_DIR"], os.environ["TRITON_CACHE_AUTOTUNING"]) == (str(tmp_path / "ours"), "1")
    assert (tmp_path / "ours").is_dir()


def test_the_cache_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    before = os.umask(0)
    try:
        folder = use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / "deep" / "cache")))
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(folder)  # one's own link to one's own folder
    assert use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / "link"))) == tmp_path / "link"


@pytest.mark.parametrize(("mode", "after"), [(0o770, 0o750), (0o775, 0o755), (0o702, 0o700), (0o1777, 0o1755)])
def test_a_cache_of_ones_own_is_closed_to_others_and_this_is_said_once(
    tmp_path: Path, mode: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As umask 002 and earlier versions left it."""
    folder = tmp_path / "cache"
    (folder / "ABC").mkdir(parents=True)
    (folder / "ABC" / "kernel.so").touch()
    (folder / "ABC" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    for path in (folder / "ABC" / "kernel.so", folder / "ABC", folder, tmp_path / "elsewhere"):
        path.chmod(mode)
    for _ in range(2):
        assert use_kernel_cache(HardwareConfig(kernel_cache=str(folder))) == folder
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "ABC", folder / "ABC/kernel.so")} == {after}
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == mode
    assert [each.message for each in caplog.records] == [
        f"others could write to the kernel cache {folder}; now only you can (chmod -R go-w)"
    ]


def test_a_cache_that_another_user_has_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ABC").mkdir()
    (tmp_path / "ABC" / "kernel.so").touch()
    tmp_path.chmod(0o777)
    lstat = Path.lstat

    def of_another(path: Path) -> os.stat_result:
        found = lstat(path)
        return os.stat_result((*found[:4], 12345, *found[5:])) if path.name == "kernel.so" else found

    monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(
        ConfigError, match=r"kernel cache .* has ABC/kernel\.so of user 12345 in it.*remove it, or name"
    ):
        use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path)))


def test_a_cache_that_another_user_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("folder", "link"):
        monkeypatch.undo()
        (tmp_path / "folder").mkdir(exist_ok=True)
        if name == "link":
            (tmp_path / "link").symlink_to(tmp_path / "folder")
        owner = (tmp_path / "folder").stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda owner=owner: owner + 1)
        with pytest.raises(
            ConfigError, match=rf"{name} belongs to user {owner}, not to you \({owner + 1}\).*yours alone"
        ):
            use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / name)))


def test_a_file_or_a_link_to_nowhere_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    with pytest.raises(ConfigError, match="file is a file"):
        use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / "file")))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(USER_ERRORS, match="link"):
        use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path / "link")))


def test_the_lock_in_the_cache_is_no_way_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(USER_ERRORS, match=r"lock .*omnimamba\.lock is a link; remove it"):
        one_first(tmp_path / LOCK, lambda: pytest.fail("it ran"))
    assert (tmp_path / "mine").read_text() == "x"


def test_deterministic_kernels_do_not_come_from_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: where timings are kept, mamba_ssm chooses by them in deterministic mode too."""
    for name in ("TRITON_CACHE_DIR", "CAUSAL_CONV1D_DETERMINISTIC", "MAMBA_DETERMINISTIC"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("TRITON_CACHE_AUTOTUNING", "1")
    monkeypatch.setenv("TRITON_AUTOTUNE_BLOCK_SIZE_M", "32")
    monkeypatch.setenv("TRITON_AUTOTUNE_BLOCK_SIZE_N", "")
    monkeypatch.delenv("TRITON_AUTOTUNE_BLOCK_SIZE_N")
    choose_deterministic()
    use_kernel_cache(HardwareConfig(kernel_cache=str(tmp_path)))
    assert (os.environ["MAMBA_DETERMINISTIC"], os.environ["TRITON_CACHE_AUTOTUNING"]) == ("1", "0")
    sides = [os.environ[f"TRITON_AUTOTUNE_BLOCK_SIZE_{side}"] for side in ("M", "N")]
    assert sides == ["32", "64"]  # the user's, ours


def test_blocks_run_without_touching_the_random_numbers() -> None:
    before = torch.get_rng_state()
    run_blocks(TINY, HardwareConfig(), [20, 10], torch.float32, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
