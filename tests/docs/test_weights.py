"""docs/weights.md agrees with the formats that loading makes."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from engine.sizing.weights import INT4_GROUP, SCALE_TYPE, Count
from engine.weights.quantization import FromDense, quantize

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()


@pytest.mark.parametrize("scheme", get_args(FromDense))
def test_the_scales_of_each_format_are_those_that_are_made(scheme):
    row = re.search(rf"^\| `{scheme}`.*? \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert row is not None
    scales, bits = row.groups()
    made = quantize(torch.ones(4, 2 * INT4_GROUP), scheme, torch.device("cpu"))
    each = f"group of {INT4_GROUP}" if made.scales.shape[-1] > 1 else "row"
    assert str(made.scales.dtype) == f"torch.{SCALE_TYPE}"
    assert re.match(rf"{SCALE_TYPE}, one per {each}\b", scales), scales
    elements = 10**6
    assert float(bits) == Count(elements=elements).nbytes(scheme, 2) * 8 / elements
