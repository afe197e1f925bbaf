"""The findings of a GPU call as Markdown tables, one function for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.gpu_steps import STEPS
from benchmarks.timed_steps import PARTS

_CEILINGS = {
    "copy_gb_s": "GB/s, copy",
    "l2_gb_s": "GB/s, copy in L2",
    "bf16_tflop_s": "TFLOP/s, bfloat16",
    "tf32_tflop_s": "TFLOP/s, TF32",
    "float32_tflop_s": "TFLOP/s, float32",
}
_LAUNCHES = {"launch_us": "us a launch, eager", "launch_in_graph_us": "us a launch, in a graph"}
_MEASURES = ["ms (fastest to slowest)", "ms in a graph", "us of kernels", "launches"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; None as a dash."""
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    lines += [" | ".join("-" if cell is None else str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def outcomes(found: dict[str, dict[str, Any]]) -> str:
    """The outcome of every step."""
    rows = []
    for step in STEPS:
        content = found.get(step.name)
        outcome = "not run" if content is None else content["status"]
        if content and content.get("left_out"):
            outcome += f" (left out for size: {', '.join(content['left_out'])})"
        rows.append([step.name, outcome, content["seconds"] if content else None, step.shows])
    return table(["step", "outcome", "seconds", "what it shows"], rows)


def ceilings(found: dict[str, Any]) -> str:
    """Ceilings with their spread."""
    rates = {text: found[name] for name, text in _CEILINGS.items() if name in found}
    rows = [[text, f"{rate['median']} ({rate['least']} to {rate['most']})"] for text, rate in rates.items()]
    rows += [[text, str(found[name])] for name, text in _LAUNCHES.items() if name in found]
    return table(["ceiling", "median (least to most)"], rows)


def tests(found: dict[str, Any]) -> str:
    """Outcomes of the tests, and the tests that did not pass."""
    counts = ", ".join(f"{count} {name}" for name, count in found.get("outcomes", {}).items())
    failed = [line for line in found.get("summaries", []) if not line.startswith("SKIPPED")]
    return "\n".join(
        [f"Tests of the operators: {counts or 'none ran'}.", *(f"- `{line[:200]}`" for line in failed[:20])]
    )


def checks(found: dict[str, Any]) -> str:
    """Findings of the sanitizers."""
    rows = [[row["check"], row["outcome"], row["seconds"]] for row in found.get("checks", [])]
    return table(["check", "outcome", "seconds"], rows) if rows else ""


def times(found: dict[str, Any]) -> str:
    """A step of every contender, and every operator by backend."""
    whole = [
        [r["case"], r["dtype"], r["contender"], *_measured(r), r.get("peak_mb")]
        for r in sorted(found.get("steps", []), key=lambda r: (r["case"], r["dtype"]))
    ]
    names = ("operator", "mode", "case", "dtype", "contender")
    single = [
        [*(r.get(name, "-") for name in names), *_measured(r), r.get("of_roofline"), r.get("bound")]
        for r in sorted(found.get("operators", []), key=lambda r: [r.get(name, "") for name in names])
    ]
    return "\n\n".join(
        [
            "A step: fuse, sample and contrast, forward and backward; every pixel an anchor.",
            table(["case", "dtype", "", *_MEASURES, "extra MB"], whole),
            "Each operator, beside the roofline of benchmarks/cost_model.py with the ceilings above.",
            table(["operator", "pass", "case", "dtype", "", *_MEASURES, "times the roofline", "bound by"], single),
        ]
    )


def _measured(row: dict[str, Any]) -> list[object]:
    """Time with its range (or the reason why there is none), time in a graph, time of the kernels, and their number."""
    kernels = row.get("kernels", {})
    time = str(row.get("not_run") or row.get("failed")).replace("|", "/")
    if "ms" in row:
        time = f"{row['ms']} ({row['fastest']} to {row['slowest']})"
    return [time, row.get("graph_ms"), kernels.get("us"), kernels.get("launches")]


def training(found: dict[str, Any]) -> str:
    """A training step by its parts."""
    variants = {name: value for name, value in found.items() if isinstance(value, dict)}
    if not variants:
        return ""
    first = next(iter(variants.values()))
    rows = [
        [name, v["ms"], *(v.get("ms_by_part", {}).get(part) for part in PARTS), v.get("waits_a_step"), v["peak_mb"]]
        for name, v in variants.items()
    ]
    text = (
        f"A training step of the student, {first['parameters'] / 1e6:.1f} M parameters, {first['precision']}, "
        f"{first['images'][0]} + {first['images'][1]} crops of {first['crop']} pixels. The parts are of a process that "
        "waits for every launch."
    )
    return f"{text}\n\n" + table(["", "ms", *PARTS, "waits for the host", "peak MB"], rows)


def counters(found: dict[str, Any]) -> str:
    """Counters that Nsight Compute read, by kernel."""
    rows = found.get("kernels", [])
    if not rows:
        return ""
    names = [name for name in rows[0] if name not in ("backend", "kernel")]
    cells = [[f"`{row['kernel']}`", row["backend"], *(row[name] for name in names)] for row in rows]
    return "Hardware counters at 8x703:\n\n" + table(["kernel", "backend", *names], cells)


# In the order of the page; the build has its line in the table of outcomes.
SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": ceilings,
    "correct": tests,
    "sanitize": checks,
    "times": times,
    "training": training,
    "ncu": counters,
}
