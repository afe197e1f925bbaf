"""Fixtures of all tests: real data where they are present, and small COCO data sets drawn on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

# Tests side by side share the processors, and so do the processes they start. PyTorch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

from sskd_fast import _build, _env, _native

DATA_ROOT = Path(os.environ.get("SSKD_FAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set by its name; skips the test where it is absent."""

    def folder(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.is_dir():
            pytest.skip(f"data set {name} is not in {DATA_ROOT}; set SSKD_FAST_DATA to the folder that holds it")
        return path

    return folder


@pytest.fixture(params=["reference", "cpu"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with every backend of the operators in place of "auto"."""
    monkeypatch.setenv("SSKD_FAST_BACKEND", request.param)
    name: str = request.param
    return name


# Threads of the emulated blocks forward, reversed, and shuffled by a seed.
THREAD_ORDERS = (0, 1, 7)


@pytest.fixture(scope="session")
def emulated_library() -> Any:
    """The operators of csrc/cuda as `torch.ops.sskd_fast_emulated`: the same files, built for the CPU."""
    import torch

    sources = _native.source_folder()
    try:
        compiler, (compiling, linking) = _native.cxx_compiler(), _native.torch_flags()
    except _build.BuildError as error:
        pytest.skip(f"the CUDA operators are not emulated: {error}")
    # Without contraction, so that the result does not depend on the machine.
    flags = ["-std=gnu++20", "-O1", "-fPIC", "-ffp-contract=off", "-DSSKD_EMULATION", *_env.extra_cxx_flags()]
    command = [*compiler, *flags, "-Wno-unknown-pragmas", *compiling, "-I", str(sources)]
    recipe = _build.Recipe(
        file="sskd_fast_emulated.so",
        title="the CUDA operators emulated on the CPU",
        takes="about a minute",
        folder=sources,
        sources=(*sorted((sources / "cuda").glob("*.cpp")), *sorted((sources / "cuda").glob("*.cu"))),
        headers=("schemas.h", "common/*.h", "math/*.h", "cuda/*.h", "emulation/*.h"),
        compilers=(compiler,),
        compile={".cpp": [*command, "-c"], ".cu": [*command, "-x", "c++", "-c"]},
        link=([*compiler, *flags, "-shared"], linking),
    )
    torch.ops.load_library(_build.build(recipe, _env.cache_folder()))
    return torch.ops.sskd_fast_emulated


@pytest.fixture(params=THREAD_ORDERS, ids=("forward", "reversed", "shuffled"))
def emulated(request: pytest.FixtureRequest, emulated_library: Any) -> Any:
    """The emulated operators; the test runs once for each order of the threads."""
    emulated_library.order_threads(request.param)
    return emulated_library


@pytest.fixture(scope="session")
def kernel_list(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `python -m benchmarks.kernel_report` says of every kernel for every architecture."""
    pytest.importorskip("triton", reason="Triton is not installed: the kernels are not compiled")
    from benchmarks import kernel_report

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all tests side by side: the first to come runs the command
    page, list_file = folder / "gpu.md", folder / "kernels.json"
    with FileLock(folder / "kernels.lock"):
        if not list_file.exists():
            page.write_text(f"{kernel_report.BEGIN}\n{kernel_report.END}\n")
            command = [sys.executable, "-m", "benchmarks.kernel_report", "--json", str(list_file), "--docs", str(page)]
            subprocess.run(command, cwd=kernel_report.ROOT, check=True)
    found: list[dict[str, Any]] = json.loads(list_file.read_text())
    assert page.read_text().count("\n| ") == len(found) + 1
    return found


class CocoBuilder:
    """A COCO instance data set in a folder, put together image by image; `content` may be edited before `write`."""

    def __init__(self, folder: Path, classes: dict[int, str]) -> None:
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.file = folder / "instances.json"
        categories = [{"id": category_id, "name": name} for category_id, name in classes.items()]
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}

    def image(self, pixels: NDArray[Any] | tuple[int, int], *, image_id: int | None = None, **fields: Any) -> int:
        """Adds an image, given its pixels or its (height, width) for one of random pixels; returns its id."""
        image_id = len(self.content["images"]) + 1 if image_id is None else image_id
        if isinstance(pixels, tuple):
            pixels = np.random.default_rng(image_id).integers(0, 256, (*pixels, 3), dtype=np.uint8)
        name = fields.pop("file_name", f"{image_id}.png")
        Image.fromarray(pixels).save(self.images / name)
        record = {"id": image_id, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1], **fields}
        self.content["images"].append(record)
        return image_id

    def instance(self, image_id: int, segmentation: Any, *, category_id: int = 1, **fields: Any) -> int:
        """Adds an instance, given its segmentation or its mask (H, W) bool; returns the annotation's id."""
        if isinstance(segmentation, np.ndarray):
            segmentation = encoded(segmentation)
        annotation_id = len(self.content["annotations"]) + 1
        record = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}
        self.content["annotations"].append({**record, "iscrowd": 0, **fields})
        return annotation_id

    def write(self) -> Path:
        """Writes the annotation file; returns its path."""
        self.file.write_text(json.dumps(self.content), encoding="utf-8")
        return self.file


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., CocoBuilder]:
    """Builder of a COCO data set below tmp_path: make_coco(name="set", classes={1: "cell"})."""

    def build(name: str = "set", classes: dict[int, str] | None = None) -> CocoBuilder:
        return CocoBuilder(tmp_path / name, {1: "cell"} if classes is None else classes)

    return build


@pytest.fixture
def box_mask() -> Callable[..., NDArray[np.bool_]]:
    """box_mask(height, width, top, left, bottom, right) -> bool mask of a filled box, bottom and right excluded."""

    def draw(height: int, width: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = True
        return mask

    return draw


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as compressed RLE with ascii counts."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


@pytest.fixture
def encode() -> Callable[[NDArray[np.bool_]], dict[str, Any]]:
    """encode(mask (H, W) bool) -> compressed RLE with ascii counts."""
    return encoded


@pytest.fixture(scope="session")
def tiny_foundation(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders as `save_pretrained` writes them, of tiny models with random weights of transformers' own classes:
    "mm_grounding_dino", "grounding_dino" (each with a tokenizer), "sam2", "mask2former", "eomt"."""
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("foundation")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            model = TINY_FOUNDATION[name]()
            model.save_pretrained(path)
            if "dino" in name:
                tiny_tokenizer(path)
        return path

    return folder


WORDS = ("disc", "triangle", "cross", "ring", "traffic", "light", "sign", "train", "##s", "cell", "red", "blue")


def tiny_tokenizer(path: Path) -> None:
    """A BERT tokenizer of a few words whose special tokens have the numbers that the detectors' code counts on."""
    from transformers import BertTokenizer

    vocabulary = [f"[unused{i}]" for i in range(1200)]
    for token, number in (("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102), ("[MASK]", 103)):
        vocabulary[number] = token
    vocabulary[1012], vocabulary[1029] = ".", "?"
    vocabulary[1100 : 1100 + len(WORDS)] = WORDS
    (path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)


def _detector(kind: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = transformers.BertConfig(
        vocab_size=1200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=swin, text_config=text, num_queries=8, d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4, max_text_len=32,
        num_feature_levels=4,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(config)


def _sam2() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    hiera = transformers.Sam2HieraDetConfig(
        image_size=[64, 64], hidden_size=8, embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], blocks_per_stage=[1, 1, 2, 1], global_attention_blocks=[3],
        window_size_per_stage=[4, 4, 4, 2], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompt = transformers.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4)
    masks = transformers.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    return transformers.Sam2Model(
        transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=masks)
    )


def _mask2former() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=3, num_attention_heads=2, num_queries=6,
        id2label={0: "ring", 1: "Cross", 2: "cat"}, label2id={"ring": 0, "Cross": 1, "cat": 2},
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def _eomt() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.EomtConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16, num_blocks=1,
        num_queries=6, num_register_tokens=1, id2label={0: "ring", 1: "cross"}, label2id={"ring": 0, "cross": 1},
    )  # fmt: skip
    return transformers.EomtForUniversalSegmentation(config)


TINY_FOUNDATION: dict[str, Callable[[], Any]] = {
    "mm_grounding_dino": lambda: _detector("MMGroundingDino"),
    "grounding_dino": lambda: _detector("GroundingDino"),
    "sam2": _sam2,
    "mask2former": _mask2former,
    "eomt": _eomt,
}
