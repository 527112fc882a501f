"""Pictures in, codes of a visual tokenizer out, and back: the task `image-tokenization`.

path, URL, bytes or PIL picture -> `preprocess` opens and prepares it     pixels, float (channels, height, width), in [0, 1]
  -> `encode`, pictures of one size at a time                             code_ids, int64 (rows, columns) a picture
  -> `decode`                                                             PIL pictures
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, PreTrainedModel

from hf_vlm.data.pictures import open_picture


class ImageTokenizationPipeline(Pipeline):
    """The codes of a picture: `{"code_ids": int64 array (rows, columns), "num_codes": int}`; `decode` gives the picture again.

    For JSON use `result["code_ids"].tolist()`. Pictures of different sizes have grids of different sizes if the image
    processor doesn't resize.

    Args:
        model: a visual tokenizer: a model with `encode`, `decode` and `config.num_codes`. One stored in half precision and
            loaded by `pipeline()` runs in float32, so that its codes don't depend on the file's format; ask for
            `dtype=torch.float16` to keep it.
        settings: as for `Pipeline`: `image_processor`, `device`, `batch_size`, `num_workers`.

    Raises:
        ValueError: if the model has no codes, such as a VAE, or there is no image processor for it.
        TypeError: if a setting is none of these.
    """

    _load_processor = False
    _load_tokenizer = False
    _load_image_processor = None
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model: PreTrainedModel, *, dtype: str | torch.dtype | None = None, **settings: Any) -> None:
        _check_has_codes(model)
        super().__init__(model, **settings)
        if not hasattr(self.image_processor, "post_process"):
            name = self.model.name_or_path or type(self.model).__name__
            got = "none" if self.image_processor is None else f"`{type(self.image_processor).__name__}`"
            raise ValueError(
                f"The image processor of a visual tokenizer, with `post_process`, is wanted for {name}, got {got}. Save the "
                "model's own beside it, such as `VQVAEImageProcessor`, or pass `image_processor=`."
            )
        if dtype == "auto" and self.dtype in (torch.float16, torch.bfloat16):
            self.model.float()

    @property
    def num_codes(self) -> int:
        """How many different codes there are."""
        return self.model.config.num_codes

    def __call__(self, images: Any, **settings: Any) -> Any:
        """The codes of a picture, or of many.

        Args:
            images: a picture (path, http(s) or data URL, bytes of a file, PIL picture), or a list, generator, torch data
                set or other sequence or iterator of them.
            settings: `batch_size`, pictures at a time, and `num_workers`, processes that prepare them.

        Returns: the result of a picture; for a sequence a list of results; for a generator, iterator or torch data set an
            iterator over them, which works as it is asked.

        Raises:
            FileNotFoundError: if a picture is not there.
            ValueError: if a picture can't be read, or its size doesn't suit the model.
            TypeError: if it is no picture, or a setting is none of these.
        """
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            images = list(images)
            if not images:
                return []
        elif isinstance(images, Iterator):
            images = (image for image in images)  # of all iterators, `Pipeline` knows only generators
        return super().__call__(images, **settings)

    def _sanitize_parameters(self, **settings: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if settings:
            raise TypeError(
                f"`image-tokenization` takes `batch_size` and `num_workers`, got {', '.join(map(repr, settings))}. Leave it out."
            )
        return {}, {}, {}

    def preprocess(self, image: Any) -> dict[str, Any]:
        """Open one picture and prepare it: `pixels`, float array (channels, height, width), in [0, 1].

        Raises:
            ValueError: if the picture is damaged or none at all.
            OSError: if there is no such file.
        """
        picture = open_picture(image)
        try:
            return {"pixels": self.prepare(picture)}  # of arrays, `Pipeline` makes a list: sizes may differ
        except (OSError, ValueError) as error:  # such as a PIL picture that was opened, but not read before
            name = image if isinstance(image, str | os.PathLike) else getattr(picture, "filename", "") or repr(picture)
            raise ValueError(
                f"{name}: wanted a whole picture, got one that can't be prepared ({error}). Save or copy it again."
            ) from error

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """The pixels of a picture, float (channels, height, width), in [0, 1]."""
        return self.image_processor([picture], return_tensors="pt")["pixel_values"][0].numpy()

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        pixels = model_inputs["pixels"]
        code_ids = self.encode(pixels if isinstance(pixels, list) else [pixels])
        return {"code_ids": [torch.from_numpy(grid) for grid in code_ids]}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """The result of one picture."""
        (code_ids,) = model_outputs["code_ids"]  # int64 (rows, columns)
        return {"code_ids": code_ids.numpy(), "num_codes": self.num_codes}

    @torch.no_grad()
    def encode(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The codes of prepared pictures: int64 (rows, columns) each; those of one size are one batch.

        Args:
            pixels: float (channels, height, width) each, as `prepare` gives them.

        Raises:
            ValueError: if a size doesn't suit the model.
        """
        found: dict[int, np.ndarray] = {}
        for places in _of_one_shape(pixels):
            batch = torch.from_numpy(np.stack([pixels[place] for place in places])).to(self.device)
            found |= zip(places, self.model.encode(batch).cpu().numpy(), strict=True)
        return [found[place] for place in range(len(pixels))]

    @torch.no_grad()
    def decode(self, code_ids: Any, *, batch_size: int = 16) -> list[Image.Image]:
        """The pictures of codes, 8 bits a channel, one a grid.

        Args:
            code_ids: int (rows, columns), one grid; or many: int (batch, rows, columns) or a list of grids, whose sizes may
                differ. Arrays, tensors or nested lists.
            batch_size: pictures at a time.

        Raises:
            TypeError: if they are no whole numbers.
            ValueError: if a grid has no rows and columns, or a code is out of range.
        """
        if isinstance(code_ids, torch.Tensor):
            code_ids = code_ids.cpu().numpy()
        is_one = len(code_ids) > 0 and np.ndim(code_ids[0]) == 1
        grids = [self._checked_grid(grid) for grid in ([code_ids] if is_one else code_ids)]
        found: dict[int, Image.Image] = {}
        for places in _of_one_shape(grids):
            for start in range(0, len(places), batch_size):
                now = places[start : start + batch_size]
                batch = torch.from_numpy(np.stack([grids[place] for place in now])).to(self.device)
                found |= zip(now, self.image_processor.post_process(self.model.decode(batch)), strict=True)
        return [found[place] for place in range(len(grids))]

    def _checked_grid(self, code_ids: Any) -> np.ndarray:
        """One grid as int64 (rows, columns)."""
        grid = code_ids.cpu().numpy() if isinstance(code_ids, torch.Tensor) else np.asarray(code_ids)
        if grid.ndim != 2 or grid.size == 0:
            raise ValueError(f"`code_ids` must be (rows, columns) a picture, got shape {grid.shape}. Reshape them.")
        if not np.issubdtype(grid.dtype, np.integer):
            raise TypeError(f"`code_ids` must be whole numbers, got {grid.dtype}. Take them from the pipeline.")
        if grid.min() < 0 or grid.max() >= self.num_codes:  # on GPUs the model itself doesn't look
            raise ValueError(
                f"`code_ids` must be in [0, {self.num_codes}), got {grid.min()} to {grid.max()}. Were they made by another "
                "tokenizer?"
            )
        return grid.astype(np.int64)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and image processor, a folder for `from_pretrained` and `pipeline`.

        `Pipeline.save_pretrained` would turn the folder into one that asks to trust code.
        """
        for part in (self.model, self.image_processor):
            part.save_pretrained(save_directory, **kwargs)


def _check_has_codes(model: PreTrainedModel) -> None:
    """Raises ValueError if a model doesn't make codes of pictures, and pictures of codes."""
    missing = [f"`{name}`" for name in ("encode", "decode") if not callable(getattr(model, name, None))]
    if not isinstance(getattr(model.config, "num_codes", None), int):
        missing.append("`config.num_codes`")
    if missing:
        raise ValueError(
            f"A visual tokenizer is wanted, with `encode`, `decode` and `config.num_codes`, got `{type(model).__name__}` "
            f"without {', '.join(missing)}. Use a VQ-VAE or a discrete VAE; the latents of a VAE are continuous, it has no "
            "codes."
        )


def _of_one_shape(arrays: Iterable[np.ndarray]) -> list[list[int]]:
    """The places of arrays of one shape, a list a shape."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, array in enumerate(arrays):
        places.setdefault(array.shape, []).append(place)
    return list(places.values())
