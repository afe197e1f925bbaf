"""The demo page: an image in, pictures and a table out, served on this machine only."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sskd_fast.data.errors import DataError
from sskd_fast.data.image_folders import IMAGE_SUFFIXES
from sskd_fast.demo.analysis import Analysis, Model, analyse, heading, trouble, view

if TYPE_CHECKING:
    import gradio as gr

HOST = "127.0.0.1"
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
    """Raised if the page cannot be served; the message has the reason and the cure."""


def build_page(models: Sequence[Model], score: float) -> gr.Blocks:
    """Builds the page without serving it.  Raises ImportError if gradio is missing."""
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
            slider = gr.Slider(
                0, 1, score, step=0.01, label="Score: instances below it are hidden", elem_id="score", min_width=300
            )
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
    """A picture with its title above it; gradio's own label would hide a corner of the picture."""
    import gradio as gr

    with gr.Column(min_width=300):
        gr.Markdown(f"### {escape(title)}")
        return gr.Image(
            show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id=elem_id, alt_text=title
        )


def serve(page: gr.Blocks, port: int | None, *, browser: bool) -> None:
    """Serves the page on this machine only, until Ctrl-C.  Raises DemoError if the port is taken."""
    import gradio as gr
    from gradio.http_server import INITIAL_PORT_VALUE

    # System fonts only, so that none is downloaded.
    theme = gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, url, _ = page.launch(
            server_name=HOST, server_port=port, share=False, inbrowser=browser, quiet=True, prevent_thread_lock=True,
            footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, show_error=True, css=STYLE,
            theme=theme,
        )  # fmt: skip
    except OSError as error:
        cure = "omit --port to take the first free one" if port else "choose one with --port"
        raise DemoError(
            f"port {port or INITIAL_PORT_VALUE}: another program uses it; end that program, or {cure}"
        ) from error
    if port is None and page.server_port != INITIAL_PORT_VALUE:
        print(f"port {INITIAL_PORT_VALUE} is taken; using the next free one, {page.server_port}")
    print(f"{url} serves the page on this machine; press Ctrl-C to stop", flush=True)
    page.block_thread()
