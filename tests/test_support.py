"""README's table of what works for which architecture: each of its cells has a test, which is named here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

HUB = "tests/test_hub.py::test_model_and_processor_come_down_in_another_process_as_they_went_up"
PICTURE_RUN = (
    "tests/training/test_image_classification.py::test_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one"
)
TOKENIZER_RUN = (
    "tests/training/test_image_tokenization.py::test_interrupted_run_resumes_to_the_weights_of_the_uninterrupted_one"
)
RUNS = {
    "vit": f"{PICTURE_RUN}[ours]",
    "swin": f"{PICTURE_RUN}[swin]",
    "vae": f"{TOKENIZER_RUN}[vae]",
    "vqvae": f"{TOKENIZER_RUN}[vq]",
    "dvae": f"{TOKENIZER_RUN}[dvae]",
    "cnn_lstm": "tests/training/test_picture_text.py::"
    "test_interrupted_run_goes_on_to_the_same_weights[caption-cnn-lstm]",
    "trocr": "tests/training/test_trocr.py::test_killed_run_resumes_to_the_weights_of_the_uninterrupted_one",
    "llava": "tests/training/test_llava.py::test_resumed_run_ends_as_the_uninterrupted_one",
}
IMAGE_PIPELINES = "tests/pipelines/test_image_pipelines.py"
IMAGE_TOKENIZATION = "tests/pipelines/test_image_tokenization.py::test_batch_is_tokenized_as_its_pictures_alone"
STOCK = "tests/sharing/stock"
NO_STOCK = f"{STOCK}/test_stock_export.py::test_architecture_without_a_counterpart_is_refused_by_name"
ONNX = "tests/sharing/onnx"

# Column of the table -> the test of each architecture's cell; one name where all have the same.
TESTS: dict[str, str | dict[str, str]] = {
    "Auto classes": "tests/test_public_names.py::test_auto_classes_serve_our_classes",
    "pipeline": {
        "vit": f"{IMAGE_PIPELINES}::test_image_classification[vit]",
        "swin": f"{IMAGE_PIPELINES}::test_image_classification[swin]",
        "vae": f"{IMAGE_PIPELINES}::test_image_feature_extraction_of_visual_tokenizers",
        "vqvae": IMAGE_TOKENIZATION,
        "dvae": IMAGE_TOKENIZATION,
        "cnn_lstm": "tests/models/cnn_lstm/test_assembly_cnn_lstm.py::test_trained_captioner_is_served_by_the_pipeline",
        "trocr": "tests/pipelines/test_text_recognition.py::test_confidences_are_the_models_probabilities",
        "llava": "tests/pipelines/test_image_text_to_text.py::test_saved_pipeline_answers_as_before",
    },
    "Trainer": RUNS,
    "exact resume": RUNS,
    "LoRA": "tests/training/test_lora_architectures.py::test_folder_is_read_by_the_auto_class_and_by_the_models_own",
    "push, pull": HUB,
    "clean process": HUB,
    "without hf-vlm": "tests/sharing/test_code_folder.py::"
    "test_folder_with_code_does_without_the_package_what_it_does_with_it",
    "transformers' class": {
        "vit": f"{STOCK}/test_stock_vit.py::test_own_model_gives_the_same_as_its_counterpart",
        "swin": f"{STOCK}/test_stock_swin.py::test_own_model_gives_the_same_on_pictures_of_any_size",
        **dict.fromkeys(("vae", "vqvae", "dvae", "cnn_lstm"), NO_STOCK),
        "trocr": f"{STOCK}/test_stock_trocr.py::test_own_reader_gives_the_same_as_its_counterpart",
        "llava": f"{STOCK}/test_stock_llava.py::test_stock_llava_gives_same_logits_and_answers",
    },
    "ONNX": {
        **dict.fromkeys(("vit", "swin"), f"{ONNX}/test_onnx_export.py::test_vision_models_give_the_same"),
        **dict.fromkeys(
            ("vae", "vqvae", "dvae"),
            f"{ONNX}/test_onnx_export.py::test_visual_tokenizers_give_the_same_for_pictures_of_any_size",
        ),
        "cnn_lstm": f"{ONNX}/test_onnx_runtime.py::test_captioner_writes_what_generate_writes",
        "trocr": f"{ONNX}/test_onnx_runtime.py::test_reader_writes_what_generate_writes_for_lines_of_any_width",
        "llava": f"{ONNX}/test_onnx_runtime.py::test_assistant_writes_what_generate_writes",
    },
}


def named_tests() -> set[str]:
    return {name for of in TESTS.values() for name in ([of] if isinstance(of, str) else of.values())}


def support_table() -> dict[str, dict[str, str]]:
    """Architecture -> column -> what its cell says."""
    lines = (CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| | Auto classes |"))
    columns = [cell.strip() for cell in lines[first].strip("|").split("|")][1:]
    table = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        table[name.strip("`")] = dict(zip(columns, cells, strict=True))
    return table


def test_every_architecture_has_a_row_and_every_cell_a_test():
    table = support_table()
    assert set(table) == {path.parent.name for path in (CHECKOUT / "hf_vlm/models").glob("*/configuration_*.py")}
    for name, cells in table.items():
        assert list(cells) == list(TESTS)
        for column, cell in cells.items():
            tests = TESTS[column]
            assert isinstance(tests, str) or tests[name]
            assert re.match(r"yes\b|no: \w|features only: \w", cell), f"{name}, {column}: {cell}"


def test_only_what_transformers_has_no_class_for_is_said_not_to_leave():
    of = TESTS["transformers' class"]
    assert isinstance(of, dict)
    said = {name for name, cells in support_table().items() if cells["transformers' class"].startswith("no")}
    assert said == {name for name, test in of.items() if test == NO_STOCK}


@pytest.mark.parametrize("name", sorted(named_tests()))
def test_named_test_is_there(name: str):
    file, function = name.partition("[")[0].split("::")
    tree = ast.parse((CHECKOUT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow  # imports all these files once more
def test_named_cases_are_collected():
    cases = sorted(name for name in named_tests() if "[" in name)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *cases]
    collected = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert set(cases) <= set(collected.stdout.split())
