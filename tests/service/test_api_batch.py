"""POST /detect/batch: an answer for each picture, one budget for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from tests.service.fake_model import write_fake_repository
from tests.service.stub_detector import StubDetector, picture, serving
from tests.service.test_api_runtime import wait_ready

Files = list[tuple[str, tuple[str, bytes, str]]]


def form(*pictures: bytes) -> Files:
    return [("image", (f"{k}.jpg", data, "image/jpeg")) for k, data in enumerate(pictures)]


def test_each_picture_has_its_answer_in_the_order_of_the_form(tmp_path: Path) -> None:
    settings = Settings(repository=write_fake_repository(tmp_path / "models"), cache_dir=tmp_path / "cache")
    with TestClient(create_app(settings)) as client:
        wait_ready(lambda: client.get("/health/ready").status_code == 200)
        sizes = [(200, 100), (100, 200), (64, 64), (300, 200), (64, 48)]
        answer = client.post(
            "/detect/batch?latency_ms=60000", files=form(*(picture(size=size) for size in sizes))
        ).json()  # fmt: skip
        results = answer["results"]
        assert [one["name"] for one in results] == [f"{k}.jpg" for k in range(5)]
        assert [(one["image"]["width"], one["image"]["height"]) for one in results] == sizes
        assert all(len(one["faces"]) == 2 for one in results)
        assert {one["model"]["variant"] for one in results} == {"d1"}
        assert answer["deadline_met"]
        metrics = client.get("/metrics").text
        assert "asfd_faces_per_image_count 5.0" in metrics
        assert 'asfd_request_latency_seconds_count{tier="custom"} 5.0' in metrics


def test_a_bad_picture_does_not_fail_the_others(tmp_path: Path) -> None:
    settings = Settings(repository=write_fake_repository(tmp_path / "models"), cache_dir=tmp_path / "cache")
    with TestClient(create_app(settings)) as client:
        wait_ready(lambda: client.get("/health/ready").status_code == 200)
        good, cut = picture(size=(200, 100)), picture(size=(200, 100), color=(9, 99, 3))[:-60]
        response = client.post("/detect/batch", files=form(good, b"no picture", b"", cut, good))
        assert response.status_code == 200
        results = response.json()["results"]
        assert ["problem" in one for one in results] == [False, True, True, True, False]
        assert [one["problem"]["status"] for one in results if "problem" in one] == [400, 400, 400]
        assert all(one["problem"]["request_id"] == response.json()["request_id"] for one in results[1:4])


def test_a_budget_that_none_can_keep_is_refused_for_all_or_answered_late(tmp_path: Path) -> None:
    settings = Settings(repository=write_fake_repository(tmp_path / "models"), cache_dir=tmp_path / "cache")
    with TestClient(create_app(settings)) as client:
        wait_ready(lambda: client.get("/health/ready").status_code == 200)
        pictures = form(*[picture(size=(200, 100))] * 3)
        refused = client.post("/detect/batch?latency_ms=0.01&on_infeasible=reject", files=pictures)
        assert refused.status_code == 503
        assert refused.json()["smallest_feasible_ms"] >= 1
        late = client.post("/detect/batch?latency_ms=0.01", files=pictures).json()
        assert not late["deadline_met"]
        assert [len(one["faces"]) for one in late["results"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("files", "query", "status", "sentence"),
    [
        (form(*[picture()] * 4), "", 422, "more than 3 pictures"),
        ([("photo", ("a.jpg", picture(), "image/jpeg"))], "", 422, "'photo' is not known"),
        (form(picture()), "return=image", 422, "JSON only"),
        (form(picture()), "tier=none", 422, "no tier"),
        (form(picture(), bytes(5000)), "", 413, "4096 bytes"),
        (form(*[bytes(4000)] * 19), "", 413, "4500 bytes"),  # and what part headers may add
    ],
)
def test_what_is_wrong_with_the_request_as_a_whole(files: Files, query: str, status: int, sentence: str) -> None:
    limits: dict[str, Any] = {"max_upload_bytes": 4096, "max_batch_upload_bytes": 4500}
    limits["max_batch_pictures"] = 20 if status == 413 else 3
    with serving(**limits) as client:
        response = client.post(f"/detect/batch?{query}", files=files)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
        assert sentence in response.json()["detail"]


def test_a_single_body_is_told_where_to_go() -> None:
    with serving() as client:
        alone = client.post("/detect/batch", content=picture(), headers={"Content-Type": "image/jpeg"})
        assert alone.status_code == 415
        assert "-F image=@one.jpg -F image=@two.jpg" in alone.json()["detail"]
        two = client.post("/detect", files=form(picture(), picture()))
        assert two.status_code == 422
        assert "/detect/batch" in two.json()["detail"]


def test_no_more_pictures_than_may_be_inside_at_once() -> None:
    with serving(queue_limit=2) as client:
        assert client.post("/detect/batch", files=form(*[picture()] * 3)).status_code == 422
        assert client.post("/detect/batch", files=form(*[picture()] * 2)).status_code == 200


def test_while_the_service_is_not_ready_nothing_is_read() -> None:
    with serving(StubDetector(ready=False, status="loading")) as client:
        assert client.post("/detect/batch", files=form(picture())).status_code == 503
