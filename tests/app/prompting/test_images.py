"""Images from data URLs have the same pixels and tokens as in Transformers, or are refused."""

import asyncio
import contextlib
import io
import json
import struct
import threading
import zlib

import numpy as np
import PIL.Image
import pytest
from transformers import AutoTokenizer, Gemma4ImageProcessorPil, Gemma4Processor
from transformers.image_utils import load_image
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

import app.prompting.images
from app.errors import UNSUPPORTED, BadRequest
from app.prompting.conversation import ImagePart, ImageUrl
from app.prompting.images import MOST_IMAGES, ImageReader, PictureFormat
from app.threads import Pool
from demo.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer
from tests.parity.tiny_models import write_image_processor
from tests.pictures import data_url, file_bytes, noise_picture, raw_data_url, read_pictures

PARAM = "messages.0.content.1.image_url.url"
PNG = data_url(noise_picture(20, 30))
IDS = {
    "boi_token_id": SPECIAL_TOKENS["<|image>"],
    "image_token_id": SPECIAL_TOKENS["<|image|>"],
    "eoi_token_id": SPECIAL_TOKENS["<image|>"],
}
TOKENS = {"begin_token": 1, "image_token": 2, "end_token": 3}


def new_reader(**config):
    return ImageReader(PictureFormat.from_config(config), **TOKENS)


def read_one(url, reader=None):
    (picture,) = read_pictures(reader or new_reader(), [ImagePart(ImageUrl(url), PARAM)])
    return picture


def refusal(*urls, reader=None):
    parts = [ImagePart(ImageUrl(url), PARAM) for url in urls]
    with pytest.raises(BadRequest) as caught:
        read_pictures(reader or new_reader(), parts)
    assert caught.value.param == PARAM
    assert caught.value.status == 400
    return caught.value.message


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_soft_tokens": 70, "patch_size": 2},
        {"max_soft_tokens": 1120, "patch_size": 14, "pooling_kernel_size": 2},
    ],
)
def test_a_picture_of_any_size_has_the_size_that_the_processor_gives_it(config):
    picture_format, processor = PictureFormat.from_config(config), Gemma4ImageProcessorPil(**config)
    sizes = np.random.default_rng(0).integers(1, 3000, (2000, 2)).tolist()
    strips = [(1, 1), (1, 9000), (9000, 1), (2, 700), (700, 2), (48, 48), (768, 840), (840, 768)]
    for height, width in [*sizes, *strips]:
        expected = get_aspect_ratio_preserving_size(
            height,
            width,
            processor.patch_size,
            processor.max_soft_tokens * processor.pooling_kernel_size**2,
            processor.pooling_kernel_size,
        )
        side = picture_format.token_side
        assert expected == tuple(n * side for n in picture_format.grid(height, width))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_of_any_mode_has_the_same_pixels_as_in_the_processor(mode):
    assert_same_pixels(noise_picture(50, 70, mode="RGBA").convert(_convertible(mode)), mode, "png")


@pytest.mark.parametrize(("mode", "kind"), [("RGB", "webp"), ("RGBA", "webp"), ("RGB", "jpeg")])
def test_other_formats_have_the_same_pixels_as_in_the_processor(mode, kind):
    assert_same_pixels(noise_picture(50, 70, mode=mode), mode, kind)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_without_three_colours_is_converted_as_in_the_processor(mode):
    assert_same_pixels(noise_picture(50, 70, mode=mode), mode, "jpeg")


def test_a_palette_with_transparent_colours_is_put_on_white_as_in_the_processor():
    image = noise_picture(50, 70, mode="P")
    image.putpalette(bytes(range(256)) * 3)
    assert_same_pixels(image, "P", "png", transparency=bytes(range(256)))


def _convertible(mode):
    return "I" if mode == "I;16" else mode


def assert_same_pixels(image, mode, kind, **options):
    if mode == "I;16":
        image = image.convert("I;16")
    url = data_url(image, kind, **options)
    image = PIL.Image.open(io.BytesIO(file_bytes(image, kind, **options)))
    assert image.mode == mode
    processor = Gemma4ImageProcessorPil()
    expected = processor(image, return_tensors="np")
    picture = read_one(url)
    pixels = np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, 3)
    ours = processor(
        pixels, do_resize=False, input_data_format="channels_last", return_tensors="np"
    )
    assert (ours["pixel_values"] == expected["pixel_values"]).all()
    assert (ours["image_position_ids"] == expected["image_position_ids"]).all()
    assert [picture.tokens] == list(expected["num_soft_tokens_per_image"])


def test_a_picture_on_its_side_is_turned_as_in_transformers():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    url = data_url(noise_picture(50, 90), "jpeg", exif=exif)
    upright = load_image(url)
    assert upright.size == (50, 90)
    picture = read_one(url)
    assert picture == read_one(data_url(upright))
    assert picture.height > picture.width


def test_the_resampling_is_that_of_the_checkpoint():
    nearest = new_reader(resample=int(PIL.Image.Resampling.NEAREST))
    assert read_one(PNG, nearest).pixels != read_one(PNG).pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(build_tokenizer(0, examples=4000), folder)
    (folder / "config.json").write_text(json.dumps(IDS))
    write_image_processor(folder)
    return folder


def test_images_in_a_prompt_have_the_same_tokens_as_in_the_processor(folder, monkeypatch):
    monkeypatch.setattr(Gemma4Processor, "check_argument_for_proper_class", lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(
        folder,
        extra_special_tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "boa_token": "<bos>",  # the processor requires tokens for sound
            "eoa_token": "<eos>",
        },
    )
    no_sound = no_video = None
    processor = Gemma4Processor(
        no_sound, Gemma4ImageProcessorPil.from_pretrained(folder), tokenizer, no_video
    )
    text = "<|turn>user\nSee <|image|>, \n\n<|image|><|image|> and say.<turn|>\n"
    pictures = [noise_picture(*size) for size in ((50, 70), (9, 300), (200, 30))]
    expected = processor(text=text, images=pictures)["input_ids"][0]
    reader = ImageReader.find(str(folder))
    read = read_pictures(
        reader, [ImagePart(ImageUrl(data_url(picture)), PARAM) for picture in pictures]
    )
    tokens, images = reader.insert(tokenizer(text, add_special_tokens=False)["input_ids"], read)
    assert tokens == expected
    for image, picture in zip(images, read, strict=True):
        assert tokens[image.start : image.end] == [IDS["image_token_id"]] * picture.tokens
        assert (image.height, image.width) == (picture.height, picture.width)
        assert image.pixels == picture.pixels


def test_a_template_that_does_not_show_every_image_once_is_refused():
    reader = new_reader()
    pictures = [read_one(PNG, reader)] * 2
    for prompt, shown in (([7, 2, 8], 1), ([2, 2, 2], 3)):
        with pytest.raises(BadRequest, match=f"shows {shown} of the 2 images"):
            reader.insert(prompt, pictures)


def test_a_prompt_without_images_is_unchanged():
    assert new_reader().insert([7, 8], read_pictures(new_reader(), [])) == ([7, 8], [])


@pytest.mark.parametrize("nested", [True, False])
def test_the_image_processor_is_configured_by_the_same_file_as_in_transformers(folder, nested):
    config = json.loads((folder / "preprocessor_config.json").read_text())
    file = folder / "processor_config.json"
    file.write_text(
        json.dumps({"image_processor": {**config, "max_soft_tokens": 140}} if nested else {})
    )
    try:
        reader = ImageReader.find(str(folder))
        expected = Gemma4ImageProcessorPil.from_pretrained(folder).max_soft_tokens
    finally:
        file.unlink()
    assert expected == (140 if nested else 70)
    assert expected / 2 < read_one(PNG, reader).tokens <= expected


def test_a_model_without_an_image_processor_takes_no_images(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(IDS))
    reader = ImageReader.find(str(tmp_path))
    assert read_pictures(reader, []) == []
    with pytest.raises(BadRequest, match="takes no images") as caught:
        read_pictures(reader, [ImagePart(PNG, PARAM)])
    assert (caught.value.param, caught.value.code) == (PARAM, UNSUPPORTED)


@pytest.mark.parametrize("url", ["http://a.b/c.png", "https://a.b/c.png", "HTTPS://a.b"])
def test_a_url_of_another_host_is_refused(url):
    assert "fetched only from hosts" in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png,abc",
        "data:text/plain;base64,QQ==",
        PNG.removeprefix("data:"),
    ],
)
def test_a_text_that_is_not_a_data_url_of_an_allowed_format_is_refused(url):
    message = refusal(url)
    assert "data:image/png" in message
    assert repr(url[:32]) in message


def test_the_head_of_a_data_url_may_be_in_capitals():
    assert read_one(PNG.replace("data:image/png", "DATA:IMAGE/PNG", 1)) == read_one(PNG)


@pytest.mark.parametrize("end", ["%", "A", "=A", "\n", "é"])
def test_data_that_is_not_base64_is_refused(end):
    assert "base64" in refusal(PNG + end)


@pytest.mark.parametrize(
    "file", [b"", b"GIF89a", b"no image at all", b"<svg/>", file_bytes(noise_picture(9, 9), "bmp")]
)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_file_that_is_not_an_image_of_a_known_format_is_refused(file, kind):
    assert "is not a PNG, JPEG, WebP or GIF image" in refusal(raw_data_url(file, kind))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
@pytest.mark.parametrize("declared", ["png", "jpg", "jpeg", "gif", "*", "png;name=a.png"])
def test_the_file_itself_says_which_format_it_has(kind, declared):
    file = file_bytes(PIL.Image.new("RGB", (9, 9), "red"), kind)
    assert read_one(raw_data_url(file, declared)) == read_one(raw_data_url(file, kind))


def test_the_first_picture_of_a_gif_stands_for_all():
    frames = [PIL.Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    animated = file_bytes(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert read_one(raw_data_url(animated, "gif")) == read_one(data_url(frames[0]))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_truncated_file_is_refused(kind):
    file = file_bytes(noise_picture(40, 40), kind)
    refusal(raw_data_url(file[: len(file) // 2], kind))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_with_one_broken_byte_is_read_or_is_a_bad_request(kind):
    """Change each byte of the head. The file may still be an image, or it is refused."""
    file = file_bytes(noise_picture(12, 12), kind)
    readable = 0
    for index in range(len(file[:300])):
        broken = bytearray(file)
        broken[index] ^= 0xFF
        with contextlib.suppress(BadRequest):
            read_one(raw_data_url(bytes(broken), kind))
            readable += 1
    assert readable < len(file[:300])


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_an_animation_is_refused(kind):
    frames = [noise_picture(9, 9, seed=seed) for seed in range(3)]
    url = data_url(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "is animated" in refusal(url)


def test_further_pictures_in_a_jpeg_are_ignored():
    first, preview = noise_picture(40, 30), noise_picture(9, 9)
    file = file_bytes(first, "mpo", save_all=True, append_images=[preview])
    assert read_one(raw_data_url(file, "jpeg")) == read_one(data_url(first, "jpeg"))


def test_a_file_with_too_many_bytes_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(app.prompting.images, "MOST_BYTES", 999)
    read_one(raw_data_url(file_bytes(noise_picture(9, 9))))
    assert "larger than 999 bytes" in refusal("data:image/png;base64," + 1336 * "%")


def declared_png(height, width):
    """Returns a PNG whose header declares this size, with far too little data for it."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "side", [7072, 10_000, 60_000]
)  # over our limit; Pillow warns; Pillow refuses
def test_a_picture_whose_header_declares_too_many_pixels_is_refused(side):
    assert "more than 50000000 pixels" in refusal(raw_data_url(declared_png(side, side)))


def test_too_many_images_are_refused():
    parts = [ImagePart(PNG, str(n)) for n in range(MOST_IMAGES + 1)]
    with pytest.raises(BadRequest, match=f"at most {MOST_IMAGES}") as caught:
        read_pictures(new_reader(), parts)
    assert caught.value.param == str(MOST_IMAGES)


def test_a_picture_with_a_side_that_no_camera_makes_is_refused():
    for height, width in ((1, 65_536), (50_000_000, 1)):
        assert "at most 65535" in refusal(raw_data_url(declared_png(height, width)))


def test_the_pixels_of_all_images_are_counted_before_one_is_decoded(monkeypatch):
    monkeypatch.setattr(app.prompting.images, "MOST_PIXELS_TOGETHER", 1000)
    monkeypatch.setattr(app.prompting.images, "_picture", None)  # would fail if it were called
    assert "1200 pixels together; at most 1000" in refusal(PNG, PNG)


async def test_no_further_picture_is_decoded_once_the_client_has_left(monkeypatch):
    begun, decoded = threading.Event(), []

    def decode(_file, field, _format):
        decoded.append(field)
        begun.set()
        go_on.wait()

    go_on = threading.Event()
    monkeypatch.setattr(app.prompting.images, "_picture", decode)
    pool = Pool("pictures", 1)
    parts = [ImagePart(ImageUrl(PNG), str(number)) for number in range(5)]
    reading = [asyncio.create_task(new_reader().read(parts, pool)) for _ in range(3)]
    await asyncio.to_thread(begun.wait)
    for each in reading:
        each.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    go_on.set()
    await pool.run(decoded.append, "last")
    pool.close()
    assert decoded == ["0", "last"]
