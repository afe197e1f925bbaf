"""GFLOPs of the paper's student by its parts, and of students that differ from it in one thing each.

`python -m benchmarks.student_flops` counts on the meta device, as `--dry-run` does: two FLOPs for a multiplication with
its addition.  Other counters take one for both, and some leave out the products of attention.
"""

from __future__ import annotations

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import build
from benchmarks.report import table
from sskd_fast.run.dry_run import model_cost
from sskd_fast.settings import Config
from sskd_fast.yaml_settings import load_config

Size = tuple[int, int]
CROP: Size = (512, 1024)
# Words, height and width of the crop, and settings on top of the paper's.
VARIANTS: tuple[tuple[str, Size, tuple[str, ...]], ...] = (
    ("masks at stride 7 in place of 3.5", CROP, ("student.mask_level=1",)),
    ("a head of 128 channels in place of 256", CROP, ("student.width=128", "student.mask_width=128")),
    ("3 decoder layers in place of 9", CROP, ("student.layers=3",)),
    ("a crop of 512 x 512", (512, 512), ()),
    ("a crop of 448 x 448", (448, 448), ()),
)


def by_part(config: Config, size: Size) -> dict[str, int]:
    """FLOPs of one crop's prediction by the student: of its parts, and of a part's part after ": "."""
    with torch.device("meta"):
        model, images = build(config, "student").requires_grad_(False), torch.empty(1, 3, *size)
        with FlopCounterMode(display=False) as counter:
            model(images)
    counts, name = counter.get_flop_counts(), type(model).__name__
    of = {module: sum(operators.values()) for module, operators in counts.items()}
    finest = [flops for module, flops in of.items() if re.fullmatch(rf"{name}\.pixel_decoder\.\w+\.0", module)]
    return {
        "encoder": of[f"{name}.backbone"],
        "encoder: products of attention": counts[f"{name}.backbone"][torch.ops.aten.bmm],
        "DPT head": of[f"{name}.pixel_decoder"],
        "DPT head: its finest level": sum(finest),
        "mask decoder": of["Global"] - of[f"{name}.backbone"] - of[f"{name}.pixel_decoder"],
    }


def rows() -> list[tuple[str, str, str, str]]:
    """Rows of the table: name, GFLOPs, half of them (multiply-adds), millions of parameters."""

    def row(words: str, flops: int, params: int = 0) -> tuple[str, str, str, str]:
        return words, f"{flops / 1e9:.0f}", f"{flops / 2e9:.0f}", f"{params / 1e6:.1f}" if params else ""

    paper = load_config([], [], "paper")
    parts, cost = by_part(paper, CROP), model_cost(paper, "student", CROP)
    found = [row(f"**the preset, on a crop of {CROP[0]} x {CROP[1]}**", cost["flops"], cost["params"])]
    found += [row(words, flops) for words, flops in parts.items()]
    for words, size, settings in VARIANTS:
        cost = model_cost(load_config([], settings, "paper"), "student", size)
        found.append(row(words, cost["flops"], cost["params"]))
    fast = load_config([], [], "fast")
    cost = model_cost(fast, "student", fast.views.sides)
    return [*found, row(f"`--preset fast`, {cost['size'][0]} x {cost['size'][1]}", cost["flops"], cost["params"])]


def main() -> None:
    """Prints a Markdown table."""
    print(table(("student", "GFLOPs", "multiplications with their additions, G", "parameters, M"), rows()))


if __name__ == "__main__":
    main()
