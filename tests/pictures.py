"""Pictures of random noise for requests. Any mistake in scaling or cutting changes the noise."""

import asyncio
import base64
from io import BytesIO

import numpy as np
import PIL.Image

from app.threads import Pool


def noise_picture(height: int, width: int, *, mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return PIL.Image.frombytes(mode, (width, height), values.tobytes())


def read_pictures(reader, parts):
    """Returns the pictures of a request's images."""
    pool = Pool("pictures", 1)
    try:
        return asyncio.run(reader.read(parts, pool))
    finally:
        pool.close()


def data_url(image: PIL.Image.Image, kind: str = "png", **options: object) -> str:
    """Returns a data URL with the picture as a file of the format `kind`."""
    return raw_data_url(file_bytes(image, kind, **options), kind)


def raw_data_url(file: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def file_bytes(image: PIL.Image.Image, kind: str = "png", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
