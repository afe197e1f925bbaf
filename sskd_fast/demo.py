"""`python -m sskd_fast.demo RUN`: a page on this machine that shows what teacher and student find in an image."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

from sskd_fast import _env
from sskd_fast.data.errors import DataError, named
from sskd_fast.data.pixels import IMAGE_SUFFIXES
from sskd_fast.method import STAGES, title_of
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.predictor import ModelError, Prediction, Predictor, load
from sskd_fast.report.overlays import SAME_OBJECT_IOU, Shown, draw, results_shown
from sskd_fast.report.pictures import enlarged
from sskd_fast.report.verdict import count_text

if TYPE_CHECKING:
    import gradio as gr

Number = TypeVar("Number", int, float)
HOST = "127.0.0.1"
# Pixels of a picture's long side: small images are enlarged to the first, large ones reduced to the second.
SMALLEST, LARGEST = 540, 960
# The time of a prediction is the median of so many, or of fewer that have taken so long.
TIMED, TIMED_SECONDS = 5, 0.5
EXAMPLE = """example:
  python -m sskd_fast.demo runs/embedded --score 0.4
"""
STYLE = """
.gradio-container, .gradio-container > main { width: 100% !important; max-width: 1160px !important; margin: 0 auto; }
#trouble { color: var(--error-text-color); background: var(--error-background-fill); font-weight: 600;
  border-left: 4px solid var(--error-border-color); padding: 10px 14px; overflow-wrap: anywhere; }
.html-container { padding: 0 !important; }
.models { width: 100%; max-width: 720px; border-collapse: collapse; font-variant-numeric: tabular-nums;
  color: var(--body-text-color); }
.models th, .models td { padding: 7px 8px; border-bottom: 1px solid var(--border-color-primary); text-align: right; }
.models th:first-child { text-align: left; font-weight: 400; overflow-wrap: anywhere; min-width: 7em; }
.models thead th, .models tr.total > * { font-weight: 650 !important; }
.models tr.class th:first-child { padding-left: 22px; }
.note { color: var(--body-text-color); margin: 14px 0 0; max-width: 80ch; line-height: 1.5; overflow-wrap: anywhere; }
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
    """All that one model finds in an image. parameters: those inference uses.  milliseconds: of a warm prediction."""

    title: str
    parameters: int
    milliseconds: float
    prediction: Prediction


@dataclass(frozen=True)
class Analysis:
    """An image as the models see it, and all that each finds: enough to draw it anew for another score."""

    name: str
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
    """Predicts an image file with every model.  Raises DataError for a file that cannot be read."""
    found = tuple(_find(model, image) for model in models)
    pixels = models[-1].predictor.read_image(image).permute(1, 2, 0).numpy()
    long_side = min(max(*pixels.shape[:2], SMALLEST), LARGEST)
    return Analysis(image.name, enlarged(pixels, short_side=1, long_side=long_side), found)


def _find(model: Model, image: Path) -> Found:
    predictor = model.predictor
    pixels = predictor.read_image(image)
    prediction = predictor.find([pixels])[0]  # the warm-up for images of this size, too
    seconds: list[float] = []
    while len(seconds) < TIMED and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        predictor.find([pixels])
        seconds.append(time.perf_counter() - start)
    return Found(model.title, predictor.model.parameter_count(), 1000 * statistics.median(seconds), prediction)


def shown_instances(analysis: Analysis) -> list[list[Shown]]:
    """The instances of each model; those of the second have colour and number of the ones of the first they cover."""
    first, *others = [found.prediction for found in analysis.found]
    numbered = zip(first.rles, first.names, first.scores, strict=True)
    reference = [Shown(rle, name, score, i, True) for i, (rle, name, score) in enumerate(numbered, start=1)]
    return [reference, *(results_shown(p.to_coco(0), reference, p.size, _names(p)) for p in others)]


def _names(prediction: Prediction) -> dict[int, str]:
    return dict(zip(prediction.category_ids, prediction.class_names, strict=True))


def table(analysis: Analysis) -> str:
    """An HTML table: parameters, time, instances, and instances by class, one column a model."""
    predictions = [found.prediction for found in analysis.found]
    counts = [Counter(prediction.names) for prediction in predictions]
    names = [name for name, _ in sum(counts, Counter()).most_common()]
    rows = [
        ("", "Parameters", [count_text(found.parameters) for found in analysis.found]),
        ("", "Prediction time", [f"{found.milliseconds:.1f} ms" for found in analysis.found]),
        ("total", "Instances", [str(len(prediction)) for prediction in predictions]),
        *(("class", name, [str(count[name]) for count in counts]) for name in names),
    ]
    head = "".join(f'<th scope="col">{escape(found.title)}</th>' for found in analysis.found)
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for kind, name, cells in rows
    )
    return f'<table class="models"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def note(analysis: Analysis, shown: Sequence[Sequence[Shown]], score: float) -> str:
    """Sentences on the image and on how two models agree."""
    height, width = analysis.found[0].prediction.size
    image = f"{analysis.name}, {width} x {height} pixels."
    if not any(shown):
        return f"{image} No instance has a score of {score:.2f} or more: lower the score to see less certain ones."
    return f"{image} {_agreement(analysis.found, shown)}" if len(shown) == 2 else image


def _agreement(found: Sequence[Found], shown: Sequence[Sequence[Shown]]) -> str:
    teacher, student = (each.title.lower() for each in found)
    same = sum(instance.number is not None for instance in shown[1])
    alone = f", and {len(shown[1]) - same} more, in white" if len(shown[1]) > same else ""
    return (
        f"The {student} finds {same} of the {teacher}'s {len(shown[0])} instances (mask IoU at least "
        f"{SAME_OBJECT_IOU}), drawn in the same colour{alone}."
    )


def view(analysis: Analysis, score: float) -> tuple[list[Image.Image], str]:
    """The pictures, and the table with its note as HTML, of the instances with at least this score."""
    chosen = analysis.above(score)
    shown = shown_instances(chosen)
    pictures = [draw(analysis.picture, instances) for instances in shown]
    return pictures, f'{table(chosen)}<p class="note">{escape(note(chosen, shown, score))}</p>'


def trouble(error: DataError) -> str:
    """A message for the page on an image that cannot be read: no path of the server in it, and the cure."""
    problem = error.problems[0]
    name = Path(problem.file).name
    found = problem.found.replace(str(problem.file), name)
    formats = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return f'<div id="trouble" role="alert">{escape(name)}: {escape(found)}. Choose another file ({formats}).</div>'


def heading(models: Sequence[Model]) -> str:
    """The top of the page as Markdown: the models, and the classes they find."""
    titles = " and ".join(model.title if i == 0 else model.title.lower() for i, model in enumerate(models))
    return f"# {titles}\n\nFinds {escape(named(models[-1].predictor.class_names, 12))}. Images stay on this machine."


def build_page(models: Sequence[Model], score: float) -> gr.Blocks:
    """The page, not yet served.  ImportError without gradio."""
    import gradio as gr

    def redraw(analysis: Analysis | None, score: float) -> list[Any]:
        if analysis is None:
            return [gr.Column(visible=False), "", *(None for _ in models)]
        pictures, facts = view(analysis, score)
        return [gr.Column(visible=True), facts, *pictures]

    def predict(path: str, score: float) -> list[Any]:
        try:
            analysis, message = analyse(models, Path(path)), ""
        except DataError as error:
            analysis, message = None, trouble(error)
        return [None, analysis, gr.HTML(message, visible=bool(message)), *redraw(analysis, score)]

    with gr.Blocks(title="sskd_fast", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(heading(models))
        with gr.Row(equal_height=True):
            file = gr.File(label="Image", file_types=list(IMAGE_SUFFIXES), elem_id="file", height=150, min_width=300)
            slider = gr.Slider(0, 1, score, step=0.01, label="Score: instances below are left out",
                               elem_id="score", min_width=300)  # fmt: skip
        message = gr.HTML(visible=False)
        with gr.Column(visible=False) as result:
            with gr.Row():
                pictures = [_picture(model.title, f"picture-{i}") for i, model in enumerate(models)]
            facts = gr.HTML(elem_id="facts", apply_default_css=False)
        analysis = gr.State(None, time_to_live=3600)
        drawn = [result, facts, *pictures]
        file.upload(predict, [file, slider], [file, analysis, message, *drawn], api_visibility="private")
        slider.input(redraw, [analysis, slider], drawn, trigger_mode="always_last", show_progress="hidden",
                     api_visibility="private")  # fmt: skip
    return page


def _picture(title: str, elem_id: str) -> gr.Image:
    """A picture below its title, which would hide a corner of it otherwise."""
    import gradio as gr

    with gr.Column(min_width=300):
        gr.Markdown(f"### {escape(title)}")
        return gr.Image(
            show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id=elem_id, alt_text=title
        )


def serve(page: gr.Blocks, port: int | None, *, browser: bool) -> None:
    """Serves the page on this machine alone until Ctrl-C.  Raises DemoError if the port is taken."""
    import gradio as gr
    from gradio.http_server import INITIAL_PORT_VALUE

    # Fonts of the system alone: none is fetched.
    theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, url, _ = page.launch(
            server_name=HOST, server_port=port, share=False, inbrowser=browser, quiet=True, prevent_thread_lock=True,
            footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, show_error=True, css=STYLE,
            theme=theme,
        )  # fmt: skip
    except OSError as error:
        cure = "leave --port out for the first free one" if port else "choose one with --port"
        raise DemoError(
            f"port {port or INITIAL_PORT_VALUE}: another program uses it; end that program, or {cure}"
        ) from error
    if port is None and page.server_port != INITIAL_PORT_VALUE:
        print(f"port {INITIAL_PORT_VALUE} is taken: the next free one is {page.server_port}")
    print(f"{url} shows the page on this machine; Ctrl-C ends it", flush=True)
    page.block_thread()


def between(low: Number, high: Number) -> Callable[[str], Number]:
    """A type of argparse: numbers from low to high."""

    def parse(text: str) -> Number:
        try:
            value = type(low)(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {low} to {high}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.demo", description=__doc__, epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint (.safetensors), or a hub id (owner/name)")
    p.add_argument("--port", type=between(1, 65535), help="port of the page (the first free one from 7860)")
    p.add_argument("--score", type=between(0.0, 1.0), default=0.5, help="instances below are left out at first (0.5)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit status: 0, or 2 with a message for bad input."""
    arguments = parser().parse_args(argv)
    try:
        check(arguments.device)
        models = models_of(arguments.run, arguments.device)
        with uploads_folder():
            page = build_page(models, arguments.score)
            serve(page, arguments.port, browser=not arguments.no_browser)
    except (ModelError, CheckpointError, FoundationError, DemoError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


@contextmanager
def uploads_folder() -> Iterator[None]:
    """Keeps uploaded images in a folder that is removed at the end, unless GRADIO_TEMP_DIR names another one."""
    with (
        TemporaryDirectory(prefix="sskd_fast_demo_", ignore_cleanup_errors=True) as folder,
        _env.default_within("GRADIO_TEMP_DIR", folder),
    ):
        yield


def check(device: str) -> None:
    """Raises DemoError if gradio is missing, or for "cuda" without a GPU."""
    if importlib.util.find_spec("gradio") is None:
        raise DemoError("the demo needs gradio: pip install 'sskd_fast[demo]'")
    if device == "cuda" and not torch.cuda.is_available():
        raise DemoError("--device cuda: PyTorch finds no CUDA device; use --device cpu, or install a CUDA build")


if __name__ == "__main__":
    sys.exit(main())
