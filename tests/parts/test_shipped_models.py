"""The models that come with the package are found in a checkout and in a wheel."""

import pytest

from hf_vlm.parts import shipped_models
from hf_vlm.parts.shipped_models import default_ocr_model


def test_missing_default_model_says_where_it_was_sought(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped_models, "__file__", str(tmp_path / "hf_vlm" / "parts" / "shipped_models.py"))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*--model"):
        default_ocr_model()
    for place in (tmp_path, tmp_path / "hf_vlm"):  # a checkout, and a wheel, which goes first
        (place / "model_cards" / "trocr-mini-lines").mkdir(parents=True)
        (place / "model_cards" / "trocr-mini-lines" / "config.json").write_text("{}")
        assert default_ocr_model() == place / "model_cards" / "trocr-mini-lines"
