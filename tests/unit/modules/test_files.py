import os
from pathlib import Path

import pytest

from modules import files
from modules.files import (
    new_file,
    new_folder,
    remove_partials,
    step_folders,
    step_name,
    step_of,
    write_file,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_takes_the_place_of_another(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "file", "old")
    with new_file(tmp_path / "a" / "file") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a" / "file").read_text() == "old"
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert names(tmp_path / "a") == ["file"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_file(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    write_file(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut leaves cannot be seen here; the order of the calls that decide it can."""
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (calls.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
    )
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append(f"to {b}"), replace(a, b)))
    write_json(tmp_path / "x.json", {"a": "ä"})
    partial, *rest = calls
    assert partial.startswith(str(tmp_path / ".x.json.partial-"))
    assert rest == [f"to {tmp_path / 'x.json'}", str(tmp_path)]
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n "a": "ä"\n}\n'
    calls.clear()
    with new_folder(tmp_path / "data") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    assert [Path(call).name for call in calls[:2]] == ["inner", "file"]
    assert calls[3:] == [f"to {tmp_path / 'data'}", str(tmp_path)]


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"/none/file'$"), new_file(tmp_path / "none" / "file"):
        pass


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "data") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a" / "data").exists()
    assert (tmp_path / "a" / "data" / "file").read_text() == "x"
    assert names(tmp_path / "a") == ["data"]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "data") as partial:
            (partial / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_full_folder_is_never_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "data" / "mine", "x")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "mine").exists()


def test_what_killed_processes_left_is_removed_of_one_name_or_of_all(tmp_path: Path) -> None:
    (tmp_path / ".a.partial-host-1-2").mkdir()
    for name in (".b.partial-host-1-2", "c.tar.partial-host-1", "a", ".b.lock"):
        (tmp_path / name).touch()
    remove_partials(tmp_path, "a")
    assert names(tmp_path) == [".b.lock", ".b.partial-host-1-2", "a", "c.tar.partial-host-1"]
    remove_partials(tmp_path)
    assert names(tmp_path) == [".b.lock", "a"]


def test_a_step_and_the_name_of_its_folder(tmp_path: Path) -> None:
    assert step_name(20) == "step-000000020"
    assert [step_of(name) for name in ("step-000000020", "step-7", "20", "step-", "step-x", "step-²", ".step-1")] == [
        *(20, 7, None, None, None, None, None)
    ]
    for name in ("step-10", "step-9", "step-x", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in step_folders(tmp_path)] == ["step-9", "step-10"]
    assert step_folders(tmp_path / "none") == []
