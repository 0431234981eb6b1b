"""The workshop, once for all tests of engines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.engines.workshop import Workshop
from tests.export.conftest import CONFIG, lively


@pytest.fixture(scope="session")
def shop(crowd: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), lively(CONFIG, crowd), crowd)
