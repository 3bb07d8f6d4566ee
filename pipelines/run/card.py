"""The model card of an export: what the weights are, what was measured of them, and how they are loaded."""

from collections.abc import Sequence

from modules.stages import STAGES
from pipelines.run.scores import markdown, scores_of
from pipelines.run.trained import Trained

CARD = "README.md"
"""Where people and hubs look for it."""
WAYS = {
    "model": """In the pipeline that trained it, this folder stands for a run:

```python
from pipelines.run.trained import load_trained

run = load_trained(".")
```""",
    "merged": "`merged/mmu` and `merged/t2i` are loaded in the same way. Each knows one task alone.",
    "adapters": "`adapters/mmu` and `adapters/t2i` are LoRA adapters in peft's format.",
    "transformers": """`transformers` holds the language model alone, without pictures:

```python
from transformers import AutoTokenizer, Mamba2ForCausalLM

model = Mamba2ForCausalLM.from_pretrained("transformers")
tokenizer = AutoTokenizer.from_pretrained("transformers")
```""",
}
"""How each form of an export is loaded."""


def card(trained: Trained, forms: Sequence[str]) -> str:
    """The card in Markdown. It names no paths of the machine that trained the weights."""
    config = trained.config
    tasks = {"mmu": "answers questions about pictures", "t2i": "draws captions"}
    does = " and ".join(tasks[task] for task in STAGES[config.stage.name].tasks)
    rows = scores_of(trained.folder, trained.step)
    scores = markdown(rows) if rows else "Nothing was measured at this step."
    parts = [
        "---\ntags: [omnimamba, mamba2]\n---",
        f"# {config.name}",
        f"An OmniMamba model of {sum(p.numel() for p in trained.model.parameters()) / 1e6:,.1f} million parameters. "
        f"It {does}. These are the weights after step {trained.step:,} of stage {config.stage.name}.",
        "## What was measured",
        scores,
        "## How to load it",
        *(way for form, way in WAYS.items() if form in forms),
    ]
    return "\n\n".join(parts) + "\n"
