"""Images in messages: from the client's data or URL to pixels, and to tokens in the prompt.

This does the same as Transformers' `load_image` and the first half of `Gemma4ImageProcessorPil`: it
makes upright RGB pictures of the size that the vision tower takes. That class can't be used here,
because it imports torch. The worker uses it for the second half. So the worker gets only pictures
of that size, and never decodes a large one while all requests wait.

Whatever a client sends, images are fetched only from hosts that the configuration names. Only the
decoders of four formats run, on no more bytes and pixels than are allowed.
"""

import asyncio
import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps

from app.errors import UNSUPPORTED, BadRequest
from app.prompting.conversation import ImageFile, ImagePart, ImageUrl
from app.prompting.image_hosts import ImageHosts
from app.threads import Pool
from engine.messages import Image
from engine.sizing.model_files import ModelFiles, ModelFilesError

MOST_IMAGES = 32  # per request, because a file of 100 bytes becomes megabytes of pixels
MOST_BYTES = 20 * 2**20  # per file
MOST_PIXELS = 50_000_000  # per picture, as many as a phone's camera makes
MOST_PIXELS_TOGETHER = 256_000_000  # per request, because a million of them take 20 to 50 ms
# Per picture, in pixels, as many as a JPEG can have. Resizing a longer one takes gigabytes.
MOST_SIDE = 65_535

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # by Pillow's names
_DATA_URL = re.compile("data:image/[^,]*;base64,", re.IGNORECASE)
_SHOWN = 32  # characters of a bad URL that an error repeats


@dataclass(frozen=True)
class Picture:
    """RGB bytes, row by row, of the size that the vision tower takes, and the number of tokens."""

    tokens: int
    height: int
    width: int
    pixels: bytes


class PromptWithImages(NamedTuple):
    """A prompt with the tokens of its images, and the images with their positions."""

    tokens: list[int]
    images: list[Image]


@dataclass(frozen=True)
class PictureFormat:
    """The settings of the checkpoint's image processor."""

    patch_size: int
    pooling_kernel_size: int
    max_soft_tokens: int
    resample: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PictureFormat":
        """Returns the settings in a configuration, with the defaults of Transformers' class.

        Raises ModelFilesError, which names the key, if a value is not one that it can have.
        """
        numbers = {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280}
        return cls(
            **{
                key: _whole_number("the image processor", config, key, default, 1)
                for key, default in numbers.items()
            },
            resample=_whole_number(
                "the image processor",
                config,
                "resample",
                PIL.Image.Resampling.BICUBIC,
                0,
                max(PIL.Image.Resampling),
            ),
        )

    @property
    def token_side(self) -> int:
        """Returns the side, in pixels, of the square that a token stands for."""
        return self.patch_size * self.pooling_kernel_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of tokens: as many as allowed, in about the picture's shape.

        The floating-point operations are those of `Gemma4ImageProcessorPil`, because the results
        must be equal. A picture that is too long for one row of tokens is squeezed.
        """
        side = self.token_side
        scale = math.sqrt(self.max_soft_tokens * side**2 / (height * width))
        rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
        if rows == 0:
            return 1, min(width // height, self.max_soft_tokens)
        if columns == 0:
            return min(height // width, self.max_soft_tokens), 1
        return rows, columns


class ImageReader:
    """Reads images for one checkpoint. It refuses all if the checkpoint has no vision tower."""

    def __init__(
        self,
        picture_format: PictureFormat | None,
        *,
        begin_token: int,
        image_token: int,
        end_token: int,
        hosts: Sequence[str] = (),
    ) -> None:
        self._format = picture_format
        self._hosts = ImageHosts(hosts)
        self._begin, self._image, self._end = begin_token, image_token, end_token

    @classmethod
    def find(
        cls, model: str, hosts: Sequence[str] = (), *, sees: bool = True, revision: str = ""
    ) -> "ImageReader":
        """Returns a reader for a checkpoint, which is a folder or a Hugging Face id.

        Images are fetched from `hosts` only. Unless `sees`, all images are refused, because the
        weights come from another file, which has no vision. `revision` is that of a checkpoint on
        the hub. Raises ModelFilesError if the configuration is missing or damaged.
        """
        files = ModelFiles(model, revision)
        config = files.json("config.json")
        processor = _image_processor(files) if sees else None
        return cls(
            None if processor is None else PictureFormat.from_config(processor),
            # The defaults are those of Transformers' class.
            begin_token=_whole_number("config.json", config, "boi_token_id", 255_999, 0),
            image_token=_whole_number("config.json", config, "image_token_id", 258_880, 0),
            end_token=_whole_number("config.json", config, "eoi_token_id", 258_882, 0),
            hosts=hosts,
        )

    @property
    def sees(self) -> bool:
        """Returns whether the model has a vision tower."""
        return self._format is not None

    async def read(self, parts: Sequence[ImagePart], pool: Pool) -> list[Picture]:
        """Returns the pictures of a request's images. Raises BadRequest, which names the image.

        The threads of `pool` decode one picture after another. None is decoded before the headers
        of all have been read. Once this is cancelled, no further picture is decoded.
        """
        if not parts:
            return []
        picture_format = self._format
        if picture_format is None:
            raise BadRequest("This model takes no images.", param=parts[0].field, code=UNSUPPORTED)
        if len(parts) > MOST_IMAGES:
            raise BadRequest(
                f"The request has {len(parts)} images; at most {MOST_IMAGES} are allowed.",
                param=parts[MOST_IMAGES].field,
            )
        urls = [(part.field, url) for part in parts if (url := _fetched_url(part)) is not None]
        fetched = await self._hosts.fetch_all(urls, most_bytes=MOST_BYTES)
        # Not in `pool`, where small pictures would wait twice for the large ones of others.
        files = await asyncio.to_thread(_checked_files, parts, fetched)
        return [
            await pool.run(_picture, file, part.field, picture_format)
            for part, file in zip(parts, files, strict=True)
        ]

    def insert(
        self, prompt: Sequence[int], pictures: Sequence[Picture], param: str = "messages"
    ) -> PromptWithImages:
        """Replace each image token of the prompt by a begin token, a picture's tokens and an end.

        `prompt` has the tokens of the rendered chat template, with an image token for each picture,
        in the order of `pictures`. Raises BadRequest, which names the request's field `param`, if
        it has more or fewer image tokens than there are pictures.
        """
        shown = prompt.count(self._image)
        if shown != len(pictures):
            raise BadRequest(
                f"The model's chat template shows {shown} of the {len(pictures)} images.",
                param=param,
            )
        tokens: list[int] = []
        images: list[Image] = []
        following = iter(pictures)
        for token in prompt:
            if token != self._image:
                tokens.append(token)
                continue
            picture = next(following)
            start = len(tokens) + 1
            tokens += [self._begin, *[self._image] * picture.tokens, self._end]
            images.append(
                Image(start, picture.tokens, picture.height, picture.width, picture.pixels)
            )
        return PromptWithImages(tokens, images)


def _fetched_url(part: ImagePart) -> str | None:
    """Returns the URL of an image that is not in the request itself, or None."""
    match part.source:
        case ImageUrl(url=url) if re.match("https?:", url, re.IGNORECASE):
            return url
    return None


def _checked_files(parts: Sequence[ImagePart], fetched: Sequence[bytes]) -> list[bytes]:
    """Returns the images' files, of which only the headers have been read.

    `fetched` has the files that were fetched, in the images' order. Raises BadRequest if a file is
    not an image that is accepted, or if all together have too many pixels.
    """
    following = iter(fetched)
    files = [_file(part) if _fetched_url(part) is None else next(following) for part in parts]
    pixels = 0
    for part, file in zip(parts, files, strict=True):
        header = _opened(file, part.field)
        pixels += header.height * header.width
        if pixels > MOST_PIXELS_TOGETHER:
            raise BadRequest(
                f"{part.field}: the images up to this one have {pixels} pixels together; at most "
                f"{MOST_PIXELS_TOGETHER} are allowed.",
                param=part.field,
            )
    return files


def _picture(file: bytes, field: str, picture_format: PictureFormat) -> Picture:
    rgb = _upright_rgb(_opened(file, field), field)
    rows, columns = picture_format.grid(rgb.height, rgb.width)
    height, width = (count * picture_format.token_side for count in (rows, columns))
    pixels = rgb.resize((width, height), picture_format.resample).tobytes()
    return Picture(rows * columns, height, width, pixels)


def _file(part: ImagePart) -> bytes:
    """Returns the bytes of the file that a request has itself.

    The media type that a client declares is not used, because it is often wrong.
    """
    field = part.field
    match part.source:
        case ImageFile(base64=encoded):
            return _decoded(encoded, field)
        case ImageUrl(url=url):
            match = _DATA_URL.match(url)
            if match is None:
                raise BadRequest(
                    f"{field}: the URL must begin with data:image/png;base64, or have another "
                    f"type of image in place of png, but it begins with {url[:_SHOWN]!r}.",
                    param=field,
                )
            return _decoded(url[match.end() :], field)


def _image_processor(files: ModelFiles) -> dict[str, Any] | None:
    """Returns the image processor's configuration, or None. Looks where Transformers looks.

    Raises ModelFilesError if a file is damaged.
    """
    processor = (files.optional_json("processor_config.json") or {}).get("image_processor")
    if processor is None:
        return files.optional_json("preprocessor_config.json")
    if not isinstance(processor, dict):
        raise ModelFilesError(
            f"processor_config.json: image_processor is {processor!r}; it must be an object"
        )
    return processor


def _whole_number(
    where: str,
    config: Mapping[str, Any],
    key: str,
    default: int,
    least: int,
    most: int = 2**31 - 1,
) -> int:
    """Returns the number at a key of a configuration, or the default if it is left out or null.

    Raises ModelFilesError, which names the key and `where` it is, if it is not a whole number from
    `least` to `most`.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelFilesError(
            f"{where}: {key} is {value!r}; it must be a whole number from {least} to {most}"
        )
    return value


def _decoded(encoded: str, field: str) -> bytes:
    """Returns the decoded bytes. Raises BadRequest if they are too many or not valid base64."""
    if len(encoded) * 3 // 4 > MOST_BYTES:
        raise BadRequest(f"{field}: the file is larger than {MOST_BYTES} bytes.", param=field)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise BadRequest(f"{field}: the data is not valid base64: {error}.", param=field) from error


def _opened(data: bytes, param: str) -> PIL.Image.Image:
    """Returns the picture before it is decoded: only its header has been read.

    Raises BadRequest if it is not an image of a known format, too large, or an animated PNG or
    WebP.
    """
    too_large = BadRequest(f"{param}: the image has more than {MOST_PIXELS} pixels.", param=param)
    try:
        image = PIL.Image.open(BytesIO(data), formats=_FORMATS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # Pillow raises all kinds of exceptions for a broken file
        raise BadRequest(
            f"{param}: the file is not a PNG, JPEG, WebP or GIF image.", param=param
        ) from error
    if image.height * image.width > MOST_PIXELS:
        raise too_large
    if max(image.size) > MOST_SIDE:
        raise BadRequest(
            f"{param}: the image has {image.width} x {image.height} pixels; a side may have at "
            f"most {MOST_SIDE}.",
            param=param,
        )
    # Further pictures in a JPEG are previews and brightness maps, which are ignored. The first
    # picture of a GIF stands for all, because most GIFs have several.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise BadRequest(
            f"{param}: the image is animated; only still images are accepted.", param=param
        )
    return image


def _upright_rgb(image: PIL.Image.Image, param: str) -> PIL.Image.Image:
    """Returns the picture turned as its EXIF data says, with a white background if transparent.

    Raises BadRequest if it can't be decoded.
    """
    try:
        turned = PIL.ImageOps.exif_transpose(image)
        if "A" in turned.getbands() or turned.info.get("transparency") is not None:
            background = PIL.Image.new("RGBA", turned.size, "white")
            turned = PIL.Image.alpha_composite(background, turned.convert("RGBA"))
        return turned.convert("RGB")
    except Exception as error:  # see _opened
        raise BadRequest(
            f"{param}: the {image.format} image can't be decoded: {error}.", param=param
        ) from error
