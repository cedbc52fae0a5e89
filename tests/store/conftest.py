from __future__ import annotations

import pytest

from .made import laid_out, trained


@pytest.fixture
def state(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    return laid_out(source, trained()[1])
