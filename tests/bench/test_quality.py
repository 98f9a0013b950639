"""The released model's sizes by scheme, and that the measurement measures."""

import pytest
import torch

from bench.quality import FORMS, Form, first_logits, released_bytes
from bench.sides import demo_prompt
from engine.config import EngineConfig
from engine.loading import build_denoiser


@pytest.mark.parametrize(
    ("form", "most_gb"),
    [
        (Form(None, None), 51.65),
        (Form("int8", "int8"), 27.2),
        (Form("fp8", "fp8"), 27.2),
        (Form("int4", None), 18.9),
        (Form("int4", "int8"), 17.3),
        (Form("int4", "int8", "int8"), 15.9),
    ],
)
def test_the_released_model_has_room_where_it_has_to(form, most_gb):
    assert 0.97 * most_gb < released_bytes(form) / 1e9 <= most_gb


def test_every_form_moves_the_logits_a_little_and_a_worse_one_more():
    prompt, errors = demo_prompt("Count to 20"), []
    for form in FORMS:
        config = EngineConfig(device="cpu", quantized_cache=False, **form.options)
        logits = first_logits(build_denoiser(config), prompt)
        errors.append(logits)
    found = [float((each - errors[0]).norm() / errors[0].norm()) for each in errors]
    by_form = dict(zip(FORMS, found, strict=True))
    int8, fp8, int4 = (by_form[Form(each, each)] for each in ("int8", "fp8", "int4"))
    assert by_form[Form(None, None)] == 0 < int8 < fp8 < int4 < 0.3
    rest_int8, rest_fp8 = (by_form[Form(None, None, each)] for each in ("int8", "fp8"))
    assert 0 < rest_int8 < rest_fp8 < int4
    assert torch.isfinite(torch.stack(errors)).all()
