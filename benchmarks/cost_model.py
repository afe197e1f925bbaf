"""A cost model of the operators on a GPU, not a measurement: bytes, operations, and the time that both allow.

Shape letters: A anchors, M candidates, R negatives, D width of an embedding, E of a score vector. N pixels, K queries,
C1 classes with no-object. Every formula counts the bytes and operations of this repository's kernels. It assumes that
cached data are read once, and that rows are gathered once for each use.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

# Mean acceptance of trials with the spread envelope, for scores that are alike; the even one accepts more.
ACCEPTANCE = 0.5
# Share of trials that bounds from rows in bytes leave to the exact score, for scores of a trained model:
# python -m benchmarks.unsettled_trials
UNSETTLED = 0.025
_INDEX = 4  # bytes of an index
_RATIO = 8  # of an acceptance ratio
_HEADER = 12  # of a compressed row: scale, norm, error
_SECTOR = 32  # the least that is read at random
# Of a random number for a pair: a quarter of Philox's ten rounds, 15 integer instructions at half the rate of
# multiply-adds, which count as two operations.
_RANDOM_NUMBER = 60


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: memory bytes per second, operations per second by kind (dense, without sparsity)."""

    name: str
    bandwidth: float
    float32: float
    tf32: float
    half: float


# From NVIDIA's public data sheets: H100 SXM5 80 GB and A100 SXM4 80 GB.
H100 = Device("H100 SXM", 3.35e12, 67e12, 494.7e12, 989.4e12)
A100 = Device("A100 SXM 80 GB", 2.039e12, 19.5e12, 156e12, 312e12)
DEVICES = (H100, A100)


@dataclass(frozen=True)
class Cost:
    """Bytes moved to and from memory, operations outside the tensor cores, and on them (counted as one product)."""

    bytes: float
    operations: float
    products: float = 0.0

    def seconds(self, device: Device, element: int = 4) -> float:
        """The roofline: the longest time of memory, arithmetic and tensor cores. element: bytes of an embedding number.

        Products of float32 are three of float16.
        """
        rate = device.half if element == 2 else device.half / 3
        return max(self.bytes / device.bandwidth, self.operations / device.float32, self.products / rate)

    def bound(self, device: Device, element: int = 4) -> str:
        """The largest of the three, by name."""
        rate = device.half if element == 2 else device.half / 3
        times = {
            "memory": self.bytes / device.bandwidth,
            "arithmetic": self.operations / device.float32,
            "tensor cores": self.products / rate,
        }
        return max(times, key=lambda name: times[name])


def score_fusion(pixels: int, queries: int, classes: int, element: int = 4) -> dict[str, Cost]:
    """N pixels, K queries, C1 classes: reads the mask logits, writes the score vectors; backward reads both ways."""
    width = queries + classes
    mixing = 2 * pixels * queries * classes
    forward = Cost(element * pixels * (queries + width), mixing + 8 * pixels * width)
    backward = Cost(element * pixels * (2 * queries + width), 4 * mixing + 16 * pixels * width)
    return {"forward": forward, "backward": backward}


def negative_sampling(
    anchors: int,
    candidates: int,
    negatives: int,
    width: int,
    element: int = 4,
    acceptance: float = ACCEPTANCE,
) -> dict[str, Cost]:
    """A anchors, M candidates, R negatives, E: a trial gathers a row in bytes, its slot and its ratio.

    UNSETTLED trials gather the exact row, too. The kernels of the tables read rows twice, write ten slots, the order,
    counts and two ratios, and read some of it. Bytes are made once, twice for anchors. The integer products are not
    counted: they take tensor cores next to no time, and CUDA an instruction for four of them.
    """
    trials = anchors * negatives / acceptance
    tables: float = candidates * (element * width * 2 + 13 * _INDEX + 6 * _RATIO) + anchors * element * width
    tables += candidates * (element * width + width + _HEADER) + anchors * (width + _HEADER)
    row = width + _HEADER + UNSETTLED * element * width
    own = anchors * (element * width + _INDEX * negatives)
    operations = trials * (3 * width * UNSETTLED + 80)
    return {"forward": Cost(trials * (row + _INDEX + _RATIO) + own + tables, operations)}


def dense_negative_sampling(anchors: int, candidates: int, negatives: int, width: int, element: int = 4) -> Cost:
    """A, M, R, E: a perfect kernel that gives every pair a weight and a random number, and stores no pair.

    The weights are products on tensor cores. Keeping the R first arrivals costs nothing; the rows are read once.
    """
    pairs = anchors * candidates
    moved = element * width * (anchors + candidates) + anchors * negatives * _INDEX
    return Cost(moved, _RANDOM_NUMBER * pairs, 2 * pairs * width)


def dense_is_as_fast(negatives: int, width: int, device: Device, element: int) -> int:
    """The number of pixels, all of them anchors, from which on drawing is faster than the perfect dense kernel."""

    def ahead(pixels: int) -> bool:
        own = negative_sampling(pixels, pixels, negatives, width, element)["forward"].seconds(device, element)
        return own < dense_negative_sampling(pixels, pixels, negatives, width, element).seconds(device, element)

    return bisect.bisect_left(range(1, 1 << 24), True, key=ahead) + 1


def pixel_contrast(anchors: int, candidates: int, negatives: int, width: int, element: int = 4) -> dict[str, Cost]:
    """A, M, R, D: the row of a negative is gathered once in each pass; the inverted index is sorted in between.

    With each row comes the number that belongs to it, in a sector of its own: a norm, or a share and a factor.
    """
    row = element * width + _INDEX + _SECTOR
    gathered = anchors * negatives * row
    own = anchors * width * element
    shares = anchors * negatives * 4
    forward = Cost(gathered + 3 * own + 3 * shares, 6 * anchors * negatives * width)
    # The keys are counted once; every pass of a radix sort reads and writes key and place, for eight bits of the key.
    sorting = anchors * negatives * _INDEX * (2 + 4 * math.ceil(candidates.bit_length() / 8))
    backward = Cost(
        gathered + anchors * negatives * _SECTOR + 6 * own + 2 * shares + sorting + 2 * candidates * width * element,
        2 * anchors * negatives * width,
    )
    return {"forward": forward, "backward": backward}


def expected_pixel_contrast(
    anchors: int, candidates: int, width: int, score_width: int, element: int = 4, tile: int = 128
) -> dict[str, Cost]:
    """A, M, D, E: two products for each tile; the backward pass, by anchors and by candidates, has two more each.

    The columns are read once for each tile of rows, which stays in a cache.
    """
    pairs = anchors * candidates
    product = 2 * pairs * (width + score_width)
    row = element * width + 4 * score_width

    def moved(rows: int, columns: int) -> float:
        return row * (rows + columns * math.ceil(rows / tile))

    forward = Cost(moved(anchors, candidates), 12 * pairs, product)
    both = moved(anchors, candidates) + moved(candidates, anchors) + 2 * row * (anchors + candidates)
    return {"forward": forward, "backward": Cost(both, 32 * pairs, 4 * product)}


def of_case(
    pixels: int, queries: int, classes: int, negatives: int, width: int, element: int
) -> dict[str, dict[str, Cost]]:
    """Costs by operator and pass, if every pixel is an anchor and a candidate."""
    scores = queries + classes
    return {
        "score_fusion": score_fusion(pixels, queries, classes),
        "negative_sampling": negative_sampling(pixels, pixels, negatives, scores),
        "pixel_contrast": pixel_contrast(pixels, pixels, negatives, width, element),
        "expected_pixel_contrast": expected_pixel_contrast(pixels, pixels, width, scores, element),
    }


def main() -> None:
    """Prints the model for the cases of the benchmarks; benchmarks/gpu_call.py compares measured times with it."""
    from benchmarks.cases import CASES, CLASSES, NEGATIVES, QUERIES, WIDTH

    for case in CASES.values():
        costs = of_case(case.pixels, QUERIES, CLASSES + 1, NEGATIVES, WIDTH, 4)
        for operator, passes in costs.items():
            for mode, cost in passes.items():
                line = f"{case.name} {operator} {mode}: {cost.bytes / 1e9:.3f} GB; model:"
                print(line + ",".join(f" {d.name} {1e3 * cost.seconds(d):.3f} ms ({cost.bound(d)})" for d in DEVICES))
    for device in DEVICES:
        for name, element in (("float32", 4), ("bfloat16", 2)):
            sizes = NEGATIVES, QUERIES + CLASSES + 1
            pixels = CASES["2x32768"].pixels
            own = negative_sampling(pixels, pixels, *sizes, element)["forward"].seconds(device, element)
            dense = dense_negative_sampling(pixels, pixels, *sizes, element).seconds(device, element)
            print(
                f"{device.name} {name}: drawing is faster than a perfect dense sampler from "
                f"{dense_is_as_fast(*sizes, device, element):,} pixels on; {dense / own:.1f} times at {pixels:,}"
            )


if __name__ == "__main__":
    main()
