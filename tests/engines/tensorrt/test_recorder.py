"""The fake refuses what TensorRT does not have, as the true bindings do."""

from __future__ import annotations

import pytest

from tests.engines.tensorrt.fake import FakeTensorRT


@pytest.fixture(params=["10.16", "11.4", "lean-11.4"])
def fake(request: pytest.FixtureRequest) -> FakeTensorRT:
    return FakeTensorRT(request.param)


def test_unknown_names_are_not_there(fake: FakeTensorRT) -> None:
    trt = fake.module
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    for owner, name in ((trt, "Severity"), (trt.DataType, "FLOAT8"), (runtime, "deserialize"), (trt, "Bulider")):
        with pytest.raises(AttributeError):
            getattr(owner, name)
    with pytest.raises(AttributeError):
        runtime.engine_host_code = True
    with pytest.raises(AttributeError):
        runtime.num_DLA_cores = 2  # read-only


def test_arguments_are_checked(fake: FakeTensorRT) -> None:
    trt = fake.module
    runtime = trt.Runtime(logger=trt.Logger())
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(fake.plan([(64, 64)], 2, version_compatible=True))
    context = engine.create_execution_context()
    for wrong in (
        lambda: context.set_tensor_address("images"),
        lambda: context.set_tensor_address("images", 1, 2),
        lambda: context.set_tensor_address("images", address=1),
        lambda: trt.ICudaEngine(),
        lambda: trt.Runtime(),
    ):
        with pytest.raises(TypeError):
            wrong()


def test_it_refuses_what_the_library_refuses(fake: FakeTensorRT) -> None:
    trt = fake.module
    runtime = trt.Runtime(trt.Logger())
    assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert runtime.deserialize_cuda_engine(fake.plan([(64, 64)], 2, version="10.0.1.6")) is None
    portable = fake.plan([(64, 64), (32, 96)], 2, version="10.0.1.6", version_compatible=True)
    assert runtime.deserialize_cuda_engine(portable) is None  # carries host code
    runtime.engine_host_code_allowed = True
    context = runtime.deserialize_cuda_engine(portable).create_execution_context()
    assert context.set_input_shape("images", (2, 64, 64, 3))
    assert not context.set_input_shape("images", (3, 64, 64, 3))
    assert not context.set_input_shape("images", (1, 32, 96, 3))
    assert not context.set_optimization_profile_async(2, 0)
    assert context.set_optimization_profile_async(1, 0)
    assert context.infer_shapes() == ["images"]
    assert context.set_input_shape("images", (1, 32, 96, 3))
    assert tuple(context.get_tensor_shape("boxes")) == (1, 750, 4)
    assert not context.execute_async_v3(0)  # no addresses
    for name in fake.tensors:
        assert context.set_tensor_address(name, 64)
    assert context.execute_async_v3(7)
    assert (fake.executions[0].profile, fake.executions[0].stream) == (1, 7)


def test_a_value_that_nobody_gave_is_asked_for() -> None:
    fake = FakeTensorRT("11.4")
    runtime = fake.module.Runtime(fake.module.Logger())
    with pytest.raises(AssertionError, match=r"no value for Runtime.max_threads"):
        _ = runtime.max_threads
    runtime.max_threads = 2
    assert runtime.max_threads == 2
    assert fake.values("Runtime.max_threads") == [2]
