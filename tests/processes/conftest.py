"""What several of these tests stand on."""

import pytest
from serving import Serving


@pytest.fixture
def start(tmp_path):
    """Start servers; whatever happens they are gone afterwards."""
    started = []

    def begin(models, **given):
        started.append(Serving(tmp_path, models, **given))
        return started[-1]

    yield begin
    for serving in started:
        serving.kill()
