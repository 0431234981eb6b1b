"""`python -m service build-engines`: TensorRT plans for the GPU here. It needs no torch, so the GPU images have it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from service.repository.manifest import HardwareCompatibility


def build_engines(
    repository: Annotated[Path | None, typer.Option(help="Model repository. [env ASFD_REPOSITORY]")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this one, such as d0-fp16; may be given again. [default: all fp16]")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Pictures a run. [env ASFD_MAX_BATCH]")] = None,
    level: Annotated[int, typer.Option(min=0, max=5, help="0 builds fastest, 5 searches longest.")] = 3,
    version_compatible: Annotated[
        bool, typer.Option(help="Let later versions of TensorRT and the lean runtime run the plans (40 MB more each).")
    ] = True,
    hardware_compatible: Annotated[
        str, typer.Option(help="Which GPUs else: none, same_compute_capability or ampere_plus.")
    ] = "none",
    rebuild: Annotated[bool, typer.Option(help="Build again what is there already.")] = False,
) -> None:
    """Build the TensorRT plans that are missing for the GPU here. Run it again to go on; takes minutes a plan.

    \b
    python -m service build-engines
    python -m service build-engines --variant d0-fp16 --hardware-compatible ampere_plus

    They go into the model repository, or, where that cannot be written, into ASFD_CACHE_DIR/engines: the service looks
    in both. Models must have plain NMS. Needs TensorRT with its builder (`tensorrt-cu13`) and a GPU.
    Exit code: 0 when every plan is there, 2 when not; the reason is on stderr.
    """
    from typing import get_args

    from service.engines.base import EngineError
    from service.engines.cuda import device
    from service.engines.tensorrt.build import builder_module
    from service.engines.tensorrt.make import default_options, make_plan, serves
    from service.engines.tensorrt.plans import engines_folder, find, stored_plans
    from service.engines.tensorrt.progress import BuildStatus
    from service.engines.tensorrt.timing import timing_cache_file
    from service.repository.store import RepositoryError, load_repository
    from service.settings import InvalidSettingsError, load_settings

    if hardware_compatible not in get_args(HardwareCompatibility):
        choices = ", ".join(get_args(HardwareCompatibility))
        raise _fail(f"--hardware-compatible is one of {choices}, not {hardware_compatible!r}")
    given = {"repository": repository, "max_batch": max_batch}
    try:
        settings = load_settings(**{name: value for name, value in given.items() if value is not None})
        cache = settings.usable_cache_dir()
        variants = load_repository(settings.repository).variants
    except (InvalidSettingsError, RepositoryError) as error:
        raise _fail(error) from None
    plain = {one.name: one for one in variants if one.file.nms == "plain"}
    strangers = sorted(set(variant or ()) - set(plain))
    if strangers:
        there = ", ".join(plain) or "none"
        raise _fail(f"no model with plain NMS is called {', '.join(strangers)}; there are {there}")
    names = list(dict.fromkeys(variant or (name for name, one in plain.items() if one.file.precision == "fp16")))
    if not names:
        raise _fail(
            f"{settings.repository.absolute()} has no fp16 model with plain NMS, which engines are built from: `python "
            "-m export onnx CHECKPOINT --precision fp16 --nms plain` makes one"
        )
    failed = False
    try:
        trt = builder_module(settings.repository)
        gpu = device()
        _say(f"TensorRT {trt.__version__} on {gpu.name} (compute capability {gpu.compute_capability})")
        timing = timing_cache_file(engines_folder(cache), trt.__version__, gpu.compute_capability)
        timing.parent.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names, start=1):
            one, what = plain[name], f"[{number}/{len(names)}] {name}"
            folder = one.path.parent
            options = replace(
                default_options(one.file, one.manifest, timing),
                max_batch=settings.max_batch, level=level, version_compatible=version_compatible,
                hardware_compatible=cast(HardwareCompatibility, hardware_compatible),
            )  # fmt: skip
            stored = tuple(two for two in stored_plans(folder, one.manifest, cache) if serves(two.plan, options))
            found, _ = find(stored, one.file, trt.__version__, gpu.compute_capability, gpu.name)
            if found is not None and not rebuild:
                _say(f"{what}: there already, {found.path}")
                continue
            sizes = f"{len(options.input_sizes)} input sizes, batches to {options.max_batch}"
            status = BuildStatus(_say, f"{what}: building, {sizes}")
            began = time.monotonic()
            try:
                made = make_plan(folder, one.file, options, cache, status, _say)
            except EngineError as error:
                failed = True
                _say(f"{what}: {error}")
                continue
            _say(f"{what}: {made.path}, {made.plan.size_bytes / 1e6:.0f} MB, {time.monotonic() - began:.0f} s")
    except (EngineError, RepositoryError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        raise _fail("stopped; run it again to go on", code=130) from None
    if failed:
        raise typer.Exit(2)


def _say(message: str) -> None:
    typer.echo(f"asfd: {message}", err=True)


def _fail(message: object, code: int = 2) -> typer.Exit:
    _say(str(message))
    return typer.Exit(code)
