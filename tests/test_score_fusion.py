"""Score fusion against the formulas written per pixel, its gradient, resizing, dtypes and arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sskd_fast import ops

pytestmark = pytest.mark.usefixtures("each_backend")

B, K, C, H, W = 2, 5, 3, 4, 6
WIDTH = {"fused": K + C + 1, "object": K + C + 1, "mask": K, "class": C + 1}


def logits(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = 3 * torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    classes = 2 * torch.randn(B, K, C + 1, generator=generator, dtype=torch.float64)
    return masks.to(dtype), classes.to(dtype)


def by_definition(masks: torch.Tensor, classes: torch.Tensor, cues: str) -> torch.Tensor:
    rows = []
    for b in range(masks.shape[0]):
        p_class = classes[b].softmax(-1)
        for i in range(masks.shape[2]):
            for j in range(masks.shape[3]):
                m = masks[b, :, i, j]
                p_mask = m.softmax(0)
                if cues == "object":
                    own = m.sigmoid() * (1 - p_class[:, -1])
                    free = torch.clamp(1 - own.sum(), min=0).reshape(1)
                    y = torch.cat([own, free, sum(m[k].sigmoid() * p_class[k, :-1] for k in range(K))])
                else:
                    mixed = sum(p_mask[k] * p_class[k] for k in range(K))
                    y = {"fused": torch.cat([p_mask, mixed]), "mask": p_mask, "class": mixed}[cues]
                rows.append(y / y.norm())
    return torch.stack(rows).view(masks.shape[0], -1, rows[0].shape[0])


@pytest.mark.parametrize("cues", WIDTH)
def test_scores_follow_the_definition(cues):
    masks, classes = logits()
    scores = ops.fuse_scores(masks, classes, cues=cues)
    assert scores.shape == (B, H * W, WIDTH[cues])
    torch.testing.assert_close(scores, by_definition(masks, classes, cues))
    torch.testing.assert_close(scores.norm(dim=-1), torch.ones(B, H * W, dtype=torch.float64))
    assert float(scores.min()) >= 0


@pytest.mark.parametrize("cues", WIDTH)
def test_gradients_reach_both_logits(cues):
    masks, classes = logits()
    masks = masks[:1, :, :2, :3].clone().requires_grad_()
    classes = classes[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: ops.fuse_scores(m, c, (2, 2), cues=cues), (masks, classes))


def test_mask_logits_are_resized_before_they_are_compared():
    masks, classes = logits()
    half = F.interpolate(masks, size=(2, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ops.fuse_scores(masks, classes, (2, 3)), ops.fuse_scores(half, classes))
    torch.testing.assert_close(half[0, 0, 0, 0], masks[0, 0, :2, :2].mean())
    flat = masks[:, :, 1:3, 2:4].mean((2, 3), keepdim=True)
    torch.testing.assert_close(ops.fuse_scores(masks, classes, (1, 1)), ops.fuse_scores(flat, classes))


def test_half_precision_and_autocast_give_float32_scores():
    masks, classes = logits(torch.float32)
    exact = ops.fuse_scores(masks, classes, cues="object")
    low = ops.fuse_scores(masks.bfloat16(), classes.bfloat16(), cues="object")
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=2e-2, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ops.fuse_scores(masks, classes, cues="object"), exact)


def test_permuted_strides_do_not_matter():
    masks, classes = logits()
    strided = masks.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ops.fuse_scores(strided, classes), ops.fuse_scores(masks, classes))


def test_extreme_logits_stay_finite():
    masks, classes = logits(torch.float32)
    for cues in WIDTH:
        assert bool(ops.fuse_scores(masks * 1e4, classes * 1e4, cues=cues).isfinite().all())


def test_empty_queries_split_the_background_of_fused_scores_only():
    """Two background pixels claimed by different no-object queries: unlike in "fused", alike in "object"."""
    masks = torch.tensor([[[[6.0, -6.0]], [[-6.0, 6.0]]]])
    classes = torch.tensor([[[-8.0, 8.0], [-8.0, 8.0]]])

    def unlike(cues: str) -> float:
        y = ops.fuse_scores(masks, classes, cues=cues)[0]
        return float(1 - y[0] @ y[1])

    assert unlike("fused") > 0.4
    assert unlike("object") < 1e-3


def test_objectness_is_the_probability_of_any_object():
    masks, classes = logits()
    p_class = classes.softmax(-1)
    expected = (masks.sigmoid() * (1 - p_class[..., -1])[..., None, None]).sum(1).clamp(max=1).flatten(1)
    torch.testing.assert_close(ops.objectness(masks, classes), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_logits": torch.rand(2, 5, 4)}, ValueError, r"mask_logits: found shape \(2, 5, 4\), expected \(B, K, H"),
        ({"class_logits": torch.rand(2, 4, 4)}, ValueError, r"class_logits: found shape \(2, 4, 4\), expected \(2, 5,"),
        ({"class_logits": torch.rand(2, 5, 1)}, ValueError, "at least one class and no-object"),
        ({"class_logits": torch.rand(2, 5, 4).double()}, ValueError, "class_logits: dtype torch.float64, expected"),
        ({"mask_logits": None}, TypeError, "mask_logits: expected a tensor, found NoneType"),
        ({"mask_logits": torch.rand(2, 5, 4, 0)}, ValueError, "expected at least one query and one pixel"),
        ({"size": (0, 3)}, ValueError, r"size: found \(0, 3\)"),
        ({"size": (2.5, 3)}, ValueError, r"size: found \(2.5, 3\), expected \(height, width\), whole numbers"),
        ({"size": (2, 3, 4)}, ValueError, r"size: found \(2, 3, 4\), expected \(height, width\)"),
        ({"cues": "both"}, ValueError, "cues='both' is unknown; expected one of fused, object, mask, class"),
        ({"backend": "cuda"}, RuntimeError, "backend='cuda' cannot run: it runs on cuda tensors"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    masks, classes = logits(torch.float32)
    with pytest.raises(error, match=message):
        ops.fuse_scores(**{"mask_logits": masks, "class_logits": classes, **arguments})
