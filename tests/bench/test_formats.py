"""The released model's size in each weight format, and the effect of formats on logits."""

import pytest
import torch

from bench.formats import FORMATS, first_logits, released_bytes
from bench.sides import demo_prompt
from engine.config import UNQUANTIZED, EngineConfig, Formats
from engine.loading import build_denoiser


@pytest.mark.parametrize(
    ("formats", "most_gb"),
    [
        (UNQUANTIZED, 51.65),
        (Formats("int8", "int8"), 27.2),
        (Formats("fp8", "fp8"), 27.2),
        (Formats("int4"), 18.9),
        (Formats("int4", "int8"), 17.3),
        (Formats("int4", "int8", "int8"), 15.9),
    ],
)
def test_the_released_model_is_as_large_as_expected(formats, most_gb):
    assert 0.97 * most_gb < released_bytes(formats) / 1e9 <= most_gb


def test_every_format_changes_the_logits_a_little_and_coarser_ones_more():
    prompt, logits = demo_prompt("Count to 20"), []
    for formats in FORMATS:
        config = EngineConfig(device="cpu", quantized_cache=False, **formats.options)
        logits.append(first_logits(build_denoiser(config), prompt))
    relative = [float((each - logits[0]).norm() / logits[0].norm()) for each in logits]
    errors = dict(zip(FORMATS, relative, strict=True))
    int8, fp8, int4 = (errors[Formats(each, each)] for each in ("int8", "fp8", "int4"))
    assert errors[UNQUANTIZED] == 0 < int8 < fp8 < int4 < 0.3
    rest_int8, rest_fp8 = (errors[Formats(rest=each)] for each in ("int8", "fp8"))
    assert 0 < rest_int8 < rest_fp8 < int4
    assert torch.isfinite(torch.stack(logits)).all()
