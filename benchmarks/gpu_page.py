"""`python -m benchmarks.gpu_page DIR`: a GPU call's findings -> docs/gpu.md, between its marks, and backend_costs.json.

The page has the card, driver, versions, date and sources, the outcomes of the steps, and the figures. Times of the
operators on both backends go to sskd_fast/backend_costs.json; `backend="auto"` chooses by them on such a GPU.
A dry run has no figures of a GPU: it is written only to a page named by `--page`, to try the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_call import checked_out, source_digest
from benchmarks.gpu_steps import STEPS
from benchmarks.gpu_steps.record import ROOT
from benchmarks.gpu_tables import SECTIONS, outcomes
from benchmarks.marked import write_part
from sskd_fast import _backend_costs

COMMAND = "python -m benchmarks.gpu_page"
_CASE, _DTYPE = "8x703", "float32"  # the case by which "auto" chooses
Found = dict[str, dict[str, Any]]


def read(folder: Path) -> Found:
    """The steps' files by name. Raises ValueError if there are none, or if they mix machines or sources."""
    found: Found = {}
    for step in STEPS:
        file = folder / f"{step.name}.json"
        if file.exists():
            found[step.name] = json.loads(file.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{folder}: found no file of a step, expected what benchmarks.gpu_call --out wrote")
    for key in ("card", "sources"):
        values = {str(content["place"].get(key)) for content in found.values()}
        if len(values) > 1:
            listed = ", ".join(sorted(values))
            raise ValueError(f"{folder}: the files differ in {key}: {listed}; give the folder of one call")
    return found


def page(found: Found) -> str:
    """The whole generated part of docs/gpu.md."""
    texts = [origin(next(iter(found.values()))["place"]), outcomes(found)]
    texts += [part(found[name]["found"]) for name, part in SECTIONS.items() if found.get(name, {}).get("found")]
    return "\n\n".join(text for text in texts if text)


def origin(place: dict[str, Any]) -> str:
    """A sentence with card, driver, versions, date and sources."""
    commit = place["commit"]
    if not commit and place["sources"] == source_digest():  # the sources were copied without their git history
        commit = checked_out()
    card = place.get("card", "no GPU (a dry run on a CPU)")
    driver = (place.get("driver") or ["none"])[0]
    versions = ", ".join(f"{name} {place[name]}" for name in ("python", "torch", "triton", "cuda") if place.get(name))
    sources = f"commit {commit or 'unknown'}, sources {place['sources']}"
    return f"Measured on {card}, driver {driver}, {place['date']}; {versions}; {sources}."


def measured_costs(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Operator -> backend -> milliseconds of all passes; operators that lack a time are left out."""
    sums: dict[str, dict[str, float]] = {}
    missing: set[str] = set()
    for row in found.get("operators", []):
        if (row["case"], row["dtype"]) != (_CASE, _DTYPE) or "operator" not in row:
            continue
        of_operator = sums.setdefault(row["operator"], {})
        if "ms" in row:
            of_operator[row["contender"]] = of_operator.get(row["contender"], 0.0) + row["ms"]
        else:
            missing.add(row["operator"])
    wanted = set(_backend_costs.BACKENDS)
    return {name: times for name, times in sums.items() if set(times) == wanted and name not in missing}


def write_costs(found: Found, file: Path) -> bool:
    """Adds the measured times to the file by which "auto" chooses. Returns True if there were any.

    Raises ValueError if they would break the file.
    """
    place = found["times"]["place"] if "times" in found else {}
    costs = measured_costs(found["times"]["found"]) if "capability" in place else {}
    if not costs:
        return False
    content = json.loads(file.read_text(encoding="utf-8"))
    source = (
        f"{place['card']}, {place['date']}, torch {place['torch']}, Triton {place.get('triton', 'unknown')}: {COMMAND}"
    )
    content["measured"][place["capability"]] = {"source": source, **costs}
    problem = _backend_costs.problem_of(content)
    if problem is not None:
        raise ValueError(f"{file}: {problem}")
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the costs, and prints the files written."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder written by benchmarks.gpu_call --out")
    parser.add_argument("--page", type=Path, help="page to update (default: docs/gpu.md)")
    options = parser.parse_args(argv)
    try:
        found = read(options.folder)
        dry = any(content["dry"] for content in found.values())
        if dry and options.page is None:
            raise ValueError(f"{options.folder}: a dry run, which has no figures of a GPU; --page FILE tries the page")
        docs: Path = options.page or ROOT / "docs" / "gpu.md"
        write_part(docs, COMMAND, page(found))
        print(f"wrote {docs}")
        if not dry and write_costs(found, _backend_costs.FILE):
            print(f"wrote {_backend_costs.FILE}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
