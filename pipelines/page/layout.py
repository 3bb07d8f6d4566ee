"""The layout of the page, and what its buttons do."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from callbacks.measures.pictures import NO_VQ
from datamodules.images import decode
from modules.omnimamba.config import Task
from modules.stages import STAGES
from pipelines.page.examples import WORDS, Examples
from pipelines.page.told import told
from pipelines.run.asked import sampling_of
from pipelines.run.paths import from_here
from pipelines.run.scores import markdown
from pipelines.run.trained import Trained

MOST_PICTURES = 16
MOST_PIXELS = 50_000_000
"""A larger upload would fill the memory while others wait."""
CSS = """
.gradio-container {max-width: 860px !important; margin: 0 auto !important}
.drawn img {image-rendering: pixelated}
.drawn .gallery-container, .drawn .grid-wrap {height: auto !important; min-height: 120px}
.drawn .grid-container {padding-top: 0}
.scores table {display: block; max-width: calc(100vw - 100px); overflow-x: auto; white-space: nowrap; font-size: 0.85em}
.scores :is(th, td) {padding: 2px 8px !important}
@media (max-width: 600px) {.drawn .grid-container {grid-template-columns: 1fr 1fr !important}}
"""


def build(trained: Trained, examples: Examples, scores: Sequence[Sequence[str]]) -> gr.Blocks:
    """The page: drawing, asking, and what was measured."""
    page: gr.Blocks = gr.Blocks(title=trained.config.name, analytics_enabled=False, delete_cache=(3600, 3600))
    with page:
        gr.Markdown(_heading(trained, examples))
        with gr.Tab("Draw"):
            _draw_tab(trained, examples)
        with gr.Tab("Ask"):
            _ask_tab(trained, examples)
        with gr.Tab("Scores"):
            _scores_tab(trained, scores)
    return page


def _heading(trained: Trained, examples: Examples) -> str:
    weights = f"step {trained.step:,} of stage {trained.config.stage.name}" if trained.step else trained.origin
    lines = [f"{from_here(trained.folder)}, {weights}", *examples.remarks]
    return f"# {trained.config.name}\n" + "\n".join(f"{line}<br>" for line in lines)


def _draw_tab(trained: Trained, examples: Examples) -> None:
    _say_if_untrained(trained, "t2i")
    can_draw = trained.vq is not None
    if not can_draw:
        gr.Markdown(f"**It cannot draw: {NO_VQ}.**")
    own = sampling_of(trained.config)
    caption = gr.Textbox(label="Caption", placeholder="what to draw", lines=1)
    with gr.Row():
        number = gr.Slider(1, MOST_PICTURES, value=4, step=1, label="Pictures")
        seed = gr.Number(own.seed, precision=0, label="Seed", info="The same seed draws the same pictures.")
    with gr.Accordion("Sampling", open=False):
        with gr.Row():
            temperature = gr.Number(own.temperature, label="Temperature", info="Lower: safer, and less varied.")
            top_k = gr.Number(own.top_k, precision=0, label="Top-k", info="The k likeliest tokens; 0: all.")
        with gr.Row():
            top_p = gr.Number(own.top_p, label="Top-p", info="The likeliest tokens of this share; 1: all.")
            guidance = gr.Number(own.guidance, label="Guidance", info="Above 1: closer to the caption.")
    button = gr.Button("Draw", variant="primary", interactive=can_draw)
    pictures = gr.Gallery(columns=4, show_label=False, format="png", buttons=["download"], elem_classes="drawn")
    if examples.captions:
        gr.Examples([[each] for each in examples.captions], inputs=[caption], label="Captions of its training data")

    def draw(
        caption: str,
        number: int,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        guidance: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio knows that progress is reported
    ) -> list[Image.Image]:
        with told():
            settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
            return trained.draw(
                caption,
                number,
                seed=seed,
                **settings,
                progress=lambda done, of: progress((done, of), desc="Drawing", unit="tokens"),
            )

    inputs = [caption, number, seed, temperature, top_k, top_p, guidance]
    _on([button.click, caption.submit] if can_draw else [], draw, inputs, pictures)


def _ask_tab(trained: Trained, examples: Examples) -> None:
    _say_if_untrained(trained, "mmu")
    picture = gr.Image(label="Picture", sources=["upload", "clipboard"], type="filepath", height=280)
    # Gradio would decode the file before us, and say only "Error" of a damaged one
    picture.preprocess = lambda payload: payload and payload.path  # type: ignore[assignment, return-value]
    _take_uploads_alone(picture)
    question = gr.Textbox(label="Question", placeholder="What is in the image?", lines=1)
    short = gr.Checkbox(True, label="A single word or phrase, as benchmarks ask")
    button = gr.Button("Ask", variant="primary")
    answer = gr.Textbox(label="Answer", interactive=False, lines=2)
    if examples.questions:
        rows = [[str(path), asked] for path, asked in examples.questions]
        gr.Examples(rows, inputs=[picture, question], label="Pictures and questions of its training data")

    def ask(picture: str | None, question: str, short: bool) -> Iterator[str]:
        yield ""
        with told():
            if picture is None:
                raise ValueError("there is no picture yet; upload one, or choose an example")
            yield from trained.stream(_read(Path(picture)), question, short=short)

    _on([button.click, question.submit], ask, [picture, question, short], answer)


def _scores_tab(trained: Trained, scores: Sequence[Sequence[str]]) -> None:
    if not scores:
        gr.Markdown(f"Nothing was measured at step {trained.step:,}. `python -m pipelines.evaluate` does.")
        return
    gr.Markdown(markdown(scores), elem_classes="scores")


def _on(events: Sequence[Any], work: Any, inputs: Sequence[Any], output: Any) -> None:
    """Do ``work`` on each of ``events``. One model does all work, so users wait for each other."""
    for event in events:
        event(work, list(inputs), output, concurrency_id="model", concurrency_limit=1, api_visibility="private")


def _say_if_untrained(trained: Trained, task: Task) -> None:
    stage = trained.config.stage.name
    if task not in STAGES[stage].tasks:
        gr.Markdown(f"**Stage {stage} does not train {WORDS[task]}, so this may be useless.**")


def _take_uploads_alone(picture: gr.Image) -> None:
    """Refuse addresses in place of a file: Gradio would fetch them for whoever sends one."""
    keep = picture.async_move_resource_to_block_cache

    async def kept(file: str | Path | None) -> str | None:
        if str(file).lower().startswith(("http:", "https:")):
            raise gr.Error("this page fetches no addresses; upload the picture itself", print_exception=False)
        return await keep(file)

    picture.async_move_resource_to_block_cache = kept  # type: ignore[assignment, method-assign]


def _read(path: Path) -> Image.Image:
    """The picture that a user uploaded.

    Raises:
        ValueError: it does not decode, or is too large.
    """
    try:
        return decode(path.read_bytes(), MOST_PIXELS)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from error
