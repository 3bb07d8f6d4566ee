import base64
from pathlib import Path

import pytest

from datamodules.benchmarks import mme
from datamodules.benchmarks.mme import OFFICIAL_IMAGES, mme_files, read_mme
from datamodules.images import StoredImage
from modules.metrics.mme import COGNITION, PERCEPTION

PAIR = "Is there a dog? Please answer yes or no.\tYes\nIs there a cat?  Please answer yes or no.\tNo\n"
APART = ("posters", "celebrity", "scene", "landmark", "artwork")


def write(root: Path, category: str, stem: str, text: str = PAIR, ending: str = ".jpg") -> None:
    folder = root / category
    pictures, texts = (folder / "images", folder / "questions_answers_YN") if category in APART else (folder, folder)
    pictures.mkdir(parents=True, exist_ok=True)
    texts.mkdir(parents=True, exist_ok=True)
    (pictures / f"{stem}{ending}").write_bytes(b"")
    (texts / f"{stem}.txt").write_text(text)


def test_reads_both_kinds_of_folder(tmp_path: Path) -> None:
    write(tmp_path, "existence", "0002")
    write(tmp_path, "artwork", "0001", ending=".png")
    questions = read_mme(tmp_path, official=False)
    assert [q.sample_id for q in questions] == [
        "existence/0002.jpg/1",
        "existence/0002.jpg/2",
        "artwork/0001.png/1",
        "artwork/0001.png/2",
    ]
    first, second = questions[:2]
    assert (first.benchmark, first.split, first.answer) == ("mme", "existence", "yes")
    assert first.question == "Is there a dog? Please answer yes or no."
    assert second.answer == "no"
    assert first.image == tmp_path / "existence/0002.jpg"
    assert questions[2].image == tmp_path / "artwork/images/0001.png"
    assert [path.name for path in mme_files(tmp_path)] == ["0002.txt", "0001.txt"]


def test_newer_zips_nest_one_more_folder(tmp_path: Path) -> None:
    write(tmp_path / "MME_Benchmark", "OCR", "0001")
    assert len(read_mme(tmp_path, official=False)) == 2


def test_the_official_tasks() -> None:
    assert tuple(OFFICIAL_IMAGES) == PERCEPTION + COGNITION
    assert sum(OFFICIAL_IMAGES.values()) == 1187
    assert sum(OFFICIAL_IMAGES[category] for category in PERCEPTION) * 2 == 2114


def test_official_data_must_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for category in OFFICIAL_IMAGES:
        write(tmp_path, category, "1")
        write(tmp_path, category, "2")
    with pytest.raises(ValueError, match=r"holds 2 pictures of existence, expected 30\..*scenes"):
        read_mme(tmp_path, official=True)
    for category in OFFICIAL_IMAGES:
        monkeypatch.setitem(mme.OFFICIAL_IMAGES, category, 2)
    assert len(read_mme(tmp_path, official=True)) == 56


def test_limit_is_in_pictures_of_each_task(tmp_path: Path) -> None:
    for category in ("OCR", "count"):
        for stem in "123":
            write(tmp_path, category, stem)
    limited = read_mme(tmp_path, official=False, limit=2)
    assert [q.sample_id for q in limited if q.split == "OCR"] == [f"OCR/{i}.jpg/{j}" for i in (1, 2) for j in (1, 2)]
    assert len(limited) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAIR.splitlines()[0], r"holds 1 questions on OCR/1.jpg, expected 2"),
        (PAIR + PAIR, r"holds 4 questions on OCR/1.jpg, expected 2"),
        (
            "Is it?\tYes\nIs it not? No\n",
            r"line 2 of .*1.txt must be a question, a tab and Yes or No, found 'Is it not",
        ),
        ("Is it?\tYes\nIs it not?\tno\n", r"line 2 of .*1.txt has the answer 'no'; MME has only Yes and No"),
    ],
)
def test_broken_texts(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "OCR", "1", text)
    with pytest.raises(ValueError, match=message):
        read_mme(tmp_path, official=False)


def test_texts_in_another_coding_are_named(tmp_path: Path) -> None:
    write(tmp_path, "OCR", "1")
    (tmp_path / "OCR" / "1.txt").write_bytes("Is it a café?\tYes\nIs it not?\tNo\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"OCR/1.txt is not UTF-8"):
        read_mme(tmp_path, official=False)
    (tmp_path / "OCR" / "1.txt").write_text("Is it\u2028a café?\tYes\nIs it not?\tNo\n", encoding="utf-8")
    assert [question.answer for question in read_mme(tmp_path, official=False)] == ["yes", "no"]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no question of a category of MME: existence, count"):
        read_mme(tmp_path, official=False)
    with pytest.raises(FileNotFoundError, match=r"MME.tsv does not exist"):
        read_mme(tmp_path / "MME.tsv", official=False)
    write(tmp_path, "OCR", "1", ending=".gif")
    with pytest.raises(FileNotFoundError, match=r"1.txt asks about a missing picture: .*OCR/1.jpg"):
        read_mme(tmp_path, official=False)


HEAD = "index\timage\tquestion\tanswer\tcategory\timage_path\n"
PICTURE = b"\xff\xd8" + bytes(100)
CELL = base64.b64encode(PICTURE).decode()


def table(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "MME.tsv"
    path.write_text(head + "".join(f"{row}\n" for row in rows))
    return path


def test_reads_the_table(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        f"0\t{CELL}\tIs it? Please answer yes or no.\tYes\tOCR\timages/OCR/1.jpg",
        f'1\t{CELL}\t"Is it ""not""?"\tNo\tOCR\timages/OCR/1.jpg',
        f"2\t{CELL}\tIs it?\tNo\tcount\timages/count/1.jpg",
        "3\t0\tIs it not?\tYes\tcount\timages/count/1.jpg",
    )
    questions = read_mme(path, official=False)
    assert [q.sample_id for q in questions] == ["count/1.jpg/1", "count/1.jpg/2", "OCR/1.jpg/1", "OCR/1.jpg/2"]
    assert [q.answer for q in questions] == ["no", "yes", "yes", "no"]
    assert questions[3].question == 'Is it "not"?'
    assert questions[2].image == StoredImage(name="1.jpg", payload=PICTURE, where=f"in row 0 of {path}")
    assert mme_files(path) == [path]


def test_a_cell_may_name_the_row_that_holds_the_picture(tmp_path: Path) -> None:
    path = table(
        tmp_path, f"5\t{CELL}\tIs it?\tNo\tcount\t1.jpg", "6\t5\tIs it?\tYes\tOCR\t1.jpg", "7\t5\t?\tNo\tOCR\t1.jpg"
    )
    with pytest.raises(ValueError, match=r"holds 1 questions on count/1.jpg"):
        read_mme(path, official=False)
    table(
        tmp_path,
        f"5\t{CELL}\tIs it?\tNo\tcount\t1.jpg",
        "6\t5\t?\tNo\tOCR\t1.jpg",
        "7\t5\t?\tNo\tOCR\t1.jpg",
        "8\t5\t?\tYes\tcount\t1.jpg",
    )
    images = [question.image for question in read_mme(path, official=False)]
    assert [image.payload for image in images if isinstance(image, StoredImage)] == [PICTURE] * 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0\t*\t?\tYes\tOCR\t1.jpg"], r"the image in row 0 of .*MME.tsv is not base64"),
        ([f"0\t{CELL}\t?\tYes\tcolour\t1.jpg"], r"row 0 of .* has the category 'colour'; known are existence"),
        ([f"0\t{CELL}\t?\tMaybe\tOCR\t1.jpg"], r"row 0 of .* has the answer 'Maybe'"),
        ([f"0\t{CELL}\t?\tYes\tOCR\t1.jpg"] * 2, r"MME.tsv holds index 0 2 times; each must be there once"),
        ([f"0\t{CELL}\t\tYes\tOCR\t1.jpg"], r"row 0 of .*MME.tsv: question is '', expected a text that is not empty"),
        ([f"0\t{CELL}\t?\tYes\tOCR\t"], r"row 0 of .*MME.tsv: image_path is '', expected a text that is not empty"),
        (["0\t\t?\tYes\tOCR\t1.jpg"], r"row 0 of .*MME.tsv: image is '', expected a text that is not empty"),
        (["0\t1"], r"MME.tsv is not a table of tab-separated values"),
    ],
)
def test_broken_tables(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_mme(table(tmp_path, *rows), official=False)


def test_byte_order_marks_and_files_of_macos_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{i}\t{CELL}\tIs it?\t{label}\tOCR\t1.jpg" for i, label in enumerate(("Yes", "No"))]
    path = table(tmp_path, *rows)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(read_mme(path, official=False)) == 2
    write(tmp_path, "OCR", "1", f"\ufeff{PAIR}")
    (tmp_path / "OCR" / "._1.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    assert [question.question[:5] for question in read_mme(tmp_path, official=False)] == ["Is th"] * 2
    assert [path.name for path in mme_files(tmp_path)] == ["1.txt"]
    assert caplog.messages == [f"{tmp_path / 'OCR'}: 1 files that macOS added (._*, __MACOSX) are left out"]


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "MME.tsv"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"MME.tsv is a git-lfs pointer, .*git lfs pull"):
        read_mme(path, official=False)


def test_a_table_without_a_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MME.tsv is missing the columns image_path; expected index, image"):
        read_mme(table(tmp_path, "0\t1\t2\t3\t4", head=HEAD.replace("\timage_path", "")), official=False)
    head, row = HEAD.replace("answer", "question"), f"0\t{CELL}\t?\tYes\tOCR\t1.jpg"
    with pytest.raises(ValueError, match=r"MME.tsv is missing the columns answer; expected"):
        read_mme(table(tmp_path, row, head=head), official=False)
    head = HEAD.replace("\n", "\tquestion\n")
    with pytest.raises(ValueError, match=r"MME.tsv holds the column question 2 times"):
        read_mme(table(tmp_path, f"{row}\t?", head=head), official=False)
