"""`tensorrt`: plans for the GPU here, one variant after the other."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from export.commands.options import Repo, alone, manifest_of, reported
from service.repository.manifest import MANIFEST_NAME, HardwareCompatibility, InputSize, Manifest, ModelFile

if TYPE_CHECKING:
    from service.engines.tensorrt.build import BuildOptions

CACHE = Path(".cache/tensorrt")
EXPORT = "python -m export onnx CHECKPOINT --precision fp16 --nms plain"
EFFICIENT, PLAIN = "efficient", "plain"


def tensorrt(
    member: Annotated[str, typer.Argument(help="A member's name, such as d0, or all.")],
    repository: Repo = Path("models"),
    variant: Annotated[str, typer.Option(help="Only this one, such as d0-fp16; by default what is in fp16.")] = "",
    sizes: Annotated[
        str, typer.Option(help="Input sizes such as 480x640,640x640; by default all, which the service wants.")
    ] = "",
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures a run.")] = 8,
    opt_batch: Annotated[int, typer.Option(min=0, help="Batch to tune for; 0 takes half of the largest.")] = 0,
    level: Annotated[int, typer.Option(min=0, max=5, help="0 builds fastest, 5 searches longest.")] = 3,
    workspace_mib: Annotated[int, typer.Option(min=0, help="Scratch memory of a run; 0 sets no limit.")] = 0,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Later versions and the lean runtime run it too.")
    ] = False,
    hardware_compatible: Annotated[
        str, typer.Option(help="Other GPUs that run it too: none, same_compute_capability, ampere_plus.")
    ] = "none",
    nms: Annotated[str, typer.Option(help="plain, or efficient: TensorRT's plugin EfficientNMS_TRT.")] = PLAIN,
    timing_cache: Annotated[
        Path | None, typer.Option(help=f"File, kept between builds; by default in {CACHE}.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there.")] = False,
) -> None:
    """Build TensorRT plans of MEMBER for the GPU here, into its folder and manifest; again to go on where it stopped.

    Needs an NVIDIA GPU, `pip install tensorrt-cu13`, and a file with plain NMS in half precision, which
    `python -m export onnx CHECKPOINT --precision fp16 --nms plain` makes. --nms efficient starts from files with either
    NMS. Minutes a plan; one profile an input size.
    """
    with (
        reported("stopped; plans that are finished stay, and the timing cache makes the next build shorter"),
        alone(repository),
    ):
        if hardware_compatible not in get_args(HardwareCompatibility):
            choices = ", ".join(get_args(HardwareCompatibility))
            raise ValueError(f"--hardware-compatible is one of {choices}, not {hardware_compatible!r}")
        if nms not in (PLAIN, EFFICIENT):
            raise ValueError(f"--nms is plain or efficient, not {nms!r}")
        work = _work(repository, member, variant, nms)

        from service.engines.cuda import device
        from service.engines.tensorrt.build import BuildOptions, builder_module
        from service.engines.tensorrt.timing import timing_cache_file

        version = builder_module(repository).__version__
        gpu = device()
        typer.echo(f"TensorRT {version} on {gpu.name}")
        for name, manifest, file in work:
            options = BuildOptions(
                input_sizes=_sizes(sizes, manifest),
                max_batch=max_batch,
                opt_batch=opt_batch,
                level=level,
                workspace_bytes=workspace_mib * 2**20,
                tf32=file.precision != "fp32",
                version_compatible=version_compatible,
                hardware_compatible=cast(HardwareCompatibility, hardware_compatible),
                timing_cache=timing_cache or timing_cache_file(CACHE, version, gpu.compute_capability),
                max_detections=manifest.thresholds.max_detections,
                efficient_nms=manifest.thresholds if nms == EFFICIENT else None,
            )
            _build(repository / name, manifest, file, options, force)


def _work(repository: Path, member: str, variant: str, nms: str) -> list[tuple[str, Manifest, ModelFile]]:
    """(member, its manifest, file) of what is to be built. Raises ValueError where that is nothing."""
    names = [member]
    if member == "all":
        names = [p.parent.name for p in sorted(repository.glob(f"*/{MANIFEST_NAME}")) if p.parent.name[0] != "."]
        if not names:
            raise ValueError(f"{repository} holds no member")
    work, without = [], []
    for name in names:
        manifest = manifest_of(repository, name)
        fitting = [one for one in manifest.files if nms == EFFICIENT or one.nms == PLAIN]
        files = [one for one in fitting if (one.variant == variant if variant else one.precision == "fp16")]
        if not files:
            there = ", ".join(f"{one.variant} ({one.precision}, {one.nms} NMS)" for one in manifest.files)
            without.append(f"{name} has {there}")
        work += [(name, manifest, file) for file in files]
    if not work:
        wanted = variant or "variant in fp16"
        form = "" if nms == EFFICIENT else " with plain NMS"
        raise ValueError(f"there is no {wanted}{form} to build from: {'; '.join(without)}; `{EXPORT}` makes one")
    for sentence in without if not variant else ():
        typer.echo(f"left out: {sentence}; `{EXPORT}` makes what is missing")
    return work


def _sizes(text: str, manifest: Manifest) -> tuple[InputSize, ...]:
    """`480x640,640x640`: height by width, each one of the member's. Raises ValueError."""
    if not text:
        return manifest.input_sizes
    known = {str(size): size for size in manifest.input_sizes}
    wanted = list(dict.fromkeys(part.strip() for part in text.split(",")))
    strangers = [part for part in wanted if part not in known]
    if strangers:
        raise ValueError(f"--sizes: {manifest.member} has no {', '.join(strangers)}; it has {', '.join(known)}")
    return tuple(known[part] for part in wanted)


def _build(folder: Path, manifest: Manifest, file: ModelFile, options: BuildOptions, force: bool) -> None:
    """One plan, unless one is there that serves."""
    from export.plan_progress import bars
    from service.engines.cuda import device
    from service.engines.tensorrt import api
    from service.engines.tensorrt.make import make_plan, serves
    from service.engines.tensorrt.plans import find, stored_plans

    gpu, version = device(), api.load().__version__
    known = tuple(one for one in stored_plans(folder, manifest, None) if serves(one.plan, options))
    found, reasons = find(known, file, version, gpu.compute_capability, gpu.name)
    for reason in reasons:
        typer.echo(f"{file.variant}: not usable here: {reason}")
    if found is not None and not force:
        typer.echo(f"{file.variant}: {found.path.name} is there")
        return
    if file.precision == "int8":
        _refuse_uint8(folder / file.path)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, bars() as progress:
        candidates = _cut(folder / file.path, Path(scratch)) if options.efficient_nms else None
        made = make_plan(folder, file, options, None, progress, typer.echo, None, candidates)
    seconds = time.monotonic() - started
    typer.echo(
        f"{file.variant}: {made.path.name}, {made.plan.size_bytes / 2**20:.1f} MiB, {len(options.input_sizes)} input "
        f"sizes with up to {options.max_batch} pictures, {seconds:.0f} s; {_accuracy(manifest, file)}"
    )


def _refuse_uint8(path: Path) -> None:
    """Raise ValueError where activations are quantised to uint8, as `quantize` does it for CPUs."""
    import onnx
    from onnx import TensorProto

    graph = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    points = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2}
    if any(kinds.get(name) == TensorProto.UINT8 for name in points):
        raise ValueError(
            f"{path} is quantised to uint8, for CPUs, and TensorRT knows symmetric int8 only; build the variant in fp16"
        )


def _cut(path: Path, folder: Path) -> Path:
    """The file's graph up to its candidates, written into `folder`. Raises ValueError."""
    import onnx

    from export.candidates import candidate_graph
    from export.member import save_onnx

    target = folder / f"{path.stem}.candidates.onnx"
    save_onnx(candidate_graph(onnx.load(path)), target)
    return target


def _accuracy(manifest: Manifest, file: ModelFile) -> str:
    rows = [row for row in manifest.accuracy if row.variant == file.variant]
    if not rows:
        return f"its accuracy was never measured: python -m export accuracy {manifest.member}"
    row = min(rows, key=lambda one: abs(one.long_side - 640))
    return f"AP.50 {row.ap50:.4f} at {row.long_side} on {row.dataset} ({row.split}), of the ONNX file, not of the plan"
