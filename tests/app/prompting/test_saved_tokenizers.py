"""Tokenizers and templates as people save them, compared with what Transformers reads."""

import json
import logging
import shutil

import pytest
from transformers import AutoTokenizer

from app.prompting.conversation import Turn
from app.prompting.prompt import PromptBuilder
from app.prompting.template import TemplateUnreadableError
from engine.config import DEMO_MODEL_PATH
from engine.sizing.model_files import ModelFilesError
from tests.engine.sizing.test_model_files import POINTER

BOS = 2
QUESTION = [Turn("user", "Hello")]
# What tokenizer.json has if the tokenizer puts the beginning-of-text token in front itself.
BOS_FIRST = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
}


@pytest.fixture
def folder(tmp_path):
    """The demo model's files without its weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return shutil.copytree(DEMO_MODEL_PATH, tmp_path / "model", ignore=ignored)


def change(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def prompts(folder):
    return PromptBuilder(str(folder))


@pytest.mark.parametrize("post_processor", [None, BOS_FIRST])
@pytest.mark.parametrize("adds", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_a_chat_has_one_beginning_of_text_token_as_in_transformers(folder, post_processor, adds):
    change(folder, "tokenizer.json", post_processor=post_processor)
    change(folder, "tokenizer_config.json", **adds)
    messages = [{"role": "user", "content": "Hello"}]
    reference = AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    tokens = prompts(folder).chat(QUESTION).tokens
    assert tokens == expected
    assert tokens.count(BOS) == 1


@pytest.mark.parametrize("adds", [{}, {"add_bos_token": True}, {"add_bos_token": None}])
@pytest.mark.parametrize("post_processor", [None, BOS_FIRST])
def test_a_raw_prompt_begins_with_one_beginning_of_text_token(folder, post_processor, adds):
    change(folder, "tokenizer.json", post_processor=post_processor)
    change(folder, "tokenizer_config.json", **adds)
    tokens = prompts(folder).raw("Hello").tokens
    assert tokens[0] == BOS
    assert tokens.count(BOS) == 1


@pytest.mark.parametrize("post_processor", [None, BOS_FIRST])
def test_without_add_bos_token_tokenizer_json_decides_as_in_transformers(folder, post_processor):
    change(folder, "tokenizer.json", post_processor=post_processor)
    change(folder, "tokenizer_config.json", add_bos_token=False)
    tokens = prompts(folder).raw("Hello").tokens
    assert tokens == AutoTokenizer.from_pretrained(folder)("Hello")["input_ids"]
    assert (tokens[0] == BOS) == (post_processor is not None)


def test_a_model_without_a_beginning_of_text_token_has_none(folder):
    change(folder, "tokenizer_config.json", bos_token=None)
    assert BOS not in prompts(folder).raw("Hello").tokens


def test_a_special_token_may_be_an_object(folder):
    expected = prompts(folder).raw("Hello").tokens
    change(folder, "tokenizer_config.json", bos_token={"content": "<bos>", "lstrip": False})
    assert prompts(folder).raw("Hello").tokens == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("add_bos_token", "yes", "add_bos_token is 'yes'; it must be true or false"),
        ("add_bos_token", 1, "add_bos_token is 1; it must be true or false"),
        ("bos_token", 2, "bos_token is 2; it must be a token's text"),
        ("eos_token", ["<eos>"], r"eos_token is \['<eos>'\]; it must be a token's text"),
        ("pad_token", {"content": 0}, "pad_token is {'content': 0}; it must be a token's text"),
        ("bos_token", "<s>", "bos_token is '<s>', which is not a token of tokenizer.json"),
    ],
)
def test_a_wrong_value_of_the_tokenizer_is_refused_by_its_key(folder, key, value, message):
    change(folder, "tokenizer_config.json", **{key: value})
    with pytest.raises(ModelFilesError, match=f"tokenizer_config.json: {message}"):
        prompts(folder)


def test_prompts_are_never_cut_or_filled_up_as_training_texts_were(folder):
    expected = prompts(folder).raw("Hello " * 20).tokens
    change(
        folder,
        "tokenizer.json",
        truncation={
            "direction": "Right",
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    )
    assert prompts(folder).raw("Hello " * 20).tokens == expected


@pytest.mark.parametrize("data", [POINTER, b"", b'{"version"', b"[]"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_file_is_named_in_one_line(folder, name, data):
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=name) as caught:
        prompts(folder)
    assert "\n" not in str(caught.value)
    assert data is not POINTER or "git lfs pull" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFilesError, match=f"{name} is missing"):
        prompts(folder)


def test_a_folder_with_only_an_adapter_is_refused_before_its_tokenizer_is_missed(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFilesError, match="holds only an adapter and no model"):
        prompts(tmp_path)


def add_token(folder, text, token):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    like = dict(tokenizer["added_tokens"][0], id=token, content=text)
    change(folder, "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], like])


def test_tokens_that_the_model_lacks_are_logged_once_with_their_ids(folder, caplog):
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    with caplog.at_level(logging.WARNING):
        prompts(folder)
        assert caplog.text == ""
        for number in range(3):
            add_token(folder, f"<|more{number}|>", size + number)
        prompts(folder)
    (record,) = caplog.records
    named = f"3 tokens that the model lacks, with ids from {size} to {size + 2}"
    assert named in record.getMessage()
    assert f"vocab_size is {size}" in record.getMessage()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("line 1\n{% if %}", "line 2: Expected an expression"),
        ("{{ messages | no_such_filter }}", "line 1: No filter named 'no_such_filter'"),
        ("{% for x in y %}", "line 1: Unexpected end of template"),
    ],
)
def test_a_template_that_does_not_compile_is_named_with_its_file_and_line(folder, template, reason):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(TemplateUnreadableError) as caught:
        prompts(folder)
    file = folder / "chat_template.jinja"
    text = str(caught.value)
    assert text.startswith(f"{file}: the chat template 'default' does not compile: {reason}")
    assert "\n" not in text


def test_a_template_in_tokenizer_config_json_is_named_with_that_file(folder):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{% if"}]
    change(folder, "tokenizer_config.json", chat_template=named)
    with pytest.raises(TemplateUnreadableError, match=r"tokenizer_config\.json: .*'tool_use' does"):
        prompts(folder)


@pytest.mark.parametrize("template", [5, {"default": "x"}, ["x"], [{"name": "default"}]])
def test_a_template_of_another_type_is_refused(folder, template):
    (folder / "chat_template.jinja").unlink()
    change(folder, "tokenizer_config.json", chat_template=template)
    with pytest.raises(TemplateUnreadableError, match="chat_template is neither a text nor a list"):
        prompts(folder)


@pytest.mark.parametrize("data", [POINTER, b"\xff\xfe\xff"])
def test_a_damaged_template_is_named_in_one_line(folder, data):
    (folder / "chat_template.jinja").write_bytes(data)
    with pytest.raises(TemplateUnreadableError, match=r"chat_template\.jinja") as caught:
        prompts(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_size": "16"}, "patch_size is '16'; it must be a whole number from 1"),
        ({"max_soft_tokens": 0}, "max_soft_tokens is 0"),
        ({"pooling_kernel_size": 1.5}, "pooling_kernel_size is 1.5"),
        ({"resample": 99}, "resample is 99; it must be a whole number from 0 to"),
    ],
)
def test_an_impossible_image_processor_is_refused_by_its_key(folder, config, message):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesError, match=f"the image processor: {message}"):
        prompts(folder)
