"""`hf-vlm merge`: an adapter and its base become one folder, with the processor that lies beside either."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from hf_vlm.cli import main
from hf_vlm.training.lora import LoraSection, add_lora, save_adapter
from tests.models.llava.tiny_llava import NUM_TOKENS, picture_batch, tiny_image_processor, tiny_llava, tiny_tokenizer


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """In a working directory with `base` and `adapter`, neither with a processor."""
    monkeypatch.chdir(tmp_path)
    tiny_llava(text={"vocab_size": NUM_TOKENS + 1}, image_token_id=NUM_TOKENS).save_pretrained("base")
    base = LlavaVisionLanguageForConditionalGeneration.from_pretrained("base")
    adapted = add_lora(base, LoraSection(rank=2))
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value += 0.1
    save_adapter(adapted, "adapter")
    return LlavaVisionLanguageProcessor.from_pretrained_parts(
        tiny_image_processor(), tiny_tokenizer(), vision_config=base.config.vision_config
    )


@pytest.mark.parametrize("beside", ["adapter", "base"])
def test_merge_writes_a_whole_model_with_its_processor(processor, beside, capsys):
    processor.save_pretrained(beside)
    assert main(["merge", "adapter", "--out", "merged"]) == 0
    assert capsys.readouterr().out == "Merged model saved in merged\n"
    batch = picture_batch(4)
    batch["input_ids"] = torch.where(batch["input_ids"] == 39, NUM_TOKENS, batch["input_ids"])
    with torch.no_grad():
        merged = AutoModelForImageTextToText.from_pretrained("merged")(**batch).logits
        unmerged = AutoModelForImageTextToText.from_pretrained("adapter")(**batch).logits
        plain = AutoModelForImageTextToText.from_pretrained("base")(**batch).logits
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-4)
    assert (merged - plain).abs().max() > 0.01
    reloaded = AutoProcessor.from_pretrained("merged")
    assert type(reloaded) is LlavaVisionLanguageProcessor
    assert reloaded.num_image_tokens == processor.num_image_tokens


def test_merge_goes_without_a_processor(processor, tmp_path):
    assert main(["merge", "adapter", "--out", "merged"]) == 0
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "config.json",
        "generation_config.json",
        "merged_from.json",
        "model.safetensors",
    ]


def test_merge_takes_a_base_that_was_moved(processor, tmp_path, capsys):
    (tmp_path / "base").rename(tmp_path / "moved")
    assert main(["merge", "adapter", "--out", "merged"]) == 1
    assert "Name it by `--base`." in capsys.readouterr().err
    assert main(["merge", "adapter", "--out", "merged", "--base", "moved"]) == 0


def test_merge_tells_what_is_wrong(processor, capsys):
    assert main(["merge", "base", "--out", "merged"]) == 1
    assert "hf-vlm: A PEFT folder is wanted" in capsys.readouterr().err
    assert main(["merge", "adapter", "--out", "base"]) == 1
    assert "hf-vlm: `out` must be a folder without a model, got base." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "adapter", "--out", "merged", "other"])
    assert "hf-vlm: `merge` has no place for `other`." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["merge", "adapter"])
