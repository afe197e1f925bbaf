"""`python -m sskd_fast.demo RUN`: a page on this machine that shows what teacher and student find in an image."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from sskd_fast.data.errors import DataError
from sskd_fast.data.pixels import IMAGE_SUFFIXES
from sskd_fast.method import STAGES, title_of
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.predictor import ModelError, Prediction, Predictor, load
from sskd_fast.report.overlays import Shown, draw, enlarged, results_shown
from sskd_fast.report.verdict import count_text

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
# Pixels of a picture's long side: small images are enlarged to the first, large ones reduced to the second.
SMALLEST, LARGEST = 640, 1280
EXAMPLE = """example:
  python -m sskd_fast.demo runs/embedded --score 0.4
"""
STYLE = """
.gradio-container { max-width: 1160px !important; margin: 0 auto !important; }
#message { color: var(--error-text-color); background: var(--error-background-fill); font-weight: 600;
  border-left: 4px solid var(--error-border-color); padding: 10px 14px; overflow-wrap: anywhere; }
.models { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.models th, .models td { padding: 7px 8px; border: 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: right; color: var(--body-text-color); }
.models th:first-child { text-align: left; font-weight: 400; overflow-wrap: anywhere; }
.models thead th, .models tr.total > * { font-weight: 650; }
.models tr.class th:first-child { padding-left: 22px; }
.note { color: var(--body-text-color-subdued); margin: 10px 0 0; max-width: 80ch; }
"""


class DemoError(Exception):
    """A reason why the page cannot be shown, and the way out."""


@dataclass(frozen=True)
class Model:
    """A column of the page. title: for readers, such as "Refined student"."""

    title: str
    predictor: Predictor


@dataclass(frozen=True)
class Found:
    """All that one model finds in an image. parameters: that inference uses.  milliseconds: of the prediction alone."""

    title: str
    parameters: int
    milliseconds: float
    prediction: Prediction


@dataclass(frozen=True)
class Analysis:
    """An image as the models see it, and what each finds: enough to draw it anew for another score."""

    picture: Image.Image
    found: tuple[Found, ...]

    def above(self, score: float) -> Analysis:
        """The same with the instances of at least this score."""
        return replace(self, found=tuple(replace(f, prediction=f.prediction.above(score)) for f in self.found))


def models_of(place: str, device: str) -> list[Model]:
    """Teacher and student of a run's folder, or the one model of any other place.  Errors as of `predictor.load`."""
    stages = [stage.name for stage in reversed(STAGES) if stage.model == "teacher"]
    teacher = next((s for s in stages if (Path(place) / "checkpoints" / f"{s}.safetensors").is_file()), None)
    student = load(place, device=device)
    predictors = [student] if teacher is None else [load(place, stage=teacher, device=device), student]
    return [Model(title_of(str(p.description.facts.get("stage", "model"))), p) for p in predictors]


def analyse(models: Sequence[Model], image: Path) -> Analysis:
    """What the models find in an image file.  Raises DataError for a file that cannot be read."""
    found = tuple(_find(model, image) for model in models)
    pixels = models[-1].predictor.read_image(image).permute(1, 2, 0).numpy()
    long_side = min(max(*pixels.shape[:2], SMALLEST), LARGEST)
    return Analysis(enlarged(pixels, short_side=1, long_side=long_side), found)


def _find(model: Model, image: Path) -> Found:
    predictor = model.predictor
    pixels = predictor.read_image(image)
    predictor.find([pixels])  # warms up for this size
    start = time.perf_counter()
    prediction = predictor.find([pixels])[0]
    milliseconds = 1000 * (time.perf_counter() - start)
    return Found(model.title, predictor.model.parameter_count(), milliseconds, prediction)


def shown_instances(analysis: Analysis) -> list[list[Shown]]:
    """The instances of each model; those of the second have colour and number of the ones of the first they cover."""
    first, *others = [found.prediction for found in analysis.found]
    numbered = zip(first.rles, first.names, first.scores, strict=True)
    reference = [Shown(rle, name, score, i, True) for i, (rle, name, score) in enumerate(numbered, start=1)]
    return [reference, *(_matched(prediction, reference) for prediction in others)]


def _matched(prediction: Prediction, reference: Sequence[Shown]) -> list[Shown]:
    names = dict(zip(prediction.category_ids, prediction.class_names, strict=True))
    return results_shown(prediction.to_coco(0), reference, prediction.size, names)


def table(analysis: Analysis) -> str:
    """An HTML table: parameters, time, instances, and instances by class, one column a model."""
    predictions = [found.prediction for found in analysis.found]
    counts = [Counter(prediction.names) for prediction in predictions]
    names = [name for name, _ in sum(counts, Counter()).most_common()]
    rows = [
        ("", "Parameters", [count_text(found.parameters) for found in analysis.found]),
        ("", "Prediction", [_milliseconds_text(found.milliseconds) for found in analysis.found]),
        ("total", "Instances", [str(len(prediction)) for prediction in predictions]),
        *(("class", name, [str(count[name]) for count in counts]) for name in names),
    ]
    head = "".join(f'<th scope="col">{escape(found.title)}</th>' for found in analysis.found)
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for kind, name, cells in rows
    )
    return f'<table class="models"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def _milliseconds_text(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def note(analysis: Analysis, shown: Sequence[Sequence[Shown]], score: float) -> str:
    """A sentence on how the two models agree, or on an image without instances."""
    if not any(shown):
        return f"No instance has a score of {score:.2f} or more: lower the score to see less certain ones."
    if len(shown) == 1:
        return ""
    teacher, student = (found.title for found in analysis.found)
    same = sum(instance.number is not None for instance in shown[1])
    return (
        f"{same} of {len(shown[0])} instances of the {teacher.lower()} are also found by the {student.lower()} "
        f"(mask IoU at least 0.5): these have the same colour and number in both pictures. Instances that the "
        f"{student.lower()} alone finds are white: {len(shown[1]) - same}."
    )


def view(analysis: Analysis, score: float) -> tuple[list[Image.Image], str]:
    """The pictures, and the table with its note as HTML, of the instances with at least this score."""
    chosen = analysis.above(score)
    shown = shown_instances(chosen)
    text = note(chosen, shown, score)
    pictures = [draw(analysis.picture, instances) for instances in shown]
    return pictures, table(chosen) + (f'<p class="note">{escape(text)}</p>' if text else "")


def trouble(error: DataError) -> str:
    """A message for the page on an image that cannot be read: no path of the server in it, and the cure."""
    problem = error.problems[0]
    name = Path(problem.file).name
    found = problem.found.replace(str(problem.file), name)
    formats = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return f'<div id="message" role="alert">{escape(name)}: {escape(found)}. Choose another file ({formats}).</div>'


def build_page(models: Sequence[Model], score: float) -> gr.Blocks:
    """The page, not yet served.  ImportError without gradio."""
    import gradio as gr

    def pictures_and_facts(analysis: Analysis | None, score: float) -> list[Any]:
        if analysis is None:
            return [*(gr.Image(value=None, visible=False) for _ in models), ""]
        pictures, facts = view(analysis, score)
        return [*(gr.Image(value=picture, visible=True) for picture in pictures), facts]

    def predict(path: str | None, score: float) -> list[Any]:
        try:
            analysis, message = (None if path is None else analyse(models, Path(path))), ""
        except DataError as error:
            analysis, message = None, trouble(error)
        return [analysis, message, *pictures_and_facts(analysis, score)]

    with gr.Blocks(title="sskd_fast", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {escape(' and '.join(model.title for model in models))}")
        with gr.Row(equal_height=True):
            file = gr.File(label="Image", file_types=list(IMAGE_SUFFIXES), elem_id="file", height=150, min_width=300)
            slider = gr.Slider(0, 1, score, step=0.01, label="Score", elem_id="score", min_width=300,
                               info="Instances below are left out.")  # fmt: skip
        message = gr.HTML()
        with gr.Row():
            images = [
                gr.Image(label=model.title, visible=False, interactive=False, format="png", buttons=["fullscreen"],
                         elem_id=f"picture-{i}", min_width=300) for i, model in enumerate(models)
            ]  # fmt: skip
        facts = gr.HTML(elem_id="facts")
        analysis = gr.State(None, time_to_live=3600)
        file.change(predict, [file, slider], [analysis, message, *images, facts], api_visibility="private")
        slider.input(
            pictures_and_facts, [analysis, slider], [*images, facts], trigger_mode="always_last",
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
    return page


def serve(page: gr.Blocks, port: int | None, *, browser: bool) -> None:
    """Serves the page on this machine alone until Ctrl-C.  Raises DemoError if the port is taken."""
    import gradio as gr
    from gradio.http_server import INITIAL_PORT_VALUE

    try:
        _, url, _ = page.launch(
            server_name=HOST, server_port=port, share=False, inbrowser=browser, quiet=True, prevent_thread_lock=True,
            footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, show_error=True, css=STYLE,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
    except OSError as error:
        raise DemoError(
            f"--port {port}: another program uses it; end that program, choose another port, or leave --port out for "
            "the first free one"
        ) from error
    if port is None and page.server_port != INITIAL_PORT_VALUE:
        print(f"port {INITIAL_PORT_VALUE} is taken: the next free one is {page.server_port}")
    print(f"{url} shows the page on this machine; Ctrl-C ends it", flush=True)
    page.block_thread()


def port_number(text: str) -> int:
    """A TCP port of the command line."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a port from 1 to 65535")
    return int(text)


def score_number(text: str) -> float:
    """A score of the command line."""
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a score from 0 to 1")
    return score


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.demo", description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint (.safetensors), or a hub id (owner/name)")
    p.add_argument("--port", type=port_number, help="port of the page (the first free one from 7860)")
    p.add_argument("--score", type=score_number, default=0.5, help="instances below are left out at first (0.5)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit status: 0, or 2 with a message for bad input."""
    arguments = parser().parse_args(argv)
    try:
        check(arguments.device)
        page = build_page(models_of(arguments.run, arguments.device), arguments.score)
        serve(page, arguments.port, browser=not arguments.no_browser)
    except (ModelError, CheckpointError, DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def check(device: str) -> None:
    """Raises DemoError if gradio is missing, or for "cuda" without a GPU."""
    if importlib.util.find_spec("gradio") is None:
        raise DemoError("the demo needs gradio: pip install 'sskd_fast[demo]'")
    if device == "cuda" and not torch.cuda.is_available():
        raise DemoError("--device cuda: PyTorch finds no CUDA device; use --device cpu, or install a CUDA build")


if __name__ == "__main__":
    sys.exit(main())
