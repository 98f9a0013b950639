import pytest
import torch

from engine.denoise.sampler import (
    SamplerConfig,
    UnsupportedSamplerError,
    accept,
)
from engine.messages import Sampling


def test_temperature_falls_linearly_from_t_max_to_just_above_t_min():
    config = SamplerConfig(max_denoising_steps=4, t_min=0.4, t_max=0.8)
    temperatures = [config.temperature(step) for step in range(4)]
    assert temperatures == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_positions_are_accepted_until_the_entropy_before_them_exceeds_the_bound():
    first = [0.5, 0.01, 0.2, 0.06, 0.04]  # ascending: 0.01 0.04 0.06 0.2 0.5
    second = [0.01, 0.02, 0.03, 0.04, 0.5]
    config = SamplerConfig(entropy_bound=0.11001)
    accepted = accept(torch.tensor([first, second]), [config, config])
    assert accepted.tolist() == [[False, True, True, True, True], [True] * 5]


def test_the_least_uncertain_position_is_always_accepted():
    accepted = accept(torch.tensor([[5.0, 4.0, 6.0]]), [SamplerConfig(entropy_bound=0.1)])
    assert accepted.tolist() == [[False, True, False]]


def test_each_canvas_has_its_own_entropy_bound():
    entropy = torch.tensor([[0.3, 0.1, 0.2]] * 3)
    configs = [SamplerConfig(entropy_bound=bound) for bound in (0.0, 0.15, 1.0)]
    accepted = accept(entropy, configs)
    assert accepted.tolist() == [[False, True, False], [False, True, True], [True] * 3]
    for alone, config in zip(accepted, configs, strict=True):
        assert torch.equal(accept(entropy[:1], [config])[0], alone)


def test_numbers_of_a_request_replace_those_of_the_checkpoint_and_others_stay():
    config = SamplerConfig(t_min=0.3, end_tokens=frozenset({9}))
    assert config.for_request(Sampling(seed=0)) == config
    own = Sampling(
        seed=0, max_denoising_steps=4, entropy_bound=0.0, confidence_threshold=0.0, ignore_eos=True
    )
    assert config.for_request(own) == SamplerConfig(
        max_denoising_steps=4, entropy_bound=0.0, confidence_threshold=0.0, t_min=0.3
    )


def test_a_request_adds_its_end_tokens_to_those_of_the_checkpoint():
    config = SamplerConfig(end_tokens=frozenset({9}))
    sampling = Sampling(seed=0, end_tokens=[8], stop_token_ids=[7])
    assert config.for_request(sampling).end_tokens == {7, 8, 9}
    ignoring = Sampling(seed=0, end_tokens=[8], stop_token_ids=[7], ignore_eos=True)
    assert config.for_request(ignoring).end_tokens == {7}


def test_numbers_missing_in_generation_config_are_those_of_the_released_model():
    config = SamplerConfig.from_generation_config(
        {
            "eos_token_id": [1, 106],
            "pad_token_id": 0,
            "max_denoising_steps": 24,
            "t_min": None,
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.2},
        }
    )
    assert config == SamplerConfig(
        max_denoising_steps=24, entropy_bound=0.2, end_tokens=frozenset({1, 106}), padding=0
    )


def test_a_single_end_token_needs_no_list():
    config = SamplerConfig.from_generation_config({"eos_token_id": 1})
    assert config.end_tokens == {1}


def test_another_sampler_is_refused_and_named():
    with pytest.raises(UnsupportedSamplerError, match="'MaskedSamplerConfig'; supported"):
        SamplerConfig.from_generation_config(
            {"sampler_config": {"_cls_name": "MaskedSamplerConfig"}}
        )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"eos_token_id": "1"}, "eos_token_id is '1': Input should be a valid integer"),
        ({"eos_token_id": [1, 1.5]}, "eos_token_id is 1.5"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": 2**40}, "eos_token_id is 1099511627776"),
        ({"max_denoising_steps": 0}, "max_denoising_steps is 0: Input should be greater than"),
        ({"max_denoising_steps": 48.0}, "max_denoising_steps is 48.0"),
        ({"max_denoising_steps": True}, "max_denoising_steps is True"),
        ({"max_denoising_steps": 5000}, "max_denoising_steps is 5000: .* or equal to 1024"),
        ({"t_min": float("nan")}, "t_min is nan"),
        ({"t_max": 1e39}, "t_max is 1e\\+39"),
        ({"confidence_threshold": 1e39}, "confidence_threshold is 1e\\+39"),
        ({"t_min": -0.1}, "t_min is -0.1"),
        ({"t_max": 0}, "t_max is 0: Input should be greater than 0"),
        ({"t_max": "0.8"}, "t_max is '0.8'"),
        ({"t_min": 0.9, "t_max": 0.5}, "t_max is 0.5, which is below t_min, 0.9"),
        ({"stability_threshold": -1}, "stability_threshold is -1"),
        ({"confidence_threshold": float("inf")}, "confidence_threshold is inf"),
        ({"sampler_config": {"entropy_bound": -1}}, "sampler_config.entropy_bound is -1"),
        ({"sampler_config": {"entropy_bout": 1}}, "sampler_config.entropy_bout is 1: Extra"),
        ({"sampler_config": 5}, "sampler_config is 5; supported"),
    ],
)
def test_a_value_that_no_sampler_can_have_is_refused_by_its_key(values, named):
    with pytest.raises(UnsupportedSamplerError, match=f"^generation_config.json: {named}"):
        SamplerConfig.from_generation_config(values)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UnsupportedSamplerError, match=r"max_denoising_steps is 0.*eos_token_id is"):
        SamplerConfig.from_generation_config({"max_denoising_steps": 0, "eos_token_id": "1"})


def test_whole_numbers_are_temperatures_too():
    config = SamplerConfig.from_generation_config({"t_min": 1, "t_max": 1, "do_sample": True})
    assert (config.t_min, config.t_max) == (1, 1)
