"""`python -m sskd_fast.demo RUN`: serve a local page that shows the instances teacher and student find in an image."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from sskd_fast import _env
from sskd_fast.arguments import between
from sskd_fast.demo.analysis import models_of
from sskd_fast.demo.page import DemoError, build_page, serve
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.predictor import ModelError

EXAMPLE = """example:
  python -m sskd_fast.demo runs/embedded --score 0.4
"""


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    p = argparse.ArgumentParser(
        prog="python -m sskd_fast.demo",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", metavar="RUN", help="a run's folder, a checkpoint (.safetensors), or a hub id (owner/name)")
    p.add_argument("--port", type=between(1, 65535), help="port of the page (default: first free one from 7860)")
    p.add_argument("--score", type=between(0.0, 1.0), default=0.5, help="initial score threshold (default: 0.5)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one")
    p.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns 0, or 2 with an error message for bad input."""
    arguments = parser().parse_args(argv)
    try:
        check()
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
    """Keeps uploaded images in a temporary folder, removed at the end, unless GRADIO_TEMP_DIR names another one."""
    with (
        TemporaryDirectory(prefix="sskd_fast_demo_", ignore_cleanup_errors=True) as folder,
        _env.default_within("GRADIO_TEMP_DIR", folder),
    ):
        yield


def check() -> None:
    """Raises DemoError if gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise DemoError("the demo needs gradio: pip install 'sskd_fast[demo]'")


if __name__ == "__main__":
    sys.exit(main())
