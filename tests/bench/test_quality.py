"""The released model's sizes by scheme, and that the measurement measures."""

import pytest
import torch

from bench.quality import FORMATS, first_logits, released_bytes
from bench.sides import demo_prompt
from engine.config import UNQUANTIZED, EngineConfig, Formats
from engine.loading import build_denoiser


@pytest.mark.parametrize(
    ("form", "most_gb"),
    [
        (UNQUANTIZED, 51.65),
        (Formats("int8", "int8"), 27.2),
        (Formats("fp8", "fp8"), 27.2),
        (Formats("int4"), 18.9),
        (Formats("int4", "int8"), 17.3),
        (Formats("int4", "int8", "int8"), 15.9),
    ],
)
def test_the_released_model_has_room_where_it_has_to(form, most_gb):
    assert 0.97 * most_gb < released_bytes(form) / 1e9 <= most_gb


def test_every_form_moves_the_logits_a_little_and_a_worse_one_more():
    prompt, errors = demo_prompt("Count to 20"), []
    for form in FORMATS:
        config = EngineConfig(device="cpu", quantized_cache=False, **form.options)
        logits = first_logits(build_denoiser(config), prompt)
        errors.append(logits)
    found = [float((each - errors[0]).norm() / errors[0].norm()) for each in errors]
    by_form = dict(zip(FORMATS, found, strict=True))
    int8, fp8, int4 = (by_form[Formats(each, each)] for each in ("int8", "fp8", "int4"))
    assert by_form[UNQUANTIZED] == 0 < int8 < fp8 < int4 < 0.3
    rest_int8, rest_fp8 = (by_form[Formats(rest=each)] for each in ("int8", "fp8"))
    assert 0 < rest_int8 < rest_fp8 < int4
    assert torch.isfinite(torch.stack(errors)).all()
