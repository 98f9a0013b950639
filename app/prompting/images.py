"""Images in messages: from data URLs to pixels, and to their places in a prompt's tokens.

Does what Transformers' `load_image` and `Gemma4ImageProcessorPil` do up to an upright RGB picture
of the size that the vision tower wants. That class can't be used here, because it imports torch;
in the worker it does the rest. So only that size crosses over, and no large picture is decoded
where every request waits for it. Whatever a client sends, nothing is fetched but from
hosts that the configuration names, and no other decoder than those of three formats runs, on no
more bytes or pixels than are allowed.
"""

import base64
import json
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import PIL.Image
import PIL.ImageOps

from app.errors import UNSUPPORTED, BadRequest
from app.prompting.conversation import ImageFile, ImagePart, ImageUrl
from app.prompting.image_hosts import ImageHosts
from app.prompting.model_files import model_file, optional_model_file
from engine.messages import Image

MOST_IMAGES = 32  # of one request: a picture of 100 bytes becomes megabytes of pixels
MOST_BYTES = 20 * 2**20  # of a file
MOST_PIXELS = 50_000_000  # of a picture: what a telephone's camera makes

_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_DATA_URL = re.compile(f"data:image/({'|'.join(_FORMATS)});base64,", re.IGNORECASE)
_SHOWN = 32  # characters of a wrong URL that an error repeats


@dataclass(frozen=True)
class Picture:
    """RGB bytes, row by row, of the size that the vision tower wants, and how many tokens it is."""

    tokens: int
    height: int
    width: int
    pixels: bytes


class PromptWithImages(NamedTuple):
    """A prompt whose images have their tokens, and the images at their positions."""

    tokens: list[int]
    images: list[Image]


@dataclass(frozen=True)
class PictureFormat:
    """What the checkpoint's image processor makes of a picture's size."""

    patch_size: int
    pooling_kernel_size: int
    max_soft_tokens: int
    resample: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PictureFormat":
        """Of an image processor's configuration; what it leaves out is the class' default."""
        return cls(
            patch_size=config.get("patch_size", 16),
            pooling_kernel_size=config.get("pooling_kernel_size", 3),
            max_soft_tokens=config.get("max_soft_tokens", 280),
            resample=config.get("resample", PIL.Image.Resampling.BICUBIC),
        )

    @property
    def token_side(self) -> int:
        """A token stands for a square of pixels: its side."""
        return self.patch_size * self.pooling_kernel_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens: as many as are allowed, in about the picture's shape.

        The same floating-point operations as in `Gemma4ImageProcessorPil`, whose result they have
        to be. What is too long for one row of tokens is squeezed.
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
    """Reads images for one checkpoint; refuses them all if it has no vision tower."""

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
        self._decoding = threading.Lock()  # one picture at a time: the largest takes 770 MiB

    @classmethod
    def find(cls, model: str, hosts: Sequence[str] = (), *, sees: bool = True) -> "ImageReader":
        """Of a folder or a Hugging Face id; raises OSError if its configuration can't be read.

        Images are fetched from these hosts; without any they come in data URLs only. Unless it
        `sees`, its weights are of another file, which has no vision.
        """
        config = json.loads(model_file(model, "config.json").read_text())
        processor = _image_processor(model) if sees else None
        return cls(
            None if processor is None else PictureFormat.from_config(processor),
            # What a configuration leaves out is the default of Transformers' class.
            begin_token=config.get("boi_token_id", 255_999),
            image_token=config.get("image_token_id", 258_880),
            end_token=config.get("eoi_token_id", 258_882),
            hosts=hosts,
        )

    def read(self, parts: Sequence[ImagePart]) -> list[Picture]:
        """The pictures of a request's image parts; raises BadRequest, which names the part."""
        if not parts:
            return []
        if self._format is None:
            raise BadRequest("This model takes no images.", param=parts[0].field, code=UNSUPPORTED)
        if len(parts) > MOST_IMAGES:
            raise BadRequest(
                f"The request has {len(parts)} images; at most {MOST_IMAGES} are allowed.",
                param=parts[MOST_IMAGES].field,
            )
        return [self._read(part, self._format) for part in parts]

    def insert(
        self, prompt: Sequence[int], pictures: Sequence[Picture], param: str = "messages"
    ) -> PromptWithImages:
        """Give each picture its tokens, begin and end around them, where the prompt has one.

        `prompt` is the rendered chat template's, pictures in its order. Raises BadRequest, which
        blames the request's field `param`, if it shows more or fewer of them.
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

    def _read(self, part: ImagePart, picture_format: PictureFormat) -> Picture:
        file, kind = self._file(part)
        with self._decoding:
            rgb = _upright_rgb(_opened(file, kind, part.field), kind, part.field)
            rows, columns = picture_format.grid(rgb.height, rgb.width)
            height, width = (count * picture_format.token_side for count in (rows, columns))
            pixels = rgb.resize((width, height), picture_format.resample).tobytes()
        return Picture(rows * columns, height, width, pixels)

    def _file(self, part: ImagePart) -> tuple[bytes, str]:
        """Returns the bytes of the image's file and the name of its format in Pillow."""
        field = part.field
        match part.source:
            case ImageFile(media_type=media_type, base64=encoded):
                return _decoded(encoded, field), _kind(media_type, "its media type", field)
            case ImageUrl(url=url) if re.match("https?:", url, re.IGNORECASE):
                media_type, file = self._hosts.fetch(url, most_bytes=MOST_BYTES, param=field)
                return file, _kind(media_type, "the host's media type", field)
            case ImageUrl(url=url):
                match = _DATA_URL.match(url)
                if match is None:
                    raise BadRequest(
                        f"{field}: must be data:image/png, data:image/jpeg or data:image/webp, "
                        f"followed by ';base64,' and the file; begins with {url[:_SHOWN]!r}.",
                        param=field,
                    )
                return _decoded(url[match.end() :], field), _FORMATS[match[1].lower()]


def _image_processor(model: str) -> dict[str, Any] | None:
    """The image processor's configuration, found in the order in which Transformers looks."""
    path = optional_model_file(model, "processor_config.json")
    if path is not None:
        found: dict[str, Any] | None = json.loads(path.read_text()).get("image_processor")
        if found is not None:
            return found
    path = optional_model_file(model, "preprocessor_config.json")
    return None if path is None else json.loads(path.read_text())


def _kind(media_type: str, whose: str, field: str) -> str:
    """Returns the name of the format in Pillow. Raises BadRequest if it is none that is taken."""
    kind = _FORMATS.get(media_type.removeprefix("image/"))
    if kind is None:
        raise BadRequest(
            f"{field}: {whose} is {media_type!r}; allowed: image/png, image/jpeg, image/webp.",
            param=field,
        )
    return kind


def _decoded(encoded: str, field: str) -> bytes:
    """Returns the bytes that are in base64. Raises BadRequest if they are too many or are not."""
    if len(encoded) * 3 // 4 > MOST_BYTES:
        raise BadRequest(f"{field}: the file is larger than {MOST_BYTES} bytes.", param=field)
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise BadRequest(f"{field}: is not valid base64: {error}.", param=field) from error


def _opened(data: bytes, kind: str, param: str) -> PIL.Image.Image:
    """The picture before it is decoded: only its header has been read."""
    too_large = BadRequest(f"{param}: has more than {MOST_PIXELS} pixels.", param=param)
    try:
        image = PIL.Image.open(BytesIO(data), formats=[kind])
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # Pillow's parsers raise whatever a broken file leads them to
        raise BadRequest(f"{param}: is not a {kind} image.", param=param) from error
    if image.height * image.width > MOST_PIXELS:
        raise too_large
    # A JPEG's further pictures are previews and brightness maps, and are passed over.
    if kind != "JPEG" and getattr(image, "is_animated", False):
        raise BadRequest(f"{param}: is animated; only still images are taken.", param=param)
    return image


def _upright_rgb(image: PIL.Image.Image, kind: str, param: str) -> PIL.Image.Image:
    """Turned as its EXIF data says; what is transparent is on white, as the processor has it."""
    try:
        image = PIL.ImageOps.exif_transpose(image)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            background = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(background, image.convert("RGBA"))
        return image.convert("RGB")
    except Exception as error:  # as above
        raise BadRequest(
            f"{param}: the {kind} image can't be decoded: {error}.", param=param
        ) from error
