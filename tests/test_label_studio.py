"""Label Studio: polygons, brush strokes, images, and messages on faulty exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sskd_fast.data.formats.label_studio import read_label_studio
from sskd_fast.data.formats.label_studio_brush import decode_brush
from sskd_fast.rle import MaskError
from tests.format_files import (
    assert_masks,
    box,
    brush,
    masks,
    picture,
    problems,
    region,
    ring,
    task,
    write_tasks,
)

# A 5 x 10 mask with a hole and a second part, as mask2rle of label-studio-sdk 2.1.2 encodes it.
CODE = [
    0, 0, 0, 200, 57, 27, 254, 43, 0, 194, 127, 248, 76, 2, 63, 251, 96, 17, 255, 225, 48, 12, 39, 255, 56, 4, 255, 248,
    124, 2, 127, 240,
]  # fmt: skip


def test_brush_strokes_are_those_of_label_studios_own_encoder() -> None:
    rows = ["0000000000", "0111110000", "0100010000", "0111110011", "0000000011"]
    opacity = decode_brush(CODE, 200).reshape(5, 10, 4)[..., 3]
    np.testing.assert_array_equal(opacity, [[255 * int(value) for value in row] for row in rows])
    single = "".join(f"{number:0{width}b}" for number, width in ((8, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)))
    single += "000111" + "".join(f"{value:08b}" for value in (1, 2, 3, 4, 5, 6, 7, 255)) + "0" * 5
    code = [int(single[at : at + 8], 2) for at in range(0, len(single), 8)]
    assert decode_brush(code, 8).tolist() == [1, 2, 3, 4, 5, 6, 7, 255]
    for wrong in (CODE[:-4], [300], ["a"], CODE[:5]):
        with pytest.raises(MaskError, match="whose code cannot be read"):
            decode_brush(wrong, 200)  # type: ignore[arg-type]
    longer = "".join(f"{number:0{width}b}" for number, width in ((8, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)))
    longer += f"1{1:02b}{8:04b}{255:08b}0"  # a run of nine values
    with pytest.raises(MaskError, match=r"a brush stroke whose code cannot be read; expected Label Studio's whole RLE"):
        decode_brush([int(longer[at : at + 8], 2) for at in range(0, len(longer), 8)], 8)
    with pytest.raises(MaskError, match="a brush stroke of 200 bytes; expected 400"):
        decode_brush(CODE, 400)


def test_label_studio_polygons_brushes_and_images(tmp_path: Path) -> None:
    points = {"points": [[25, 25], [50, 25], [50, 50], [25, 50]]}
    drawn = region("polygonlabels", "cat", points)
    apart = [
        {**region("polygon", "cat", points, id="p"), "value": points},
        region("labels", "cat", points, id="p"),
    ]
    tasks = [
        task(1, "/data/upload/3/0a1b2c3d-%C3%BC.png", [drawn, brush("dog", ring())]),
        task(
            2, "/data/local-files/?d=sub%2Fb.png", [*apart, {"id": "c", "type": "choices", "value": {"choices": ["x"]}}]
        ),
        task(3, "https://example.org/some/where/c.png?x=1", [], data={"image": "/some/c.png", "city": "Ulm"}),
        task(4, "/data/upload/3/later.png", [], annotations=[]),
        task(5, "/data/upload/3/skipped.png", [], annotations=[{"was_cancelled": True, "result": []}]),
    ]
    for name in ("ü.png", "sub/b.png", "c.png"):
        picture(tmp_path / "images" / name)
    content = read_label_studio(write_tasks(tmp_path / "a.json", tasks), tmp_path / "images")
    assert [image["file_name"] for image in content["images"]] == ["c.png", "sub/b.png", "ü.png"]
    assert content["images"][0]["city"] == "Ulm"
    square = box(12, 16, 24, 32)
    assert_masks(masks(content, "ü.png"), [("cat", square), ("dog", ring())])
    assert_masks(masks(content, "sub/b.png"), [("cat", square)])
    assert masks(content, "c.png") == []


def test_every_fault_of_label_studio_files_is_named_at_once(tmp_path: Path) -> None:
    rectangle = region("rectanglelabels", "cat", {"x": 1, "y": 1, "width": 5, "height": 5})
    square = {"points": [[25, 25], [50, 25], [50, 50]]}
    two = [{"id": 1, "result": []}, {"id": 2, "result": []}]
    tasks = [
        task(1, "a.png", [rectangle, region("polygonlabels", "cat", square, image_rotation=90)]),
        task(2, "b.png", [], annotations=two),
        task(3, "b.txt", []),
        task(4, "c.png", [region("polygonlabels", "cat", {"points": [[1, "a"], [2, 2], [3, 3]]})]),
        task(5, "d.png", [brush("cat", ring(), original_height=40)]),
        task(6, "e.png", [region("polygonlabels", "cat", square), brush("dog", ring(), original_height=40)]),
        task(7, "f.png", [{**region("polygon", "cat", square), "value": square}]),
    ]
    path = write_tasks(tmp_path / "a.json", tasks)
    write_tasks(tmp_path / "min.json", [{"image": "a.png", "label": []}])
    said = problems(read_label_studio, tmp_path, tmp_path)
    expected = [
        "task 1, region rectanglelabelscat (rectanglelabels): a region of type rectanglelabels; expected polygonlabels "
        "or brushlabels. Annotate masks: boxes alone cannot train",
        "task 1, region polygonlabelscat (polygonlabels): a region on an image turned by 90 degrees",
        "task 2: 2 annotations, 0 of them marked as ground truth; expected one annotation that counts",
        "task 3: 0 fields of data that name an image file",
        "task 4, region polygonlabelscat (polygonlabels): the points [[1, 'a'], [2, 2], [3, 3]]",
        "task 5, region brushlabelscat (brushlabels): a brush stroke of 12288 bytes; expected 10240",
        "task 6: regions on images of the sizes",
        "task 7, region polygoncat (polygon): not one label",
        "min.json: a JSON list; expected a list of tasks with data and annotations",
    ]
    assert all(str(path) in found for found in said[:-1])
    assert len(said) == len(expected) and all(text in found for text, found in zip(expected, said, strict=True)), said
    two[1]["ground_truth"] = True
    write_tasks(path, [task(2, "b.png", [], annotations=two)])
    picture(tmp_path / "b.png")
    assert [image["file_name"] for image in read_label_studio(path, tmp_path)["images"]] == ["b.png"]


SQUARE = {"points": [[25, 25], [50, 25], [50, 50], [25, 50]]}
CORNER = {"points": [[0, 0], [12.5, 0], [12.5, 50], [0, 50]]}
SQUARE_MASK, CORNER_MASK = box(12, 16, 24, 32), box(0, 0, 24, 8)


def read_regions(folder: Path, regions: list[Any]) -> dict[str, Any]:
    picture(folder / "a.png")
    return read_label_studio(write_tasks(folder / "a.json", [task(1, "a.png", regions)]), folder)


@pytest.mark.parametrize("absent", [{"id": None}, {"id": ""}, {}])
def test_label_studio_regions_without_an_id_are_objects_of_their_own(tmp_path: Path, absent: dict[str, Any]) -> None:
    drawn = [region("polygonlabels", "cat", SQUARE), region("polygonlabels", "dog", CORNER)]
    plain = [{key: value for key, value in shape.items() if key != "id"} | absent for shape in drawn]
    assert_masks(masks(read_regions(tmp_path, plain)), [("cat", SQUARE_MASK), ("dog", CORNER_MASK)])


def test_label_studio_shapes_that_share_an_id_keep_their_labels(tmp_path: Path) -> None:
    drawn = [region("polygonlabels", "cat", SQUARE, id="r"), region("polygonlabels", "dog", CORNER, id="r")]
    assert_masks(masks(read_regions(tmp_path, drawn)), [("cat", SQUARE_MASK), ("dog", CORNER_MASK)])
    unlabelled = {**region("polygon", "dog", CORNER, id="r"), "value": CORNER}
    (said,) = problems(read_regions, tmp_path, [drawn[0], unlabelled])
    assert said.startswith(f"{tmp_path / 'a.json'}: task 1, region r (polygon): not one label; expected one.")
    assert said.endswith("Shapes that share an id need a label each.")
    (said,) = problems(read_regions, tmp_path, [drawn[0], region("polygonlabels", "dog", SQUARE, id="r")])
    assert "task 1, region r (polygonlabels): not one label but cat, dog; expected one." in said


def test_label_studio_labels_may_come_before_their_shape_and_twice(tmp_path: Path) -> None:
    alone = {"id": "r", "type": "labels", "value": {"labels": ["cat"]}}
    shape = {**region("polygon", "cat", SQUARE, id="r", image_rotation="0"), "value": SQUARE}
    content = read_regions(tmp_path, [alone, shape, region("polygonlabels", "cat", SQUARE, id="r")])
    assert_masks(masks(content), [("cat", SQUARE_MASK)])


def test_label_studio_tasks_of_one_image_are_named(tmp_path: Path) -> None:
    drawn = [region("polygonlabels", "cat", SQUARE)]
    path = write_tasks(tmp_path / "a.json", [task(1, "a.png", drawn), task(2, "/data/upload/1/a.png", drawn)])
    picture(tmp_path / "a.png")
    (said,) = problems(read_label_studio, path, tmp_path)
    assert said == (
        f"{path}: task 2: it labels a.png, which {path}: task 1 labels too; expected one set of labels for an image. "
        "Remove one of them."
    )


def test_label_studio_tasks_that_are_left_out_are_counted(tmp_path: Path) -> None:
    left = [
        task(1, "b.png", [], annotations=[]),
        task(2, "c.png", [], annotations=[], predictions=[{"result": []}]),
        task(3, "d.png", [], annotations=[], predictions=[{"result": []}]),
        task(4, "e.png", [], annotations=[{"was_cancelled": True, "result": []}]),
    ]
    reasons = "1 skipped, 2 with predictions only, 1 without an annotation"
    picture(tmp_path / "a.png")
    path = write_tasks(tmp_path / "a.json", [*left, task(5, "a.png", [region("polygonlabels", "cat", SQUARE)])])
    content = read_label_studio(path, tmp_path)
    assert content["warnings"] == [f"{path}: 4 of 5 tasks are left out: {reasons}."]
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    (said,) = problems(read_label_studio, write_tasks(path, left), tmp_path)
    assert said.startswith(f"{path}: no task with an annotation ({reasons}); expected at least one. Annotate the tasks")
