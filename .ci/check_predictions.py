"""Checks the output of the README's predict command: `python .ci/check_predictions.py FOLDER RUN`.

Instances with a score of at least 0.5 must equal the run's own validation predictions, and each image needs a picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def by_file(images: list[dict[str, Any]], results: list[dict[str, Any]]) -> dict[str, list[tuple[Any, ...]]]:
    """File name of an image -> its instances with a score of at least 0.5."""
    names = {image["id"]: Path(image["file_name"]).name for image in images}
    found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in names.values()}
    for result in results:
        if result["score"] >= 0.5:
            instance = (result["category_id"], result["score"], result["segmentation"]["counts"])
            found[names[result["image_id"]]].append(instance)
    return {name: sorted(instances) for name, instances in found.items()}


def main() -> int:
    folder, run = map(Path, sys.argv[1:3])
    predicted = json.loads((folder / "predictions.json").read_text())
    truth = json.loads((run / "ground_truth.json").read_text())
    own = json.loads((run / "predictions" / "refined_student.json").read_text())
    found, expected = by_file(predicted["images"], predicted["annotations"]), by_file(truth["images"], own)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    pictures = {path.name for path in (folder / "overlays").iterdir()}
    without = [name for name in expected if Path(name).with_suffix(".png").name not in pictures]
    for name in wrong:
        print(f"{folder}: {name}: found other instances than the run's own validation", file=sys.stderr)
    for name in without:
        print(f"{folder}: {name} has no picture in overlays/", file=sys.stderr)
    if not wrong and not without:
        print(f"{folder}: {sum(map(len, found.values()))} instances in {len(found)} images, those of the run itself")
    return 1 if wrong or without else 0


if __name__ == "__main__":
    sys.exit(main())
