"""What looks for leaked secrets finds them."""

import base64
import io
import zipfile

import pytest

from tests.cloud.leaks import leaked

SECRET = "entra~secret~0123456789abcdef"


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", content)
    return buffer.getvalue()


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
@pytest.mark.parametrize("after", ["", "x", "xy"])
def test_a_secret_is_found_plain_and_in_base64_wherever_it_stands(before: str, after: str) -> None:
    text = f"{before}{SECRET}{after}".encode()
    places = [("plain", text), ("base64", base64.b64encode(text)), ("zip", zipped(text)), ("clean", b"nothing")]
    assert leaked([SECRET], places) == ["plain", "base64", "zip:inner"]
