"""The authority that the cloud's stand-ins are signed by."""

import pytest

from tests.cloud.stand_in import Authority, make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))
