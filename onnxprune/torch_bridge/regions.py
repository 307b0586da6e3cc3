"""Regions of images, as detectors have them: which of them to keep, and what is in them."""

from __future__ import annotations

import math

import torch

from onnxprune.torch_bridge.base import Number, Tensor, integer, number, operator


@operator("NonMaxSuppression", since=10)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Number | None = None,
    iou_threshold: Number | None = None,
    score_threshold: Number | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows (image, class, box) of boxes [N,B,4] that overlap with no better one, best first; scores are [N,C,B]."""
    a, b = boxes.detach()[..., :2], boxes.detach()[..., 2:]
    low, high = (a - b / 2, a + b / 2) if center_point_box else (torch.minimum(a, b), torch.maximum(a, b))
    most = 0 if max_output_boxes_per_class is None else integer(max_output_boxes_per_class)
    overlap = 0.0 if iou_threshold is None else number(iou_threshold)
    rows: list[tuple[int, int, int]] = []
    for image, classes in enumerate(scores.detach()):
        for kind, values in enumerate(classes):
            left = values.argsort(descending=True, stable=True)
            if score_threshold is not None:
                left = left[values[left] > number(score_threshold)]
            kept: list[Tensor] = []
            while len(left) and len(kept) < most:
                best, left = left[0], left[1:]
                kept.append(best)
                left = left[~(_overlaps(low[image], high[image], best, left) > overlap)]
            rows += [(image, kind, int(best)) for best in kept]
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _overlaps(low: Tensor, high: Tensor, one: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box with others, of which [B,2] corners are given; without an area it is 0."""
    shared = (torch.minimum(high[one], high[others]) - torch.maximum(low[one], low[others])).clamp_min(0).prod(-1)
    areas = (high - low).prod(-1)
    union = areas[one] + areas[others] - shared
    flat = (areas[one] <= 0) | (areas[others] <= 0) | (union <= 0)
    return torch.where(flat, 0.0, shared / union)


@operator("RoiAlign", since=10)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str | None = None,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    opset: int,
) -> Tensor:
    """Y[R,C,h,w]: the mean or the largest of points of X[N,C,H,W] in each cell of regions (x1,y1,x2,y2) [R,4]."""
    half = opset >= 16 if coordinate_transformation_mode is None else coordinate_transformation_mode == "half_pixel"
    corners = rois * spatial_scale - (0.5 if half else 0.0)
    sizes = corners[:, 2:] - corners[:, :2]
    sizes = sizes if half else sizes.clamp_min(1)
    cells = output_width, output_height
    along_x, along_y = (_points(corners[:, i], sizes[:, i], cells[i], x.shape[3 - i], sampling_ratio) for i in (0, 1))
    pixels = x.movedim(1, 3).flatten(0, 2)
    images = batch_indices.long().reshape(-1, 1, 1, 1, 1) * x.shape[2]
    parts = []
    for rows, heights in along_y[0]:
        for columns, widths in along_x[0]:
            places = (images + rows[:, :, :, None, None]) * x.shape[3] + columns[:, None, None]
            weights = heights[:, :, :, None, None] * widths[:, None, None]
            picked = pixels.index_select(0, places.flatten()).reshape(*places.shape, x.shape[1])
            parts.append(picked * weights.unsqueeze(-1))
    used = (along_y[1][:, None, :, None, None] & along_x[1][:, None, None, None, :]).unsqueeze(-1)
    many = used.sum((1, 2, 3, 4, 5)).clamp_min(1)[:, None, None, None]
    if mode == "max":
        values = torch.stack(parts).amax(0).masked_fill(~used, -torch.inf).amax((2, 4))
        values = values.masked_fill(~used.any(4).any(2), 0)
    else:
        values = torch.stack(parts).sum(0).masked_fill(~used, 0).sum((2, 4)) / many
    return values.movedim(3, 1)


def _points(
    first: Tensor, size: Tensor, cells: int, pixels: int, ratio: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Along one axis, the two pixels around each point [R,cells,points] with their weights, and which points count."""
    many = torch.full_like(size, ratio) if ratio > 0 else (size / cells).ceil()
    steps = torch.arange(max(integer(many.max()), 1) if len(many) else 1, device=size.device)
    used = steps < many[:, None]
    cell = size / cells
    places = first[:, None] + torch.arange(cells, device=size.device) * cell[:, None]
    points = places[:, :, None] + ((steps + 0.5) * (cell / many.clamp_min(1))[:, None])[:, None]
    inside = (points >= -1) & (points <= pixels)
    points = points.clamp(0, pixels - 1)
    low = points.floor()
    high = (low + 1).clamp_max(pixels - 1)
    share = points - low
    return [(low.long(), (1 - share) * inside), (high.long(), share * inside)], used


@operator("MaxRoiPool")
def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float = 1.0) -> Tensor:
    """Y[R,C,h,w]: the largest element of X[N,C,H,W] in cells of regions (image,x1,y1,x2,y2) [R,5], 0 in empty ones."""
    out = []
    for region in rois.detach():
        image, places = int(region[0]), [_rounded(place * spatial_scale) for place in region[1:].tolist()]
        rows, columns = (_cells(places[i], places[i + 2], pooled_shape[1 - i], x.shape[3 - i]) for i in (1, 0))
        bands = [x[image, :, a:b] for a, b in rows]
        cells = [band[:, :, a:b] for band in bands for a, b in columns]
        values = [cell.amax((1, 2)) if cell.numel() else x.new_zeros(x.shape[1]) for cell in cells]
        out.append(torch.stack(values, 1).reshape(x.shape[1], *pooled_shape))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], *pooled_shape)


def _rounded(x: float) -> int:
    """The next integer; half-way, the one that is farther from 0."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def _cells(first: int, last: int, cells: int, pixels: int) -> list[tuple[int, int]]:
    """From which pixel to which each cell of a region reaches."""
    size = max(last - first + 1, 1) / cells
    bounds = ((math.floor(i * size) + first, math.ceil((i + 1) * size) + first) for i in range(cells))
    return [(min(max(a, 0), pixels), min(max(b, 0), pixels)) for a, b in bounds]
