"""Crops cut, resized and mirrored on the training device, a batch at once, from pictures that lie there.

Resizing with a triangle filter is linear and separable, so a crop is `tall @ piece @ wide`: two batched matrix products
with weights computed where they are used. They are exact at any shrink factor, which a fixed number of taps is not, and
need no pyramid of smaller pictures beside the pictures; on a GPU they run in half precision on its matrix units.
"""

from __future__ import annotations

import queue
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from training.data.cache import PictureCache
from training.data.dataset import FILL, CropDataset, Plan, SampleKey, place
from training.models.losses import Targets

_UPLOAD = 1 << 26  # bytes copied at once
_WORK = 1 << 26  # numbers that a part of a batch may take, most of them of two to eight bytes
_ROUND = 32  # canvas sides are multiples of this, which matrix units and allocators like
_POLL = 0.1  # seconds after which a blocked thread looks whether it is still wanted


class NoRoomError(ValueError):
    """The pictures do not fit the device."""


@dataclass(frozen=True)
class DevicePictures:
    """pixels: uint8 [P, 3] RGB of all pictures, on the device; starts: int64 [pictures], the first pixel of each."""

    pixels: Tensor
    starts: NDArray[np.int64]

    @property
    def device(self) -> torch.device:
        return self.pixels.device


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody has taken yet."""
    return int(torch.cuda.mem_get_info(device)[0])


def upload(cache: PictureCache, device: torch.device) -> DevicePictures:
    """Copy all decoded pictures to the device; on the CPU they stay in the file, which is mapped.

    Raises NoRoomError where they would take more than half of what is free: the network needs the rest.
    """
    flat, starts = cache.flat, cache.offsets // 3
    if device.type == "cpu":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)  # it is only read
            return DevicePictures(torch.from_numpy(np.asarray(flat)).view(-1, 3), starts)
    free = free_bytes(device)
    if 2 * len(flat) > free:
        raise NoRoomError(
            f"the {len(cache)} pictures take {len(flat) / 1e9:.1f} GB, and may take half of the device's free memory: "
            f"{2 * len(flat) / 1e9:.1f} GB must be free on {device}, where {free / 1e9:.1f} GB are"
        )
    pixels = torch.empty(len(flat), dtype=torch.uint8, device=device)
    with tqdm(total=len(flat), desc=f"pictures to {device}", unit="B", unit_scale=True, leave=False) as bar:
        for begin in range(0, len(flat), _UPLOAD):
            part = np.array(flat[begin : begin + _UPLOAD])  # read from the disk here, not in the copy
            pixels[begin : begin + len(part)].copy_(torch.from_numpy(part))
            bar.update(len(part))
    return DevicePictures(pixels.view(-1, 3), starts)


def pictures_on(device: torch.device, cache: PictureCache, wanted: bool | None) -> DevicePictures | None:
    """The pictures on the device where crops are to be cut there, None where the loader is to cut them.

    wanted None: on a GPU with room for them; where there is none, a line says how much is needed.
    Raises NoRoomError where True is asked of a device without room.
    """
    if not (device.type == "cuda" if wanted is None else wanted):
        return None
    try:
        return upload(cache, device)
    except NoRoomError as error:
        if wanted:
            raise
        tqdm.write(f"{error}; so the loader's processes cut the crops", file=sys.stderr)
        return None


@dataclass(frozen=True)
class CropPlans:
    """All that the device needs to make one batch, in CPU tensors that are pinned for a GPU.

    Crops are sorted by the size of their pieces; order: int64 [N], the place of each in the batch.
    spots: int64 [N, 9], first pixel of the piece, pixels a row of its picture, rows and columns of the piece, left,
    top, right and bottom of what it fills in the output, mirrored or not; boxes: float32 [N, 4], x0 y0 x1 y1 in the
    piece.
    parts: (first crop, crop behind the last, rows, columns), crops that are cut together, and their largest piece.
    targets: float32 [T, 4], faces and ignore regions of each picture in turn, `counts` at a time.
    """

    size: int
    order: Tensor
    spots: Tensor
    boxes: Tensor
    parts: tuple[tuple[int, int, int, int], ...]
    targets: Tensor
    counts: tuple[int, ...]


def plan_crops(data: CropDataset, keys: Sequence[SampleKey], starts: NDArray[np.int64], pin: bool) -> CropPlans:
    """Draw the windows and targets of one batch, all of one size. Everything here is done on the CPU."""
    size, plans = keys[0].size, [data.plan(key) for key in keys]
    rows = [_spot(data, key, plan, starts) for key, plan in zip(keys, plans, strict=True)]
    spots, boxes = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.float32)
    order = np.argsort(spots[:, 2] * spots[:, 3], kind="stable")
    spots, boxes = spots[order], boxes[order]
    each = [boxes_of for plan in plans for boxes_of in plan.targets]
    tensors = [torch.from_numpy(order), torch.from_numpy(spots), torch.from_numpy(boxes), torch.cat(each)]
    if pin:
        tensors = [tensor.pin_memory() for tensor in tensors]
    index, where, within, targets = tensors
    return CropPlans(size, index, where, within, _parts(spots[:, 2:4], size), targets, tuple(len(one) for one in each))


def _spot(
    data: CropDataset, key: SampleKey, plan: Plan, starts: NDArray[np.int64]
) -> tuple[list[int], tuple[float, float, float, float]]:
    height, width = data.cache.shape(key.photo)
    start, placement = int(starts[key.photo]), place(height, width, plan.window, key.size)
    if placement is None:
        return [start, width, 1, 1, 0, 0, 0, 0, plan.flip], (0.0, 0.0, 1.0, 1.0)
    top, bottom, left, right = placement.piece
    spot = [start + top * width + left, width, bottom - top, right - left, *placement.target, plan.flip]
    return spot, placement.box


def _parts(pieces: NDArray[np.int64], size: int) -> tuple[tuple[int, int, int, int], ...]:
    """Runs of crops, sorted by area, whose pieces as large as the largest of the run fit the work memory."""
    parts, begin, rows, cols = [], 0, 0, 0
    for k, (height, width) in enumerate(-(-pieces // _ROUND) * _ROUND):
        taller, wider = max(rows, int(height)), max(cols, int(width))
        one = taller * wider + size * (taller + wider) + size * size
        if k > begin and (k + 1 - begin) * one > _WORK:
            parts.append((begin, k, rows, cols))
            begin, taller, wider = k, int(height), int(width)
        rows, cols = taller, wider
    return (*parts, (begin, len(pieces), rows, cols))


def make_batch(pictures: DevicePictures, plans: CropPlans) -> tuple[Tensor, list[Targets]]:
    """uint8 [N, 3, S, S] and the targets of each, on the device. Never waits for the device."""
    device, size = pictures.device, plans.size
    order, spots = plans.order.to(device, non_blocking=True), plans.spots.to(device, non_blocking=True)
    boxes, targets = plans.boxes.to(device, non_blocking=True), plans.targets.to(device, non_blocking=True)
    images = torch.empty(len(order), 3, size, size, dtype=torch.uint8, device=device)
    for begin, end, rows, cols in plans.parts:
        part = _cut(pictures.pixels, spots[begin:end], boxes[begin:end], rows, cols, size)
        images[order[begin:end]] = part
    each = torch.split(targets, list(plans.counts))
    return images, [Targets(*pair) for pair in zip(each[::2], each[1::2], strict=True)]


def _cut(pixels: Tensor, spots: Tensor, boxes: Tensor, rows: int, cols: int, size: int) -> Tensor:
    """Crops whose pieces fit a canvas of rows x cols: uint8 [n, 3, size, size]."""
    # Half precision errs by about a quarter of a grey level at most.
    dtype = torch.float16 if pixels.is_cuda else torch.float32
    start, stride, height, width, left, top, right, bottom, flip = (column[:, None] for column in spots.unbind(1))
    x0, y0, x1, y1 = (column[:, None] for column in boxes.unbind(1))
    line = start + torch.minimum(torch.arange(rows, device=pixels.device), height - 1) * stride
    cell = torch.minimum(torch.arange(cols, device=pixels.device), width - 1)
    index = (line[:, :, None] + cell[:, None, :]).flatten()
    piece = pixels.index_select(0, index).view(len(spots), rows, cols * 3).to(dtype)
    y = torch.arange(size, device=pixels.device).expand(len(spots), size)
    x = torch.where(flip > 0, size - 1 - y, y)
    tall = _weights(y, (top, bottom), (y0, y1), height, rows).to(dtype)
    wide = _weights(x, (left, right), (x0, x1), width, cols).to(dtype)
    lines = torch.bmm(tall, piece).view(len(spots), size, cols, 3)
    lines = lines.permute(0, 3, 1, 2).reshape(len(spots), 3 * size, cols)
    crops = torch.bmm(lines, wide.transpose(1, 2)).view(len(spots), 3, size, size)
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    crops = torch.where(inside[:, None], crops, float(FILL))
    return crops.add_(0.5).clamp_(0, 255).to(torch.uint8)  # rounds half up, as Pillow does


def _weights(
    out: Tensor, target: tuple[Tensor, Tensor], box: tuple[Tensor, Tensor], extent: Tensor, length: int
) -> Tensor:
    """Pillow's bilinear filter along one axis: float32 [n, S, length], each source pixel's share in each output pixel.

    out: output pixels [n, S]; target: the first output pixel and the one behind the last; box: what of the source they
    show; extent: how many source pixels there are; these are [n, 1].
    """
    scale = (box[1] - box[0]) / (target[1] - target[0]).clamp(min=1)
    center = box[0] + (out - target[0] + 0.5) * scale
    source = torch.arange(length, device=out.device)
    weights = (source + 0.5 - center[:, :, None]).abs_()
    weights.div_(-scale.clamp(min=1.0)[:, :, None]).add_(1.0).clamp_(min=0.0)
    weights.mul_((source < extent)[:, None, :])
    return weights.div_(weights.sum(dim=2, keepdim=True).clamp_(min=1e-6))


def device_batches(
    data: CropDataset, sampler: Iterable[Sequence[SampleKey]], pictures: DevicePictures, ahead: int = 4
) -> Generator[tuple[Tensor, list[Targets]], None, None]:
    """Batches as the loader makes them, uint8 [N, 3, S, S] and targets, on the device and in the sampler's order.

    A thread draws windows and targets `ahead` batches ahead. What it raises is raised here; closing the iterator ends
    it.
    """
    cuda = pictures.device.type == "cuda"
    ready: queue.Queue[CropPlans | BaseException | None] = queue.Queue(ahead)
    unwanted = threading.Event()

    def offer(item: CropPlans | BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                return ready.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def work() -> None:
        try:
            if cuda:  # a thread begins on the first GPU, whichever its process uses
                torch.cuda.set_device(pictures.device)
            for keys in sampler:
                offer(plan_crops(data, keys, pictures.starts, pin=cuda))
                if unwanted.is_set():
                    return
            offer(None)
        except BaseException as error:  # whatever it is, it is the caller's to handle
            offer(error)

    thread = threading.Thread(target=work, name="crop plans", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield make_batch(pictures, item)
    finally:
        unwanted.set()
        thread.join()
