"""ONNX Runtime's engine: what the CUDA session is asked for, that it never quietly runs elsewhere, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.engines import ort
from service.engines.base import DeviceLostError, EngineError, OutOfMemoryError
from service.engines.cuda import LASTING
from service.engines.ort import CPU_KIND, CUDA_KIND, CudaOptions, OnnxEngine, bound_run, has_cuda, open_cpu, open_cuda
from tests.service.fake_model import FACES, SCORES, write_fake_repository

# The names in onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc; the provider refuses any other.
OPTIONS = {
    "device_id", "has_user_compute_stream", "user_compute_stream", "gpu_mem_limit", "arena_extend_strategy",
    "cudnn_conv_algo_search", "do_copy_in_default_stream", "gpu_external_alloc", "gpu_external_free",
    "gpu_external_empty_cache", "cudnn_conv_use_max_workspace", "enable_cuda_graph", "cudnn_conv1d_pad_to_nc1d",
    "tunable_op_enable", "tunable_op_tuning_enable", "tunable_op_max_tuning_duration_ms",
    "enable_skip_layer_norm_strict_mode", "prefer_nhwc", "use_ep_level_unified_stream", "use_tf32",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_repository(tmp_path_factory.mktemp("models"), ("d0",)) / "d0" / "d0.onnx"


def test_options_are_words_that_the_provider_knows() -> None:
    plain = CudaOptions().provider()
    assert set(plain) <= OPTIONS
    assert all(isinstance(value, str) for value in plain.values())
    assert "gpu_mem_limit" not in plain
    assert plain["cudnn_conv_algo_search"] == "HEURISTIC"
    limited = CudaOptions(memory_limit=2**31, exhaustive=True).provider()
    assert (limited["gpu_mem_limit"], limited["cudnn_conv_algo_search"]) == ("2147483648", "EXHAUSTIVE")
    assert set(limited) <= OPTIONS


@pytest.mark.skipif(has_cuda(), reason="this ONNX Runtime has CUDA")
def test_without_cuda_in_it_that_is_said(graph: Path) -> None:
    with pytest.raises(EngineError, match=r"d0\.onnx: .*built without CUDA: .*pip install onnxruntime-gpu"):
        open_cuda("d0", graph)


@pytest.mark.skipif(has_cuda(), reason="this ONNX Runtime has CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_the_cpu_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself only warns, here as where CUDA's libraries are missing."""
    monkeypatch.setattr(ort, "has_cuda", lambda: True)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(EngineError, match=r"d0\.onnx: .*could not start its CUDA provider"):
        open_cuda("d0", graph)


def test_a_bound_run_is_the_run(graph: Path) -> None:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    run = bound_run(session, "cpu")
    for batch in (1, 3):
        images = np.random.default_rng(0).integers(0, 256, (batch, 64, 128, 3), dtype=np.uint8)
        for images_as_given in (images, images[:, :, ::-1]):  # which is not contiguous
            counts, boxes, scores = run(images_as_given)
            np.testing.assert_array_equal(counts, [2] * batch)
            np.testing.assert_array_equal(boxes[:, :2], np.stack([FACES] * batch))
            np.testing.assert_array_equal(scores[:, :2], np.stack([SCORES] * batch))


class Failing:
    """A session that fails as ONNX Runtime's sessions do."""

    def __init__(self, graph: Path, error: Exception) -> None:
        self._session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self._error = error

    def get_inputs(self) -> object:
        return self._session.get_inputs()

    def get_outputs(self) -> object:
        return self._session.get_outputs()

    def io_binding(self) -> object:
        raise self._error

    def run(self, *_: object) -> object:
        raise self._error


@pytest.mark.parametrize("kind", [CPU_KIND, CUDA_KIND])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; file=x.cc", DeviceLostError),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED; CUDA failure 719: unspecified launch", DeviceLostError),
        ("CUDA failure 2: out of memory ; GPU=0", OutOfMemoryError),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", OutOfMemoryError),
        ("BFCArena::AllocateRawInternal Available memory of 8 is smaller than requested bytes of 9", OutOfMemoryError),
        ("CUDNN failure 4002: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", OutOfMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemoryError),
        ("std::bad_alloc", OutOfMemoryError),
        ("CUDA failure 1: invalid argument", EngineError),
        ("Got invalid dimensions for input: images", EngineError),
    ],
)
def test_failures_are_told_apart_by_their_words(graph: Path, kind: str, text: str, error: type[Exception]) -> None:
    engine = OnnxEngine("d0", graph, kind, Failing(graph, RuntimeError(text)), 0)
    images = np.zeros((1, 64, 64, 3), np.uint8)
    if kind == CUDA_KIND:  # which would first put the pictures on a device that is not here
        engine._run = Failing(graph, RuntimeError(text)).run  # type: ignore[assignment]
    with pytest.raises(error, match=r"d0\.onnx failed on input \(1, 64, 64, 3\)") as raised:
        engine.run(images)
    assert type(raised.value) is error


def test_every_lasting_error_is_recognised(graph: Path) -> None:
    for number in LASTING.values():
        failing = Failing(graph, RuntimeError(f"CUDA failure {number}: something"))
        engine = OnnxEngine("d0", graph, CPU_KIND, failing, 0)
        with pytest.raises(DeviceLostError):
            engine.run(np.zeros((1, 64, 64, 3), np.uint8))


def test_memory_is_never_less_than_the_file(graph: Path) -> None:
    engine = open_cpu("d0", graph, threads=1)
    assert engine.memory_bytes() >= graph.stat().st_size
    engine.close()


@pytest.mark.gpu
def test_a_session_on_a_gpu(graph: Path) -> None:
    if not has_cuda():
        pytest.skip("the installed onnxruntime is built without CUDA: pip install onnxruntime-gpu")
    engine = open_cuda("d0", graph, CudaOptions(memory_limit=2**30))
    (found,) = engine.run(np.zeros((1, 64, 64, 3), np.uint8))
    np.testing.assert_array_equal(found.boxes, FACES)
    engine.close()
