"""The batches of a daemon: the folder of its files and batches."""

import pytest

from server.batches.engine_batches import folder_name


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("tdpipe-demo", "tdpipe-demo"),
        ("meta-llama/Llama-3.1-8B", "meta-llama%2FLlama-3.1-8B"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("../../etc", "..%2F..%2Fetc"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("a\0b", "a%00b"),
    ],
)
def test_no_models_name_leads_out_of_the_folder_of_batches(model: str, folder: str) -> None:
    assert folder_name(model) == folder
