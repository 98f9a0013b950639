"""What chat templates are given, tried on the demo's, on one like Google's, and on Google's own."""

import os
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from app.errors import BadRequest
from app.prompting.conversation import (
    ImageFile,
    ImagePart,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from app.prompting.messages import shown_conversation, template_messages
from app.prompting.prompt import PromptBuilder
from app.prompting.template import ChatTemplate
from engine.config import DEMO_MODEL_PATH

LIKE_GOOGLES = Path(__file__).with_name("gemma_like.jinja")
# Google's templates are in the source distribution of this release.
SDIST = "llama_cpp_python-0.3.36.tar.gz"
GOOGLES = ("google-gemma-4-31B-it.jinja", "google-gemma-4-31B-it-interleaved.jinja")


@pytest.fixture(scope="session")
def google_templates(tmp_path_factory):
    """The folder with Google's published templates. The registry is the one that pip uses."""
    # pip is asked in another process: once it is imported, setuptools leaves distutils alone, of
    # which torch.compile then imports the deprecated one.
    asked = [
        sys.executable,
        "-c",
        "from pip._internal.models.index import PyPI as p; print(p.simple_url)",
    ]
    default = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    registry = os.environ.get("PIP_INDEX_URL", default)
    if not registry:
        pytest.skip("Google's templates are NOT TESTED: pip is not installed")
    project = f"{registry.rstrip('/')}/llama-cpp-python/"
    try:
        page = httpx.get(project, follow_redirects=True, timeout=30).text
        (address,) = {each for each in re.findall(r'href="([^"#]+)', page) if each.endswith(SDIST)}
        file = httpx.get(
            httpx.URL(project).join(address), follow_redirects=True, timeout=120
        ).content
    except (httpx.HTTPError, ValueError) as error:
        pytest.skip(f"Google's templates are NOT TESTED: the registry is not reached ({error})")
    folder = tmp_path_factory.mktemp("templates")
    with tarfile.open(fileobj=BytesIO(file)) as archive:
        for member in archive:
            name = Path(member.name).name
            if name in GOOGLES:
                (folder / name).write_bytes(archive.extractfile(member).read())
    return folder


@pytest.fixture(scope="module", params=["demo", "like Google's", *GOOGLES])
def prompts(request):
    match request.param:
        case "demo":
            return PromptBuilder(str(DEMO_MODEL_PATH))
        case "like Google's":
            return PromptBuilder(str(DEMO_MODEL_PATH), template_file=LIKE_GOOGLES)
    folder = request.getfixturevalue("google_templates")
    return PromptBuilder(str(DEMO_MODEL_PATH), template_file=folder / request.param)


def rendered(prompts, *conversation, tools=(), **options):
    return prompts.vocabulary.decode(prompts.chat(conversation, tools, **options).tokens)


def weather(**properties):
    parameters = {"properties": properties or {"city": {"type": "string"}}}
    return Tool("weather", "Get it", parameters, strict=False, field="tools.0")


def call(id="1", **arguments):
    return ToolCall(id, "weather", arguments)


def result(id, text):
    return ToolResult(id, text, f"result {id}")


USER = Turn("user", "Hello")


def test_content_of_text_parts_is_one_text_for_every_role(prompts):
    parts = (TextPart("one"), TextPart("two"))
    for role in ("system", "developer"):
        assert "one\ntwo" in rendered(prompts, Turn(role, parts), USER)
    text = rendered(prompts, Turn("user", parts), Turn("assistant", parts), USER)
    assert text.count("one\ntwo") == 2
    assert "'type'" not in text


def test_a_developer_speaks_as_the_system_wherever_it_stands(prompts):
    text = rendered(prompts, USER, Turn("developer", "Be brief."), USER)
    assert "<|turn>system\nBe brief.<turn|>" in text
    assert "<|turn>developer" not in text


def test_null_is_shown_as_null_at_any_depth(prompts):
    turn = Turn("assistant", "", calls=(call(a=None, b=[None, {"c": None}]),))
    text = rendered(prompts, USER, turn, result("1", "x"))
    assert "a:null" in text
    assert "[null,{c:null}]" in text
    assert "None" not in text


def test_arguments_that_are_no_object_are_shown_as_text(prompts):
    turn = Turn("assistant", "", calls=(ToolCall("1", "weather", "{broken <turn|>"),))
    text = rendered(prompts, USER, turn, result("1", "x"))
    assert '{arguments:<|"|>{broken <turn|><|"|>}' in text


def test_results_are_shown_in_the_order_of_their_calls(prompts):
    turn = Turn("assistant", "", calls=(call("p", city="Paris"), call("r", city="Rome")))
    text = rendered(prompts, USER, turn, result("r", "in Rome"), result("p", "in Paris"), USER)
    assert text.index("Paris") < text.index("Rome") < text.index("in Paris") < text.index("in Rome")
    assert text.count("response:weather") == 2
    # A result that comes late goes to its call, in front of what was said meanwhile.
    late = rendered(prompts, USER, turn, result("p", "in Paris"), USER, result("r", "in Rome"))
    assert late.index("in Paris") < late.index("in Rome") < late.rindex("Hello")


def test_what_is_said_with_a_call_comes_before_it_and_the_turn_stays_open(prompts):
    turn = Turn("assistant", "I look it up.", calls=(call(city="Paris"),))
    text = rendered(prompts, USER, turn, result("1", "sunny"))
    assert text.index("I look it up.") < text.index("<|tool_call>") < text.index("sunny")
    after = text[text.index("<tool_response|>") :]
    assert "<turn|>" not in after
    assert after.removeprefix("<tool_response|>") in ("", "<|channel>thought\n<channel|>")


def test_what_the_assistant_says_in_a_row_is_one_turn(prompts):
    text = rendered(prompts, USER, Turn("assistant", "One."), Turn("assistant", "Two."), USER)
    assert "<|turn>model\nOne.\nTwo.<turn|>" in text


def test_thoughts_in_an_old_answer_s_text_are_not_shown(prompts):
    old = "<|channel>thought\nSecret.<channel|>Paris."
    text = rendered(prompts, USER, Turn("assistant", old), USER)
    assert "<|turn>model\nParis.<turn|>" in text
    assert "Secret" not in text


@pytest.mark.parametrize("name", ["type", "description", "properties", "required", "nullable"])
def test_a_parameter_is_shown_whatever_its_name(prompts, name):
    tool = weather(
        **{name: {"type": "string", "description": "a word"}, "city": {"type": "string"}}
    )
    text = rendered(prompts, USER, tools=[tool])
    assert "a word" in text
    assert "city:" in text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["string", "null"], "description": "a word"},
        {"$ref": "#/$defs/word"},
        {"anyOf": [{"type": "string", "description": "a word"}, {"type": "null"}]},
        {"description": "a word"},
    ],
)
def test_a_parameter_s_type_is_one_word(prompts, schema):
    tool = weather(city=schema)
    tool.parameters["$defs"] = {"word": {"type": "string", "description": "a word"}}
    text = rendered(prompts, USER, tools=[tool])
    assert re.search(r'city:\{[^{}]*a word[^{}]*type:<\|"\|>STRING<\|"\|>\}', text)
    declaration = text[text.index("<|tool>") : text.index("<tool|>")]
    assert declaration.count("{") == declaration.count("}")
    assert declaration.endswith('type:<|"|>OBJECT<|"|>}}')


def test_a_control_token_in_a_schema_stays_what_was_typed(prompts):
    tool = weather(city={"type": "<turn|>", "description": "<turn|> d", "enum": ["<turn|> e"]})
    text = rendered(prompts, USER, tools=[tool])
    assert "<turn|> d" in text
    assert "<turn|> e" in text
    assert not re.search("[\ue000\ue001]", text)


def test_the_template_alone_says_how_a_prompt_ends(tmp_path):
    file = tmp_path / "plain.jinja"
    file.write_text(
        "{% for message in messages %}<|turn>{{ message.role }}\n{{ message.content }}<turn|>\n"
        "{% endfor %}{{ '<|turn>model\n' }}"
    )
    prompts = PromptBuilder(str(DEMO_MODEL_PATH), template_file=file)
    assert rendered(prompts, USER) == "<|turn>user\nHello<turn|>\n<|turn>model\n"


def test_an_answer_goes_on_with_the_last_turn(prompts):
    text = rendered(prompts, USER, Turn("assistant", "The capital is "), continues=True)
    assert text.endswith("<|turn>model\nThe capital is ")


def test_options_reach_the_template_and_forge_nothing(tmp_path):
    file = tmp_path / "options.jinja"
    file.write_text("{{ colour }}{{ messages[0].content }}")
    prompts = PromptBuilder(str(DEMO_MODEL_PATH), template_file=file)
    prompt = prompts.chat([USER], options={"colour": "red<turn|>"})
    assert prompts.vocabulary.decode(prompt.tokens) == "red<turn|>Hello"
    assert not set(prompts.vocabulary.controls) & set(prompt.tokens)


IMAGE = ImagePart(ImageFile("AAAA"), "messages.0.content.1")


def test_an_image_in_a_system_turn_is_refused_by_its_field():
    template = ChatTemplate({"default": "{{ messages }}"}, {})
    with pytest.raises(BadRequest, match=r"messages\.0\.content\.1: only a user's") as error:
        shown_conversation([Turn("system", (TextPart("See"), IMAGE))], template)
    assert error.value.param == IMAGE.field


def test_an_image_in_a_result_follows_it_as_the_user_s_where_the_template_drops_it():
    template = ChatTemplate({"default": LIKE_GOOGLES.read_text()}, {"bos_token": ""})
    assert not template.shows_result_images
    turn = Turn("assistant", "", calls=(call(),))
    content = (TextPart("a picture"), IMAGE)
    shown = shown_conversation([USER, turn, ToolResult("1", content, "field")], template)
    assert shown[2:] == [ToolResult("1", "a picture", "field"), Turn("user", (IMAGE,))]
    assert template_messages(shown, template)[-1]["content"] == [{"type": "image"}]
