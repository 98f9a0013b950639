"""Images in messages, sent with the official SDK to a real server with a vision model."""

import socket
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from demo.network import new_config, new_model
from demo.tokenizer import build_tokenizer
from demo.train import save
from tests.engine.weights.test_gguf_file import q8_0, write
from tests.parity.tiny_models import write_image_processor
from tests.pictures import data_url, noise_picture

MOST_TOKENS = 70  # of one image


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    """The folder of a model that reads images."""
    folder = tmp_path_factory.mktemp("vision")
    save(new_model(0, new_config(image_positions=256)), build_tokenizer(0, examples=4000), folder)
    write_image_processor(folder, patch_size=16)
    return folder


@pytest.fixture(scope="module")
def vision_client(vision_model, shared_server):
    with sdk(shared_server(EASEL_MODEL=str(vision_model))) as client:
        yield client


@pytest.fixture
def gguf_client(vision_model, start_server, tmp_path):
    file = tmp_path / "model.gguf"
    write(file, vision_model, q8_0)
    server = start_server(EASEL_MODEL=str(vision_model), EASEL_GGUF=str(file)).wait_until_ready()
    with sdk(server) as client:
        yield client
    assert server.stop() == 0


def sdk(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client, *images, question="What is this?", **options):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    content = [*parts, {"type": "text", "text": question}]
    options = {"seed": 0, "max_tokens": 32, **options}
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=None, messages=messages, **options)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_of_each_format_is_read_as_tokens(vision_client, kind):
    without = ask(vision_client).usage.prompt_tokens
    with_picture = ask(vision_client, data_url(noise_picture(60, 80), kind)).usage.prompt_tokens
    assert 10 < with_picture - without <= MOST_TOKENS + 2


def test_the_content_of_the_picture_changes_the_answer(vision_client):
    first, again, other = (
        ask(vision_client, data_url(noise_picture(60, 80, seed=seed))) for seed in (0, 0, 1)
    )
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > MOST_TOKENS // 2
    assert other.usage.prompt_tokens_details.cached_tokens < MOST_TOKENS // 2


def test_the_responses_api_reads_the_same_picture_and_keeps_it(vision_client):
    url = data_url(noise_picture(60, 80))
    chat = ask(vision_client, url)
    picture = {"type": "input_image", "image_url": url, "detail": "auto"}
    content = [picture, {"type": "input_text", "text": "What is this?"}]
    options = {"max_output_tokens": 32, "extra_body": {"seed": 0}}
    first = vision_client.responses.create(input=[{"role": "user", "content": content}], **options)
    assert first.usage.input_tokens == chat.usage.prompt_tokens
    assert first.output_text == chat.choices[0].message.content
    (item,) = vision_client.responses.input_items.list(first.id).data
    assert [part.to_dict() for part in item.content] == content
    second = vision_client.responses.create(input="And?", previous_response_id=first.id, **options)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > MOST_TOKENS // 2


def test_a_typed_placeholder_is_text_and_takes_no_picture(vision_client):
    picture = data_url(noise_picture(60, 80))
    plain = ask(vision_client, picture, question="x").usage.prompt_tokens
    typed = ask(vision_client, picture, question="<|image|>").usage.prompt_tokens
    assert typed == plain - 1 + len("<|image|>")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/cat.png", "fetched only from hosts"),
        ("file:///etc/passwd", "must begin with data:"),
        ("data:image/png;base64,AAAA", "is not a PNG, JPEG, WebP or GIF image"),
    ],
)
def test_an_invalid_picture_is_refused_under_its_field(vision_client, url, says):
    with pytest.raises(openai.BadRequestError, match=says) as error:
        ask(vision_client, url)
    assert error.value.body["param"] == "messages.0.content.0.image_url.url"


def test_a_model_without_vision_refuses_images(client):
    with pytest.raises(openai.BadRequestError, match="takes no images") as error:
        ask(client, data_url(noise_picture(8, 8)))
    assert error.value.code == "unsupported_parameter"


def test_the_vision_model_with_weights_from_a_gguf_file_refuses_images(gguf_client):
    with pytest.raises(openai.BadRequestError, match="takes no images") as error:
        ask(gguf_client, data_url(noise_picture(60, 80)))
    assert error.value.param == "messages.0.content.0.image_url.url"
    assert ask(gguf_client).usage.completion_tokens


def test_slow_image_hosts_end_with_the_deadline_and_delay_no_other_request(
    vision_model, start_server
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        server = start_server(EASEL_MODEL=str(vision_model), EASEL_IMAGE_HOSTS=host)
        server.wait_until_ready()
        url = f"http://{host}/cat.png"
        with ThreadPoolExecutor(12) as clients, sdk(server) as client:
            waiting = [
                clients.submit(ask, client, *[url] * 4, extra_body={"timeout": 8})
                for _ in range(12)
            ]
            assert ask(client, data_url(noise_picture(60, 80)), timeout=5).usage.prompt_tokens
            assert not any(each.done() for each in waiting)
            for each in waiting:
                assert each.exception().status_code == 504
    assert server.stop() == 0


def test_an_answer_to_images_cannot_be_recorded(vision_client):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(
            vision_client,
            data_url(noise_picture(40, 60)),
            extra_body={"diffusion": {"record": True}},
        )
    assert refused.value.param == "diffusion.record"
