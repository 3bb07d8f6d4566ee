"""Each reader with a good file of its own to break."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from callbacks.bad_samples_file import read_bad_samples
from callbacks.measures.records import PROTOCOL, RESULTS, RecordBook, read_results
from callbacks.tracking import read_metrics
from datamodules.benchmarks.coco import CaptionSet, read_prompts
from datamodules.benchmarks.gqa import read_choices, read_gqa
from datamodules.benchmarks.mme import read_mme
from datamodules.benchmarks.mmmu import read_mmmu
from datamodules.benchmarks.pope import read_pope
from datamodules.benchmarks.vqav2 import read_vqav2
from datamodules.images import decode, mmu_pixels
from datamodules.inspection.evaluation_images import read_evaluation
from datamodules.scenes.prepare import PreparedPaths
from datamodules.shards.folders import holds
from datamodules.shards.reader import ShardSet
from datamodules.sources.coco import CocoConfig, build_coco
from datamodules.sources.hf import HfConfig, build_hf
from datamodules.sources.images import ImagesConfig, build_images
from datamodules.sources.llava import LlavaConfig, build_llava
from datamodules.sources.pretokenized import PretokenizedConfig, build_pretokenized
from datamodules.t2i_table import open_table
from modules import exports
from modules.checkpoints import MANIFEST, STATE, StageResult, commit, find_checkpoint
from modules.files import sha256, step_name
from modules.metrics.statistics import Statistics, read_statistics
from modules.omnimamba.tokenizer import TextTokenizer
from modules.omnimamba.vq import load_image_tokenizer
from modules.weight_files import read_weights
from pipelines.report.page import render
from pipelines.report.read import read_runs
from pipelines.run.config import as_dict, load
from pipelines.run.runfolder import open_run
from pipelines.sweep.file import read_sweep
from pipelines.sweep.trials import SweepFolder
from tests.fuzz.broken import Break, broken_bytes, broken_json, broken_lines, broken_table, broken_yaml, either
from tests.unit.datamodules.benchmarks.test_mmmu_reader import OPEN, PICTURE, ROW
from tests.unit.datamodules.benchmarks.test_vqav2_reader import ANNOTATION, QUESTION
from tests.unit.pipelines.report.reporting import add_results, add_samples, make_run, result, write_lines

JSON, LINES, TABLE, YAML = (either(each) for each in (broken_json, broken_lines, broken_table, broken_yaml))


@dataclass(frozen=True)
class Reader:
    """Reads a file, or a folder that the file is in."""

    file: Path
    read: Callable[[], object]
    breaks: Break = broken_bytes
    cost: int = 1
    """So many times fewer files are broken for it, because it is slow."""
    then: Callable[[], object] = lambda: None
    """Called once the file is broken: seals it, so that its reader looks at what it holds."""


class Readers:
    """All readers, each over a copy of the good files in ``folder``."""

    def __init__(self, folder: Path, prepared: PreparedPaths, run: Path) -> None:
        self.folder, self.prepared, self.run = folder, prepared, run
        self._outs = (folder / f"out{number}" for number in count())

    def make(self, name: str) -> Reader:
        """The reader of this name."""
        self.folder.mkdir()
        reader: Reader = getattr(self, name)()
        return reader

    @staticmethod
    def names() -> list[str]:
        """The names of all readers."""
        return [name for name in vars(Readers) if not name.startswith("_") and name not in ("make", "names")]

    def _copy(self, path: Path) -> Path:
        """A copy of a file or folder."""
        target = self.folder / path.name
        return Path(shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target))

    def _written(self, name: str, content: Any) -> Path:
        """A new file: bytes, text, or anything else as JSON."""
        path = self.folder / name
        content = content if isinstance(content, bytes | str) else json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def _out(self, build: Callable[[str], object]) -> Callable[[], object]:
        """Builds into a folder of its own each time."""
        return lambda: build(str(next(self._outs)))

    # shards

    def _shards(self) -> Path:
        return self._copy(self.prepared.t2i.parent)

    def shard_manifest(self) -> Reader:
        manifest = self._shards() / "manifest.json"
        return Reader(manifest, lambda: _all_samples(manifest), JSON)

    def shard_index(self) -> Reader:
        folder = self._shards()
        [index] = folder.glob("*.idx.npz")
        good = json.loads((folder / "manifest.json").read_text())

        def seal() -> None:
            good["shards"][0]["idx_sha256"] = sha256(index)
            (folder / "manifest.json").write_text(json.dumps(good))

        return Reader(index, lambda: _all_samples(folder / "manifest.json"), then=seal)

    def shard(self) -> Reader:
        folder = self._shards()
        [tar] = folder.glob("*.tar")
        return Reader(tar, lambda: _all_samples(folder / "manifest.json"))

    def t2i_table(self) -> Reader:
        shards, tokenizer = ShardSet.open(self.prepared.t2i), TextTokenizer(self.prepared.tokenizer)

        def read() -> object:
            table = open_table(shards, tokenizer, 24, self.folder)
            return table.codes(np.arange(3)), table.captions(np.arange(3), np.arange(3, dtype=np.uint64))

        read()
        [meta] = self.folder.glob("t2i-*/meta.json")
        return Reader(meta, read, JSON)

    def origin_of_scenes(self) -> Reader:
        file = self._copy(self.prepared.folder / "prepared.json")
        own = json.loads(file.read_text())
        return Reader(file, lambda: holds(self.folder, file.name, own), JSON)

    # sources

    def coco_annotations(self) -> Reader:
        file = self._copy(self.prepared.scenes / "annotations" / "captions_val2014.json")
        more = {"images": str(self.prepared.scenes / "val2014"), "vq": str(self.prepared.vq), "processes": 1}
        return Reader(file, self._out(lambda out: build_coco(CocoConfig(captions=str(file), out=out, **more))), JSON)

    def _llava(self, entries: Any, breaks: Break) -> Reader:
        lines = breaks is LINES
        content = "".join(json.dumps(entry) + "\n" for entry in entries) if lines else entries
        file, images = self._written("llava.json", content), str(self.prepared.scenes)
        build = lambda out: build_llava(LlavaConfig(annotations=str(file), images=images, out=out, processes=1))  # noqa: E731
        return Reader(file, self._out(build), breaks)

    def _conversations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.prepared.scenes / "llava" / "instruct.json").read_text())[:4]
        return found

    def llava_annotations(self) -> Reader:
        return self._llava(self._conversations(), JSON)

    def llava_lines(self) -> Reader:
        return self._llava(self._conversations(), LINES)

    def lrv_annotations(self) -> Reader:
        picture = self._conversations()[0]["image"].removesuffix(".jpg")
        return self._llava([{"image_id": picture, "question": "What?", "answer": "A circle."}] * 3, JSON)

    def image_captions(self) -> Reader:
        images = self.prepared.scenes / "val2014"
        rows = [{"file": path.name, "caption": "a"} for path in sorted(images.iterdir())]
        rows.append({"file": rows[0]["file"], "captions": ["b", "c"]})
        file = self._written("captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        more = {"images": str(images), "vq": str(self.prepared.vq), "processes": 1}
        return Reader(
            file, self._out(lambda out: build_images(ImagesConfig(captions=str(file), out=out, **more))), LINES
        )

    def pretokenized_lines(self) -> Reader:
        rows = [{"captions": ["a", "b"], "tokens": [3] * 8}, {"captions": ["c"], "tokens": [[1, 2, 3, 4]] * 2}]
        file = self._written("codes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        more: dict[str, Any] = {"tokens_per_image": 8, "codebook_size": 16, "processes": 1}
        config = lambda out: PretokenizedConfig(annotations=str(file), out=out, **more)  # noqa: E731
        return Reader(file, self._out(lambda out: build_pretokenized(config(out))), LINES)

    def _hf(self, name: str, content: bytes, breaks: Break) -> Reader:
        import datasets

        datasets.config.HF_DATASETS_CACHE = self.folder / "cache"
        file = self._written(name, content)
        columns = {"question_column": "question", "answer_column": "answer"}
        config = lambda out: HfConfig(dataset=str(file), out=out, processes=1, **columns)  # noqa: E731
        return Reader(file, self._out(lambda out: build_hf(config(out))), breaks, cost=5)

    def hf_parquet(self) -> Reader:
        picture = {"bytes": next((self.prepared.scenes / "val2014").iterdir()).read_bytes(), "path": "a.jpg"}
        buffer = io.BytesIO()
        row = {"image": picture, "question": "What is it?", "answer": "A circle."}
        parquet.write_table(pa.Table.from_pylist([row] * 3), buffer)
        return self._hf("rows.parquet", buffer.getvalue(), broken_bytes)

    def hf_lines(self) -> Reader:
        picture = next((self.prepared.scenes / "val2014").iterdir())
        row = {"image": {"bytes": None, "path": str(picture)}, "question": "What is it?", "answer": "A circle."}
        return self._hf("rows.jsonl", f"{json.dumps(row)}\n".encode() * 3, LINES)

    # benchmarks

    def coco_captions(self) -> Reader:
        file = self._copy(self.prepared.scenes / "annotations" / "captions_val2014.json")
        images = self.prepared.scenes / "val2014"

        def read() -> object:
            captions = CaptionSet.read(file, images)
            return captions.choose(2, 0), captions.all_images()

        return Reader(file, read, JSON)

    def prompt_lines(self) -> Reader:
        row = {"index": 0, "image_id": 5, "caption_id": None, "caption": "a circle", "image": None}
        file = self._written("prompts.jsonl", f"{json.dumps(row)}\n" * 3)
        return Reader(file, lambda: read_prompts(file, 2, None, official=False), LINES)

    def prompts_csv(self) -> Reader:
        file = self._written("prompts.csv", 'image_id,text\n1,"a, b"\n2,c\n3,d\n')
        return Reader(file, lambda: read_prompts(file, 2, None, official=False), TABLE)

    def prompts_tsv(self) -> Reader:
        file = self._written("prompts.csv", "Prompt\tid\na b\t1\nc\t2\n")
        return Reader(file, lambda: read_prompts(file, 2, None, official=False), TABLE)

    def gqa_questions(self) -> Reader:
        file = self._copy(self.prepared.scenes / "gqa" / "testdev_balanced_questions.json")
        images = self.prepared.scenes / "gqa" / "images"
        return Reader(file, lambda: read_gqa(file, images, official=False, limit=20), JSON)

    def gqa_choices(self) -> Reader:
        questions = self.prepared.scenes / "gqa" / "testdev_balanced_questions.json"
        found = read_gqa(questions, self.prepared.scenes / "gqa" / "images", official=False, limit=3)
        choices = {one.sample_id.partition("/")[2]: {"valid": ["yes"], "plausible": ["no"]} for one in found}
        file = self._written("choices.json", choices)
        return Reader(file, lambda: read_choices(file, found), JSON)

    def mme_table(self) -> Reader:
        picture = base64.b64encode(b"picture").decode()
        rows = [("1", picture, "Is it?", "Yes", "existence", "a.jpg"), ("2", "1", "Is it?", "No", "existence", "a.jpg")]
        lines = [("index", "image", "question", "answer", "category", "image_path"), *rows]
        file = self._written("MME.tsv", "".join("\t".join(line) + "\n" for line in lines))
        return Reader(file, lambda: read_mme(file, official=False), TABLE)

    def mme_texts(self) -> Reader:
        (self.folder / "existence").mkdir()
        self._written("existence/1.jpg", b"")
        file = self._written("existence/1.txt", "Is it?\tYes\nIs it?\tNo\n")
        return Reader(file, lambda: read_mme(self.folder, official=False), TABLE)

    def mmmu_parquet(self) -> Reader:
        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        schema = pa.schema([(key, image if key.startswith("image_") else pa.string()) for key in ROW])
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist([ROW, OPEN], schema=schema), buffer)
        file = self._written("validation-00000-of-00001.parquet", buffer.getvalue())
        return Reader(file, lambda: read_mmmu(self.folder, split="validation", official=False))

    def mmmu_rows(self) -> Reader:
        """The cells of a whole parquet file."""
        rows = [{key: value for key, value in row.items() if key != "image_1"} for row in (ROW, OPEN)]
        file = self._written("rows.json", rows)

        def read() -> object:
            # what is no table cannot be written, which is not the reader's doing
            with suppress(pa.ArrowException, AttributeError, OverflowError, TypeError, ValueError, RecursionError):
                given = [row | {"image_1": PICTURE} for row in json.loads(file.read_bytes())]
                parquet.write_table(pa.Table.from_pylist(given), self.folder / "validation-1.parquet")
            return read_mmmu(self.folder, split="validation", official=False)

        return Reader(file, read, broken_json)

    def pope_lines(self) -> Reader:
        folder = self._copy(self.prepared.scenes / "pope" / "coco")
        file, images = folder / "coco_pope_popular.json", self.prepared.scenes / "val2014"
        return Reader(file, lambda: read_pope(folder, images, official=False), LINES)

    def vqav2_questions(self) -> Reader:
        return self._vqav2()[0]

    def vqav2_annotations(self) -> Reader:
        return self._vqav2()[1]

    def _vqav2(self) -> tuple[Reader, Reader]:
        about = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014"}
        files = [self._written(f"{name}.json", about | {name: [entry]}) for name, entry in _VQA.items()]
        self._written("COCO_val2014_000000262148.jpg", b"")
        read = lambda: read_vqav2(*files, self.folder, split="val2014", official=False)  # noqa: E731
        return Reader(files[0], read, JSON), Reader(files[1], read, JSON)

    def evaluation_images(self) -> Reader:
        file = self._written("questions.json", {"questions": [{"image_id": 5}, {"image_id": 6}]})
        return Reader(file, lambda: read_evaluation([file]), JSON)

    def evaluation_image_lines(self) -> Reader:
        file = self._written("questions.json", '{"image": "a.jpg"}\n{"imageId": "7"}\n{"image_id": 5}\n')
        return Reader(file, lambda: read_evaluation([file]), LINES)

    # runs

    def _run(self) -> Path:
        folder = self._copy(self.run)
        add_results(folder, 20, {"pope_style": result({"f1_macro": 0.5}), "gqa_style": result({"accuracy": 0.5})})
        return folder

    def metrics(self) -> Reader:
        run = make_run(self.folder / "run")
        return Reader(run / "metrics.jsonl", lambda: read_metrics(run), LINES)

    def bad_samples(self) -> Reader:
        row = {"step": 1, "attempt": 1, "task": "mmu", "epoch": 0, "key": "a", "reason": "b", "substitute": "c"}
        file = self._written("bad_samples.jsonl", f"{json.dumps(row)}\n" * 2)
        return Reader(file, lambda: read_bad_samples(file, 5), LINES)

    def _reported(self, name: str, breaks: Break) -> Reader:
        run = make_run(self.folder / "run")
        add_samples(run, 6, ["a red circle"])
        add_results(run, 6, {"pope": result({"f1_macro": 1.0}, baselines={"f1_macro": 0.5}, counts={"f1_macro": 4})})
        row = {"sample_id": "1", "split": "random", "question": "Is it?", "prompt": "p", "raw": "Yes", "gold": "yes"}
        write_lines(run / "records/step-000000006/pope/rank0.jsonl", [row])
        config = yaml.safe_load((run / "config.yaml").read_text())
        more = {"init_from": ["a"], "pretrained": "b", "hardware": {"nodes": 1, "devices": 2, "accelerator": "gpu"}}
        data = {"mmu": "m.json", "global_batch": {"mmu": 3}}
        (run / "config.yaml").write_text(json.dumps(config | more | {"data": data}))
        return Reader(run / name, lambda: render(read_runs([run])), breaks, cost=4)

    def report_of_metrics(self) -> Reader:
        return self._reported("metrics.jsonl", LINES)

    def report_of_configuration(self) -> Reader:
        return self._reported("config.yaml", YAML)

    def report_of_provenance(self) -> Reader:
        return self._reported("provenance.json", JSON)

    def report_of_results(self) -> Reader:
        return self._reported("records/step-000000006/results.json", JSON)

    def report_of_records(self) -> Reader:
        return self._reported("records/step-000000006/pope/rank0.jsonl", LINES)

    def report_of_captions(self) -> Reader:
        return self._reported("samples/step-000000006/captions.json", JSON)

    def record_lines(self) -> Reader:
        row = {"sample_id": "1", "split": "random", "prompt": "p"}
        file = self._written("rank0.jsonl", f"{json.dumps(row)}\n{json.dumps(row | {'sample_id': '2'})}\n")
        return Reader(file, RecordBook(self.folder, 0, {"prompt": str}).read, LINES)

    def protocol(self) -> Reader:
        self._written("rank0.jsonl", "{}\n")
        file, wanted = self._written(PROTOCOL, {"n": 8, "weights": "a"}), {"n": 8, "weights": "b"}
        return Reader(file, lambda: RecordBook(self.folder).is_of_other_weights(wanted), JSON)

    def results(self) -> Reader:
        file = self._written(RESULTS, {"pope": result({"f1": 0.5})})
        return Reader(file, lambda: read_results(self.folder), JSON)

    def _resumed(self, name: str, breaks: Break) -> Reader:
        run = self._run()
        config = load(run / "config.yaml", [f"run.dir={run}", "data.global_batch={mmu: 3, t2i: 48}"])
        (run / "config.yaml").write_text(json.dumps(as_dict(config)))
        (run / "provenance.json").write_text(_PROVENANCE)
        if name == "COMPLETE":
            (run / "COMPLETE").write_text("20\n")
        return Reader(run / name, lambda: open_run(config), breaks)

    def resume_of_configuration(self) -> Reader:
        return self._resumed("config.yaml", YAML)

    def resume_of_provenance(self) -> Reader:
        return self._resumed("provenance.json", JSON)

    def resume_of_complete(self) -> Reader:
        return self._resumed("COMPLETE", broken_bytes)

    def checkpoint_manifest(self) -> Reader:
        run = self._run()
        return Reader(run / "checkpoints" / step_name(20) / MANIFEST, lambda: find_checkpoint(run, str), JSON)

    def checkpoint_state(self) -> Reader:
        """A state whose seal fits, whatever it holds."""
        folder = self.folder / step_name(4)

        def seal() -> None:
            new = self.folder / "new"
            new.mkdir()
            shutil.copy(file, new / STATE)
            commit(new, folder, 4)

        weights = {"model.a": torch.ones(2), "model.b": torch.zeros(3, dtype=torch.bfloat16)}
        state = {"global_step": 4, "state_dict": weights, "stage": {"trained": ["a"]}, "run": {"wandb_run_id": "x"}}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        file = self._written("state", buffer.getvalue())
        return Reader(file, lambda: StageResult.read(folder, str), then=seal)

    # files of models

    def tokenizer(self) -> Reader:
        file = self._copy(self.prepared.tokenizer)
        return Reader(file, lambda: TextTokenizer(file).decode(TextTokenizer(file).encode("a red circle")), JSON)

    def image_tokenizer(self) -> Reader:
        file = self._copy(self.prepared.vq)
        return Reader(file, lambda: load_image_tokenizer(file))

    def torch_weights(self) -> Reader:
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(4), "b": torch.zeros(2, 2)}, buffer)
        file = self._written("weights.bin", buffer.getvalue())
        return Reader(file, lambda: read_weights(file))

    def safetensors(self) -> Reader:
        file = self.folder / "weights.safetensors"
        save_file({"a": torch.ones(4), "b": torch.zeros(2, 2, dtype=torch.bfloat16)}, file)
        return Reader(file, lambda: read_weights(file))

    def weights_index(self) -> Reader:
        torch.save({"a": torch.ones(4)}, self.folder / "one.bin")
        file = self._written("pytorch_model.bin.index.json", {"weight_map": {"a": "one.bin"}, "metadata": {}})
        return Reader(file, lambda: read_weights(self.folder), JSON)

    def exported(self) -> Reader:
        exports.write(
            {"llm_backbone.mamba.backbone.norm_f.weight": torch.ones(2)},
            self.folder,
            {"step": 4, "merged": None, "run": "r", "code": "c"},
        )
        return Reader(self.folder / exports.EXPORT, lambda: exports.read(self.folder), JSON)

    def statistics(self) -> Reader:
        file = self.folder / "statistics.npz"
        Statistics(mean=np.zeros(3), covariance=np.eye(3), n=9, about={"images": "x"}).write(file)
        return Reader(file, lambda: read_statistics(file, 3, {}))

    # configurations

    def configuration(self) -> Reader:
        file = self._written("run.yaml", json.dumps(as_dict(load(self.run / "config.yaml"))))
        return Reader(file, lambda: load(file), YAML)

    def sweep(self) -> Reader:
        command = ["${env}", "${interpreter}", "-m", "pipelines.train", "a.yaml", "seed=1", "${args_no_hyphens}"]
        parameters = {"optim.lr": {"values": [0.1, 0.2]}, "seed": {"min": 1, "max": 5}, "model.lora": {"value": "task"}}
        metric = {"name": "train/loss", "goal": "minimize"}
        content = {"method": "random", "metric": metric, "parameters": parameters, "command": command, "name": "s"}
        file = self._written("sweep.yaml", content)
        return Reader(file, lambda: read_sweep(file), YAML)

    def trials(self) -> Reader:
        trial = {"number": 0, "parameters": {"a": 1}, "state": "finished", "value": 0.5, "reason": ""}
        file = self._written("trials.jsonl", f'{{"sweep": {{}}}}\n{json.dumps(trial)}\n')
        return Reader(file, lambda: SweepFolder(self.folder).trials(), LINES)

    # pictures

    def _picture(self, kind: str, mode: str = "RGB", **options: Any) -> Reader:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 4), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGB").convert(mode).save(buffer, kind, **options)
        file = self._written("picture", buffer.getvalue())
        return Reader(file, lambda: (decode(file.read_bytes()), mmu_pixels(file.read_bytes(), 16)))

    def jpeg(self) -> Reader:
        turned = Image.Exif()
        turned[0x0112] = 6
        return self._picture("JPEG", exif=turned)

    def plain_jpeg(self) -> Reader:
        return self._picture("JPEG", progressive=True)

    def png(self) -> Reader:
        return self._picture("PNG", "RGBA")

    def palette(self) -> Reader:
        return self._picture("PNG", "P", transparency=3)

    def gif(self) -> Reader:
        return self._picture("GIF", "P")

    def webp(self) -> Reader:
        return self._picture("WEBP")

    def tiff(self) -> Reader:
        return self._picture("TIFF", "CMYK", compression="tiff_lzw")

    def bmp(self) -> Reader:
        return self._picture("BMP")


_VQA = {"questions": QUESTION, "annotations": ANNOTATION}
_PROVENANCE = json.dumps(
    {
        "wandb_run_id": "x",
        "attempts": [{"attempt": 1, "time": 1.5, "resumed": None, "data": {"mmu": "a"}, "threads": 2}],
    }
)


def _all_samples(manifest: Path) -> Iterator[object]:
    shards = ShardSet.open(manifest)
    try:
        return iter([(shards.key(i), shards.get(i)) for i in range(len(shards))])
    finally:
        shards.close()
