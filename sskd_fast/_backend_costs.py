"""Cost of each operator by GPU backend, from backend_costs.json: measured times if there are any, else counts.

The file: {"measured": {compute capability: {"source": text, operator: {backend: milliseconds}}},
"counted": {"source": text, operator: {backend: warp instructions an anchor}}}. Each cost is forward plus backward.
An operator has an amount for each of its backends.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().with_name("backend_costs.json")
OPERATORS = ("score_fusion", "negative_sampling", "hardest_negatives", "pixel_contrast", "expected_pixel_contrast")
BACKENDS = ("triton", "cuda")
# In CUDA C++ score fusion took as many instructions as in Triton, and the expected form 14 times as many.
_ONE_LANGUAGE = dict.fromkeys(("score_fusion", "expected_pixel_contrast"), ("triton",))
_ERROR = 1.25  # relative error of counts, which assume that every branch is executed


def backends_of(operator: str) -> tuple[str, ...]:
    """The backends for GPUs that implement an operator, Triton first."""
    return _ONE_LANGUAGE.get(operator, BACKENDS)


@dataclass(frozen=True)
class Cost:
    """Cost of one operator by backend; lower is faster.

    source: origin of the amounts; unit: their unit; error: ratio up to which two amounts count as equal, 1 for
    measured ones.
    """

    amounts: dict[str, float]
    source: str
    unit: str
    error: float = 1.0

    def close(self) -> bool:
        """True if the amounts are too close to tell apart."""
        return max(self.amounts.values()) < self.error * min(self.amounts.values())

    def __str__(self) -> str:
        ordered = sorted(self.amounts.items(), key=lambda item: item[1])
        listed = ", ".join(f"{name} {round(amount) if amount >= 100 else f'{amount:.3g}'}" for name, amount in ordered)
        return f"{self.source}: {listed} {self.unit}"


def cost(operator: str, capability: str | None, file: Path = FILE) -> Cost | None:
    """The costs of an operator on a GPU of a compute capability such as "9.0".

    Measured on a GPU of that capability, else counted, else None. Raises ValueError for a broken file.
    """
    content = read(file)
    times = content["measured"].get(capability, {})
    if operator in times:
        return Cost(times[operator], f"measured ({times['source']})", "ms")
    counts = content["counted"]
    if operator in counts:
        return Cost(counts[operator], "counted", "warp instructions an anchor or pixel", _ERROR)
    return None


@functools.cache
def read(file: Path = FILE) -> dict[str, Any]:
    """The file's content. Raises ValueError naming the file and the entry if it does not have the format above."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(file, f"cannot be read ({error})") from error
    problem = problem_of(content)
    if problem is not None:
        raise _broken(file, problem)
    return content


def problem_of(content: Any) -> str | None:
    """A description of the first fault in the content of such a file; None if it is valid."""
    if not isinstance(content, dict) or set(content) != {"measured", "counted"}:
        return f"found {_named(content)}, expected an object of 'measured' and 'counted'"
    if not isinstance(content["measured"], dict):
        return f"measured: found {_named(content['measured'])}, expected an object by compute capability"
    parts = {f"measured.{key}": part for key, part in content["measured"].items()} | {"counted": content["counted"]}
    return next((problem for name, part in parts.items() if (problem := _problem_of_part(name, part))), None)


def _problem_of_part(name: str, part: Any) -> str | None:
    if not isinstance(part, dict) or not isinstance(part.get("source"), str):
        return f"{name}: found {_named(part)}, expected an object with a text 'source'"
    for operator, amounts in part.items():
        if operator == "source":
            continue
        if operator not in OPERATORS:
            return f"{name}.{operator}: unknown, expected one of {', '.join(OPERATORS)}"
        backends = backends_of(operator)
        known = isinstance(amounts, dict) and set(amounts) == set(backends)
        if not known or not all(_positive(amount) for amount in amounts.values()):
            wanted = " and ".join(backends)
            return f"{name}.{operator}: found {_named(amounts)}, expected a positive number for each of {wanted}"
    return None


def _positive(amount: Any) -> bool:
    return isinstance(amount, (int, float)) and not isinstance(amount, bool) and 0 < amount < math.inf


def _named(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _broken(file: Path, problem: str) -> ValueError:
    way_out = "reinstall the package, or recount the instructions (python -m benchmarks.instruction_counts --json FILE)"
    return ValueError(f"{file}: {problem}; {way_out}")
