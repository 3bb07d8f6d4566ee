"""Export trained weights for use elsewhere.

    python -m pipelines.export RUN OUT [--forms model adapters merged transformers] [--encoders]

Examples:
    python -m pipelines.export runs/stage2_unified exported
    python -m pipelines.export runs/stage2_unified exported --forms model adapters merged
    python -m pipelines.export runs/stage2_unified/checkpoints/step-000100000 exported --encoders

OUT is created and must not exist yet. The forms are:
    model       model.safetensors with the names of the published checkpoint, config.yaml, tokenizer.json, the VQ
                tokenizer if it is small, export.json
    adapters    adapters/{mmu,t2i}/: the LoRA of each task as peft's adapter files, for a model without adapters
    merged      merged/{mmu,t2i}/: one model per task, in the form of `model`, with the LoRA of the task folded in
    transformers  transformers/: the language model as transformers' Mamba2ForCausalLM loads it, with the LoRA of mmu
--encoders adds the ViTs and the VQ tokenizer to `model`, as in the published checkpoint.
Every folder with an export.json works as RUN of pipelines.evaluate and pipelines.generate, its weights as pretrained=.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run.console import run_verb, say

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.run.config import RunConfig
    from pipelines.run.trained import Trained

FORMS = ("model", "adapters", "merged", "transformers")


def main() -> None:
    """Parse the command line and export."""
    from pipelines.run.console import split_overrides

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or one of its checkpoints")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["model"], help="default: model")
    parser.add_argument("--encoders", action="store_true", help="include the ViTs and the VQ tokenizer")
    arguments, rest = parser.parse_known_args()
    overrides = split_overrides(parser, rest)
    # imported here to keep --help fast; it tells a wrong word before torch is loaded
    from pipelines.run.words import check_trained

    check_trained(arguments.run, overrides)
    export(arguments.run, arguments.out, arguments.forms, overrides, encoders=arguments.encoders)


def export(
    run: Path, out: Path, forms: Sequence[str] = ("model",), overrides: Sequence[str] = (), *, encoders: bool = False
) -> None:
    """Write ``forms`` of the weights in ``run`` into the new folder ``out``, all or nothing.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: ``out`` cannot be written; for ConfigError, CheckpointError and others see `load_trained` and
            `modules.exports`.
    """
    from safetensors import SafetensorError

    from modules.files import new_folder
    from pipelines.run.card import CARD, card
    from pipelines.run.counting import PieceProgress
    from pipelines.run.trained import load_trained, trained_config

    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not exist yet. Nothing is overwritten")
    with PieceProgress("export") as progress:
        progress.show("read the weights", 0, 1 + len(forms))
        trained = load_trained(run, ["hardware.accelerator=cpu", "trainer.precision=float32", *overrides])
        trained = replace(trained, config=trained_config(run, overrides))  # keep the run's own hardware settings
        try:
            with new_folder(out) as partial:
                for number, form in enumerate(forms, 1):
                    progress.show(f"write the form {form}", number, 1 + len(forms))
                    _write_form(form, partial, trained, encoders=encoders)
                (partial / CARD).write_text(card(trained, forms), encoding="utf-8")
        except FileNotFoundError:
            raise  # a missing input, not a fault of out; its message names the file
        except (OSError, SafetensorError) as error:
            fix = "make room, or name a folder on another disk"
            raise ValueError(f"{out} could not be written: {error}; {fix}") from error
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        say(f"{path}  {path.stat().st_size:,} bytes")


def _write_form(form: str, folder: Path, trained: "Trained", *, encoders: bool) -> None:
    from modules import exports
    from modules.adapter_files import save_adapter
    from modules.omnimamba.config import TASKS

    if form == "model":
        _write(folder, exports.all_weights(trained.model, trained.vq, encoders=encoders), trained)
    elif form == "transformers":
        _write_for_transformers(folder / form, trained)
    else:
        for task in TASKS:
            if form == "adapters":
                save_adapter(trained.model, task, folder / form / task)
            else:
                _write(folder / form / task, exports.merged(trained.model, task), trained, merged=task)


def _write(folder: Path, weights: "dict[str, Tensor]", trained: "Trained", merged: str = "") -> None:
    from omegaconf import OmegaConf

    from modules import exports
    from modules.files import code_version
    from modules.model_files import KEY, keep, kept
    from modules.run_files import CONFIG
    from pipelines.run.config import as_dict
    from pipelines.run.texts import literally

    folder.mkdir(parents=True, exist_ok=True)
    keep(folder, trained.config.model)
    config = as_dict(_config(trained, merged))
    config["model"] |= {key: file.name for key, file in kept(folder).items()}  # relative: the folder may be moved
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(literally(config))), encoding="utf-8")
    facts = {"run": trained.config.name, "step": trained.step, "merged": merged or None, "code": code_version()}
    exports.write(weights, folder, facts | {KEY: trained.files.as_dict()})


def _write_for_transformers(folder: Path, trained: "Trained") -> None:
    from modules import exports
    from modules.files import write_json
    from modules.model_files import keep
    from modules.transformers_files import language_config
    from modules.weight_files import SAFETENSORS

    model, end_of_text = trained.model, trained.tokenizer.end_of_text
    config = language_config(model.config, len(model.text_embedding.weight), end_of_text)
    folder.mkdir()
    keep(folder, trained.config.model)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    exports.save(exports.for_transformers(model), folder / SAFETENSORS)
    write_json(folder / "config.json", config)


def _config(trained: "Trained", merged: str) -> "RunConfig":
    """The run's configuration, changed to start from the exported weights."""
    config = replace(trained.config, init_from=(), run=replace(trained.config.run, dir=""))
    return replace(config, model=replace(config.model, lora="none")) if merged else config


if __name__ == "__main__":
    run_verb(main)
