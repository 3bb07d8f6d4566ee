"""Files of weights as others write them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.weight_files import read_weights, refuse_quantised, weight_files

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def assert_read(path: Path) -> None:
    found = read_weights(path)
    assert found.keys() == WEIGHTS.keys()
    assert all(
        torch.equal(value, WEIGHTS[name]) and value.dtype == WEIGHTS[name].dtype for name, value in found.items()
    )


def in_pieces(folder: Path, kind: str = "model.safetensors") -> None:
    stem, suffix = kind.split(".")
    places = {name: f"{stem}-{number}-of-2.{suffix}" for number, name in enumerate(WEIGHTS, 1)}
    for name, file in places.items():
        (save_file if suffix == "safetensors" else torch.save)({name: WEIGHTS[name]}, folder / file)
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_safetensors_alone_and_in_a_folder(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_read(tmp_path / "model.safetensors")
    assert_read(tmp_path)
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_safetensors_in_pieces(tmp_path: Path) -> None:
    in_pieces(tmp_path)
    assert_read(tmp_path)
    assert [file.name for file in weight_files(tmp_path)] == [
        "model.safetensors.index.json",
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
    ]
    save_file({"c": torch.ones(1)}, tmp_path / "model-1-of-2.safetensors")
    with pytest.raises(ValueError, match=r"differ in 2 names, for example a\.weight; fetch them again"):
        read_weights(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    for read in (read_weights, weight_files):
        with pytest.raises(
            FileNotFoundError, match=r"model-2-of-2\.safetensors is missing, but model\.safetensors\.ind"
        ):
            read(tmp_path)


def test_torch_files_in_pieces(tmp_path: Path) -> None:
    in_pieces(tmp_path, "pytorch_model.bin")
    assert_read(tmp_path)
    assert_read(tmp_path / "pytorch_model.bin.index.json")
    assert [file.name for file in weight_files(tmp_path)][1:] == [
        "pytorch_model-1-of-2.bin",
        "pytorch_model-2-of-2.bin",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "weight_map is missing"),
        ('{"weight_map": {"a": 3}}', "weight_map.a is 3, expected a text"),
        ('{"weight_map": ["a"]}', r"weight_map is \['a'\], expected an object"),
        ('{"weight_map": {"a": "../a.bin"}}', r"names '\.\./a\.bin'; pieces must be in the same folder"),
        ("[" * 100_000, "nested too deeply"),
        ("version https://git-lfs.github.com/spec/v1", "is a git-lfs pointer"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_odd_index_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    for read in (read_weights, weight_files):
        with pytest.raises(ValueError, match=f"^index of weights .*{name}.*{message}"):
            read(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5393\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model-2-of-2.safetensors"])
def test_pointers_of_git_lfs_are_recognised(tmp_path: Path, name: str) -> None:
    if name.startswith("model-"):
        in_pieces(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(
        ValueError, match=f"^weight file .*{name} is a git-lfs pointer, not the file itself; run `git lfs"
    ):
        read_weights(tmp_path)


QUANTISED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8]


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_quantised_numbers_are_refused(tmp_path: Path, name: str, kind: torch.dtype) -> None:
    weights = {**WEIGHTS, "c.weight": torch.zeros(2, 2).to(kind)}
    save_file(weights, tmp_path / name) if name.endswith("tensors") else torch.save(weights, tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{name} holds quantised numbers in c\.weight \(torch\.{str(kind)[6:]}\): with"
    ):
        read_weights(tmp_path)


def test_a_type_that_torch_does_not_have_is_told(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(
        ValueError, match=r"x\.safetensors (is not a readable safetensors file|holds quantised numbers)"
    ):
        read_weights(tmp_path / "x.safetensors")


def test_counters_and_types_by_safetensors_names() -> None:
    refuse_quantised(
        Path("x"), dict.fromkeys("abcdefg", "F32") | {"n": torch.int64, "m": "I64", "b": torch.bool, "B": "BF16"}
    )
    for kind in ("F8_E4M3", "F8_E5M2", "F4", "I8", "U8"):
        with pytest.raises(ValueError, match=rf"x holds quantised numbers in a \({kind}\)"):
            refuse_quantised(Path("x"), {"a": kind})


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module"])
def test_torch_files_alone_and_beside_other_things(tmp_path: Path, wrapper: str | None) -> None:
    torch.save({wrapper: WEIGHTS, "epoch": 3} if wrapper else WEIGHTS, tmp_path / "pytorch_model.bin")
    assert_read(tmp_path)


def test_torch_files_in_the_format_of_old(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_read(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_cut_short_anywhere_are_refused(tmp_path: Path, old: bool) -> None:
    file = tmp_path / "cut.pt"
    torch.save({"a": torch.arange(3000.0)}, file, _use_new_zipfile_serialization=not old)
    whole = file.read_bytes()
    for kept in (0, 5, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"cut\.pt is not a torch file of plain tensors: .+\. Fetch it again"):
            read_weights(file)


@pytest.mark.parametrize("odd", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, odd: float) -> None:
    save_file(WEIGHTS | {"b": torch.tensor([1, odd], dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds non-finite numbers in b: its "):
        read_weights(tmp_path)


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist; name a weight file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=r"no weights; it needs one of model\.safetensors, .*model\.bin"):
        read_weights(tmp_path)
    (tmp_path / "bad.pt").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"bad\.pt is not a torch file of plain tensors: .*convert it to safetensors"):
        read_weights(tmp_path / "bad.pt")
    torch.save({"weights": {}, "epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt does not map names to tensors, at its top level or under"):
        read_weights(tmp_path / "other.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a readable safetensors file.*; fetch it again"):
        read_weights(tmp_path / "bad.safetensors")


class Runs:
    """Pickled, it would call a function of this module when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"model": torch.nn.Linear(2, 2)},
            r"it holds torch\.nn\.modules\.linear\.Linear, and loading that could run any",
        ),
        ({"a": torch.ones(1), "b": Runs()}, "it holds print, and loading that could run any"),
    ],
)
def test_files_that_could_run_a_program_are_refused_in_our_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, reason: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt is not a torch file of plain tensors: {reason}.*onvert it") as error:
        read_weights(tmp_path / "x.pt")
    assert "weights_only" not in str(error.value)
    assert "ran" not in capsys.readouterr().out


def test_a_program_in_torchscript_is_refused_in_our_words(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match=r"plain tensors: it is TorchScript, a program\. Fetch") as error:
        read_weights(tmp_path / "x.pt")
    assert "weights_only" not in str(error.value)


def test_no_message_of_ours_advises_to_load_anything() -> None:
    root = Path(__file__).parents[3]
    files = [
        path
        for folder in ("callbacks", "datamodules", "modules", "pipelines")
        for path in (root / folder).rglob("*.py")
    ]
    assert [path.name for path in files if "weights_only=False" in path.read_text()] == []
