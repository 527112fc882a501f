"""Where the models that come with the package lie."""

from pathlib import Path


def default_ocr_model() -> Path:
    """The folder of the OCR model that comes with the package: in a wheel inside it, in a checkout beside it.

    Raises:
        FileNotFoundError: if neither place has it.
    """
    package = Path(__file__).resolve().parents[1]
    places = [root / "model_cards" / "trocr-mini-lines" for root in (package, package.parent)]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"The OCR model of the package is wanted, got neither {places[0]} nor {places[1]}. Name a model with `--model`."
    )
