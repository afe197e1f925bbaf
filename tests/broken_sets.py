"""Odd and broken data sets as real tools export them, each made by code, with the expected outcome."""

from __future__ import annotations

import codecs
import copy
import json
import shutil
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.coco_builder import CocoBuilder, encoded

HEIGHT, WIDTH = 40, 60
SQUARES = ([5, 5, 25, 5, 25, 25, 5, 25], [30, 10, 50, 10, 50, 30, 30, 30])
AREAS = [400.0] * 6
Edit = Callable[[CocoBuilder], None]


@dataclass(frozen=True)
class Broken:
    """A set that is sound but for `make`.

    cause: in words.  refused: a pattern of the error.  Else it is taken: warned: a pattern of a warning ("" for no
    warning); areas: of all masks in order; crowd: how many are crowd regions.
    """

    name: str
    cause: str
    make: Edit
    refused: str = ""
    warned: str = ""
    areas: tuple[float, ...] | None = None
    crowd: int = 0


def sound_set(folder: Path) -> CocoBuilder:
    """Three images of 40 x 60 pixels with two squares of 400 pixels each, of the classes a and b."""
    coco = CocoBuilder(folder, {1: "a", 2: "b"})
    for _ in range(3):
        image = coco.image((HEIGHT, WIDTH))
        for number, square in enumerate(SQUARES, 1):
            coco.instance(image, [list(square)], category_id=number)
    return coco


def written(coco: CocoBuilder, broken: Broken) -> Path:
    """The annotation file of a broken set, written."""
    broken.make(coco)
    return coco.file if coco.file.exists() else coco.write()


def field(key: str, value: Any, where: str = "annotations", every: bool = True) -> Edit:
    """Sets a field of all records, or of the first."""

    def make(coco: CocoBuilder) -> None:
        for record in coco.content[where][: None if every else 1]:
            record[key] = copy.deepcopy(value)

    return make


def mapped(change: Callable[[Any], Any], key: str = "segmentation", where: str = "annotations") -> Edit:
    """Changes a field of all records."""

    def make(coco: CocoBuilder) -> None:
        for record in coco.content[where]:
            record[key] = change(record[key])

    return make


def points(change: Callable[[float, float], tuple[float, float]]) -> Edit:
    """Changes every vertex of every polygon."""

    def move(polygons: list[list[float]]) -> list[list[float]]:
        return [[v for x, y in zip(p[::2], p[1::2], strict=True) for v in change(x, y)] for p in polygons]

    return mapped(move)


def pairs(flat: list[float]) -> list[list[float]]:
    return [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]


def ids_as_text(coco: CocoBuilder) -> None:
    for key, names in (("images", ["id"]), ("categories", ["id"]), ("annotations", ["id", "image_id", "category_id"])):
        for record in coco.content[key]:
            record.update({name: str(record[name]) for name in names})


def text_image_ids(coco: CocoBuilder) -> None:
    for record in coco.content["images"]:
        record["id"] = f"img_{record['id']}"
    mapped(lambda value: f"img_{value}", "image_id")(coco)


def colliding_ids(coco: CocoBuilder) -> None:
    coco.content["images"][1]["id"] = "01"


def raw(change: Callable[[str], bytes]) -> Edit:
    """Writes the file after a change of its text."""

    def make(coco: CocoBuilder) -> None:
        coco.file.write_bytes(change(json.dumps(coco.content)))

    return make


def renamed(change: Callable[[str], str], name: str = "") -> Edit:
    """File names as another tool writes them; name: of the first image's file."""

    def make(coco: CocoBuilder) -> None:
        if name:
            (coco.images / "1.png").rename(coco.images / name)
            coco.content["images"][0]["file_name"] = name
        mapped(change, "file_name", "images")(coco)

    return make


def nested_folder(coco: CocoBuilder) -> None:
    (coco.images / "images").mkdir()
    for path in coco.images.glob("*.png"):
        path.rename(coco.images / "images" / path.name)


def two_of_a_name(coco: CocoBuilder) -> None:
    for folder in ("first", "second"):
        (coco.images / folder).mkdir()
        shutil.copy(coco.images / "1.png", coco.images / folder)
    (coco.images / "1.png").unlink()


def two_names_one_file(coco: CocoBuilder) -> None:
    coco.content["images"][0]["file_name"] = "site1/1.png"
    coco.content["images"][1]["file_name"] = "site2/1.png"


def other_folder(coco: CocoBuilder) -> None:
    (coco.images / "val").mkdir()
    (coco.images / "1.png").rename(coco.images / "val" / "1.png")
    coco.content["images"][0]["file_name"] = "train/1.png"


def misspelt(coco: CocoBuilder) -> None:
    (coco.images / "1.png").rename(coco.images / "scan_01.png")
    coco.content["images"][0]["file_name"] = "scan01.png"


def orientation(coco: CocoBuilder) -> None:
    entry = struct.pack("<HHHII", 1, 0x0112, 2, 9, 26)
    with Image.open(coco.images / "1.png") as image:
        exif = b"II*\0" + struct.pack("<I", 8) + entry + struct.pack("<I", 0) + b"top-left\0"
        image.save(coco.images / "1.png", exif=exif)


def twice(coco: CocoBuilder) -> None:
    coco.content["annotations"] += copy.deepcopy(coco.content["annotations"])
    for number, annotation in enumerate(coco.content["annotations"], 1):
        annotation["id"] = number


def two_classes(coco: CocoBuilder) -> None:
    twice(coco)
    for annotation in coco.content["annotations"][6:]:
        annotation["category_id"] = 3 - annotation["category_id"]


def crowds(coco: CocoBuilder) -> None:
    for place in (0, 3):
        coco.content["annotations"][place]["iscrowd"] = 1


def without(key: str) -> Edit:
    """Takes a field out of all annotations."""

    def make(coco: CocoBuilder) -> None:
        for annotation in coco.content["annotations"]:
            annotation.pop(key)

    return make


def with_hole(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons with a ring inside of the first, half as large."""
    (outer,) = polygons
    x, y = (sum(values) / 4 for values in (outer[::2], outer[1::2]))
    return [outer, [(value + (x, y)[place % 2]) / 2 for place, value in enumerate(outer)]]


def mostly_empty(coco: CocoBuilder) -> None:
    for _ in range(7):
        coco.image((HEIGHT, WIDTH))


def same_image(coco: CocoBuilder) -> None:
    shutil.copy(coco.images / "1.png", coco.images / "3.png")


def same_pixels(coco: CocoBuilder) -> None:
    with Image.open(coco.images / "1.png") as image:
        image.save(coco.images / "3.png", compress_level=1)


def image_file(content: bytes) -> Edit:
    """Other bytes in place of the first image."""

    def make(coco: CocoBuilder) -> None:
        (coco.images / "1.png").write_bytes(content)

    return make


def vast(coco: CocoBuilder) -> None:
    """An image whose header claims 60000 x 60000 pixels."""
    with Image.open(coco.images / "1.png") as image:
        image.save(coco.images / "1.bmp")
    content = bytearray((coco.images / "1.bmp").read_bytes())
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    (coco.images / "1.png").write_bytes(content)
    (coco.images / "1.bmp").unlink()


def of_detectron2(text: str) -> bytes:
    images = [{"file_name": "1.png", "height": HEIGHT, "width": WIDTH, "image_id": 1, "annotations": []}]
    return json.dumps(images).encode()


def of_via(text: str) -> bytes:
    image = {"filename": "1.png", "size": 7, "regions": [], "file_attributes": {}}
    return json.dumps({"_via_settings": {}, "_via_img_metadata": {"1.png7": image}}).encode()


def no_file(coco: CocoBuilder) -> None:
    coco.content["images"][1]["file_name"] = "x" * 400 + ".png"


def rle(value: Any = None, **change: Any) -> Edit:
    """Replaces all polygons by RLE of the first square with some fields changed; "list": in a list with its polygon."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[5:25, 5:25] = True
    if value == "list":
        return field("segmentation", [encoded(mask)], every=False)
    return field("segmentation", {**encoded(mask), **change})


def boxed(change: Callable[[list[float]], Any]) -> Edit:
    """Images of 60 x 60 pixels, boxes about the squares, and `change` of each square's polygon in its place."""

    def make(coco: CocoBuilder) -> None:
        for image in coco.content["images"]:
            noise = np.random.default_rng(image["id"]).integers(0, 256, (WIDTH, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(noise).save(coco.images / image["file_name"])
            image["height"] = WIDTH
        for annotation in coco.content["annotations"]:
            (flat,) = annotation["segmentation"]
            flat[1::2] = [value + 25 for value in flat[1::2]]
            annotation["bbox"] = [min(flat[::2]), min(flat[1::2]), 20, 20]
            annotation["segmentation"] = change(flat)

    return make


def along_rows(flat: list[float]) -> dict[str, Any]:
    """RLE of a square whose runs go along the rows."""
    mask = np.zeros((WIDTH, WIDTH), dtype=np.bool_)
    mask[int(min(flat[1::2])) : int(max(flat[1::2])), int(min(flat[::2])) : int(max(flat[::2]))] = True
    return encoded(mask.T)


def swapped(flat: list[float]) -> list[list[float]]:
    return [[v for x, y in pairs(flat) for v in (y, x)]]


def with_visibility(flat: list[float]) -> list[list[float]]:
    return [[v for x, y in pairs(flat) for v in (x, y, 2)]]


def counts(*runs: float) -> Edit:
    return field("segmentation", {"size": [HEIGHT, WIDTH], "counts": list(runs)})


def ring() -> list[list[float]]:
    """A polygon whose outline is far longer than any object's."""
    return [[value for n in range(70_000) for value in ((0, 0) if n % 2 else (WIDTH, HEIGHT))]]


_CROWD = "`iscrowd` is .*; expected 0 or 1"
_FAR = "state an area or a box far from their mask"
_FOUND = "image files have other names than the labels say"
_NO_SIZE = "a height of .* and a width of .*; expected pixels"

BROKEN_SETS = (
    Broken("sound", "nothing", lambda coco: None),
    # Scalars that are plainly meant.
    Broken("crowd-false", "`iscrowd` is false", field("iscrowd", False)),
    Broken("crowd-text-0", '`iscrowd` is "0"', field("iscrowd", "0")),
    Broken("crowd-text-false", '`iscrowd` is "false"', field("iscrowd", "False")),
    Broken("crowd-null", "`iscrowd` is null", field("iscrowd", None)),
    Broken("crowd-true", "`iscrowd` is true", field("iscrowd", True, every=False), crowd=1),
    Broken("crowd-text-1", '`iscrowd` is "1"', field("iscrowd", "1", every=False), crowd=1),
    Broken("ids-text", "ids are integers as text", ids_as_text),
    Broken("ids-float", "ids are 1.0, 2.0, as pandas writes them", mapped(float, "image_id")),
    Broken("size-text", "height and width are text", field("height", "40", "images")),
    Broken("size-null", "height and width are null", field("height", None, "images")),
    Broken("size-missing", "no height", mapped(lambda _: 0, "height", "images")),
    # Scalars that are not.
    Broken("crowd-maybe", "`iscrowd` is no flag", field("iscrowd", "maybe"), refused=_CROWD),
    Broken("crowd-2", "`iscrowd` is 2", field("iscrowd", 2), refused=_CROWD),
    Broken("crowd-list", "`iscrowd` is a list", field("iscrowd", [0]), refused=_CROWD),
    Broken("ids-words", "image ids are words", text_image_ids, refused="`id` is the text 'img_1'; expected an integer"),
    Broken("ids-collide", "two ids become the same", colliding_ids, refused="its id is used by 1.png and 2.png"),
    Broken("id-bool", "an id is true", field("id", True, "images", False), refused="`id` is true; expected an integer"),
    Broken("id-huge", "an id of 400 digits", field("id", 10**400, "images", False), refused="a number of more than 53"),
    Broken("id-fraction", "an id is 1.5", field("id", 1.5, "images", False),
           refused="`id` is 1.5; expected an integer"),
    Broken("id-null", "an id is null", field("id", None, "images", False), refused="`id` is null; expected an integer"),
    Broken("annotation-id-list", "an id is a list", field("id", [1]), refused="`id` is a list; expected an integer"),
    Broken("image-id-list", "`image_id` is a list", field("image_id", [1]), refused="`image_id` is a list"),
    Broken("category-id-nan", "`category_id` is NaN", field("category_id", float("nan")),
           refused="category_id` is NaN"),
    Broken("category-unknown", "a category that is not listed", field("category_id", 7), refused="it names category 7"),
    Broken("category-missing", "no `category_id`", without("category_id"), refused="no `category_id`; expected one of"),
    Broken("image-id-missing", "no `image_id`", without("image_id"), refused="no `image_id`; expected the id of one"),
    Broken("category-null", "`category_id` is null", field("category_id", None), refused="`category_id` is null; exp"),
    Broken("ids-missing", "annotations have no ids", without("id"), warned=r"6 annotation ids .* \(6 missing\)"),
    Broken("size-unit", 'width is "128px"', field("width", "128px", "images"), refused=_NO_SIZE),
    Broken("size-nan", "height is NaN", field("height", float("nan"), "images"), refused=_NO_SIZE),
    Broken("size-list", "height is a list", field("height", [40], "images"), refused=_NO_SIZE),
    Broken("size-negative", "height is negative", field("height", -40, "images"), refused=_NO_SIZE),
    Broken("size-huge", "a height of 10^12", field("height", 10**12, "images"), refused=_NO_SIZE),
    Broken("name-number", "a file name is a number", field("file_name", 7, "images"), refused="`file_name` is 7"),
    Broken("name-null", "a file name is null", field("file_name", None, "images"), refused="`file_name` is null"),
    Broken("name-signs", "a file name of half a character", field("file_name", "\ud800", "images"),
           refused="a text of valid characters"),
    Broken("category-name-null", "a class without a name", field("name", None, "categories"), refused="`name` is null"),
    Broken("category-number", "a category is a number", lambda coco: coco.content["categories"].append(7),
           refused=r"categories\[2\]: the record 7; expected an object with its fields"),
    # Stated areas and boxes.
    Broken("area-1", "the area is 1.0", field("area", 1.0), warned=_FAR),
    Broken("area-share", "the area is a share", field("area", 0.03), warned=_FAR),
    Broken("area-nan", "the area is NaN", field("area", float("nan")), warned=_FAR),
    Broken("area-negative", "the area is negative", field("area", -5), warned=_FAR),
    Broken("area-text", "the area is text", field("area", "large"), warned=_FAR),
    Broken("area-list", "the area is a list", field("area", [400]), warned=_FAR),
    Broken("box-corners", "the box is two corners", field("bbox", [30, 10, 50, 30]), warned=_FAR),
    Broken("box-text", "the box is text", field("bbox", "5 5 20 20"), warned=_FAR),
    Broken("square-swapped", "x and y swapped, in square images", boxed(swapped),
           refused="boxes are far from their masks, and 6 fit them with x and y swapped"),
    Broken("rle-rows", "RLE along the rows", boxed(along_rows),
           refused="fit them with their runs read along the rows"),
    Broken("visibility", "points as x, y and visibility", boxed(with_visibility),
           warned="either these boxes or the masks", areas=(625.0, 759.0) * 3),
    # Segmentations in other forms.
    Broken("points-pairs", "polygons as pairs, of OpenCV", mapped(lambda polygons: pairs(polygons[0]))),
    Broken("points-deep", "polygons one list too deep", mapped(lambda polygons: [polygons])),
    Broken("points-contours", "contours of OpenCV", mapped(lambda polygons: [[[pair] for pair in pairs(polygons[0])]])),
    Broken("points-flat", "one flat list", mapped(lambda polygons: polygons[0])),
    Broken("points-objects", "points as objects", mapped(lambda p: [{"x": x, "y": y} for x, y in pairs(p[0])])),
    Broken("rle-in-list", "RLE in a list", rle("list")),
    Broken("polygon-via", "VIA's polygons", field("segmentation", {"all_points_x": [1], "all_points_y": [1]}),
           refused="a polygon of VIA"),
    Broken("polygon-text", "the segmentation is text", mapped(json.dumps), refused="a segmentation written as text"),
    Broken("rle-brush", "Label Studio's strokes", field("segmentation", {"format": "rle", "rle": [0]}),
           refused="a brush stroke of Label Studio"),
    Broken("rle-kaggle", "run lengths of Kaggle", field("segmentation", "1 5 20 5"), refused="run lengths as text"),
    Broken("box-only", "a box as segmentation", field("segmentation", [[5, 5, 20, 20]]), refused="polygon of 2 points"),
    Broken("geojson", "GeoJSON", mapped(lambda p: {"type": "Polygon", "coordinates": [pairs(p[0])]}),
           refused="a geometry of GeoJSON .* outer rings"),
    Broken("supervisely", "Supervisely", mapped(lambda p: {"points": {"exterior": pairs(p[0]), "interior": []}}),
           refused="an object of Supervisely"),
    Broken("polygon-object", "polygons in an object", mapped(lambda polygons: {"polygon": polygons[0]}),
           refused='with the key "polygon", as V7'),
    Broken("object", "another object", field("segmentation", {"mask": "1.png"}), refused="object with the keys mask"),
    Broken("mixed", "polygons and RLE in one list", mapped(lambda p: [*p, {"size": [40, 60], "counts": [2400]}]),
           refused="RLE in a list of polygons; .* as one RLE"),
    Broken("polygon-null", "null for a polygon", field("segmentation", [None]), refused=r"not a number \(null\)"),
    Broken("polygon-and-null", "null beside a polygon", mapped(lambda p: [*p, None]),
           refused="null in a list of polygons"),
    Broken("polygon-odd", "a polygon without its last number", mapped(lambda p: [p[0][:7]]),
           refused="a polygon of 7 numbers"),
    Broken("rings", "holes as rings", mapped(with_hole), warned="6 of 6 annotations have a polygon inside of another"),
    Broken("none", "no segmentation", field("segmentation", None), refused="a box without a mask"),
    Broken("rle-without-size", "RLE without a size", mapped(lambda _: {"counts": [5, 2395]}),
           refused=r"RLE without a size; .* Add \"size\": \[height, width\]"),
    Broken("rle-empty", "RLE without a run", rle(counts=""), refused="RLE counts that are not valid run lengths"),
    Broken("labelme-shape", "shapes of LabelMe",
           mapped(lambda rings: {"points": pairs(rings[0]), "shape_type": "polygon"}),
           refused="a shape of LabelMe; .*--format labelme"),
    Broken("box", "a box as an object", field("segmentation", {"x": 5, "y": 5, "width": 20, "height": 20}),
           refused="a box; expected polygons or RLE .* Annotate"),
    Broken("rle-size", "RLE of another size", rle(size=[80, 120]), refused=r"RLE of size \[80, 120\]"),
    Broken("rle-swapped", "the size of RLE is swapped", rle(size=[60, 40]), refused="Write the height first"),
    Broken("rle-short", "RLE that covers too little", counts(100, 100), refused="RLE counts that cover 200 pixels"),
    Broken("rle-negative", "a negative run", counts(-1, 2401), refused="not valid run lengths"),
    Broken("rle-huge", "a run of 10^30", counts(10**30), refused="not valid run lengths"),
    # Numbers that C code must not see.
    Broken("vertex-far", "a vertex at 4e8", points(lambda x, y: (4e8 if x == 25 else x, y)), refused="coordinate 4e"),
    Broken("vertex-inf", "an infinite vertex", points(lambda x, y: (float("inf"), y)),
           refused="value that is not a number"),
    Broken("vertex-text", "a vertex is text", points(lambda x, y: (str(x), y)), refused="value that is not a number"),
    Broken("outline", "an endless outline", lambda coco: field("segmentation", ring(), every=False)(coco),
           refused="an outline of"),
    # Masks that miss their images.
    Broken("shares", "coordinates from 0 to 1", points(lambda x, y: (x / WIDTH, y / HEIGHT)),
           refused="6 of 6 masks .* coordinates from 0 to 1"),
    Broken("larger", "coordinates of larger images", points(lambda x, y: (4 * x, 4 * y)), refused="times as large"),
    Broken("swapped", "x and y swapped", points(lambda x, y: (y + 20, x + 5)), refused="x and y swapped"),
    Broken("line", "polygons without an area", points(lambda x, y: (x, x)), refused="points of each polygon lie on a"),
    Broken("line-upright", "upright lines", points(lambda x, y: (5, y)), refused="polygon lie on a line"),
    # Files.
    Broken("keys-twice", "two lists of annotations",
           raw(lambda text: text.replace('"annotations": [', '"annotations": [], "annotations": [').encode()),
           refused='2 lists "annotations"; expected one of each'),
    Broken("keys-utf-16", "two lists of images, in UTF-16",
           raw(lambda text: text.replace('"images": [', '"images": [], "images": [').encode("utf-16")),
           refused='2 lists "images"; expected one of each'),
    Broken("keys-below", "names of the lists below the top", field("annotations", "images", "images")),
    Broken("bom-8", "a byte-order mark", raw(lambda text: codecs.BOM_UTF8 + text.encode())),
    Broken("utf-16", "UTF-16, of PowerShell", raw(lambda text: text.encode("utf-16"))),
    Broken("digits", "a number of 5000 digits",
           raw(lambda text: text.replace('"id": 1', '"id": 1' + "0" * 5000).encode()),
           refused="the file is no valid JSON"),
    Broken("deep", "lists in lists in lists", raw(lambda text: b"[" * 100_000), refused="the file is no valid JSON"),
    Broken("list", "the object in a list", raw(lambda text: f"[{text}]".encode()),
           refused="This looks like a COCO object in a list: take the object out of the list"),
    Broken("detectron2", "Detectron2's list", raw(of_detectron2), refused="Detectron2's list .*convert_to_coco_json"),
    Broken("via", "a project of VIA", raw(of_via), refused="a project of VIA: export its annotations"),
    Broken("image-empty", "an empty image file", image_file(b""), refused=r"cannot be read \(it is empty\)"),
    Broken("image-html", "an HTML page for an image", image_file(b"<!doctype html><title>404</title>"),
           refused=r"cannot be read \(it is an HTML page\)"),
    Broken("image-lfs", "a pointer of Git LFS", image_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
           refused=r"\(it is a pointer of Git LFS\).*git lfs pull"),
    Broken("image-text", "text for an image", image_file(b"no image"), refused=r"\(its content is of no known image"),
    Broken("image-vast", "a header of 60000 x 60000 pixels", vast, refused=r"Cut the image into tiles"),
    Broken("exif-text", "the EXIF orientation is text", orientation),
    Broken("backslashes", "Windows' separators", renamed(lambda name: f"images\\{name}"), warned=_FOUND),
    Broken("escapes", "%20 for a space", renamed(lambda name: name.replace(" ", "%20"), "a b.png"), warned=_FOUND),
    Broken("upload", "Label Studio's upload prefix", renamed(lambda name: f"/data/upload/3/0a1b2c3d-{name}"),
           warned=_FOUND),
    Broken("unicode", "another Unicode form", renamed(lambda name: unicodedata.normalize("NFD", name), "Zürich.png"),
           warned=_FOUND),
    Broken("doubled", "a folder that is there once", renamed(lambda name: f"images/images/{name}"), warned=_FOUND),
    Broken("nested", "a folder that is there twice", nested_folder, warned=_FOUND),
    Broken("case", "upper case", renamed(str.upper), warned=_FOUND),
    Broken("two-of-a-name", "two files fit", two_of_a_name, refused="first/1.png, second/1.png all fit"),
    Broken("two-names", "two names, one file", two_names_one_file, refused="stands for another image too"),
    Broken("other-folder", "a file of another folder", other_folder, refused="similar file there is val/1.png"),
    Broken("misspelt", "a misspelt name", misspelt, refused="The most similar file there is scan_01.png"),
    Broken("name-long", "a name of 400 letters", no_file, refused="the image file does not exist"),
    # The set as a whole.
    Broken("twice", "every object twice", twice, warned="6 of 12 objects repeat another one", areas=(400.0,) * 12),
    Broken("two-classes", "every object twice, under two classes", two_classes,
           warned="6 of 12 objects have the mask of an object of another class", areas=(400.0,) * 12),
    Broken("crowds", "single objects as crowd regions", crowds, warned=r"2 of 6 objects \(33%\) are crowd regions",
           crowd=2),
    Broken("mostly-empty", "most images without objects", mostly_empty, warned="7 of 10 images have no object"),
    Broken("same-pixels", "an image twice, in other bytes", same_pixels,
           warned="1 of 3 images show the pixels of another one in a file of other bytes"),
    Broken("same-image", "an image twice", same_image, warned="1 of 3 images have the content of another one"),
)  # fmt: skip
