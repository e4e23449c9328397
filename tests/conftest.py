"""What the tests share."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # test this checkout, whatever is installed


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test draws the same global random numbers, whichever tests run beside it."""
    torch.manual_seed(0)


@pytest.fixture
def lrp_data() -> Path:
    """The folder of real data sets and weights named by LRP_DATA; without it the test is skipped."""
    folder = os.environ.get("LRP_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set LRP_DATA to the folder that holds it")
    return Path(folder)
