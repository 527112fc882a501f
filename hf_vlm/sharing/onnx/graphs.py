"""One computation as one `.onnx` file: written, held against PyTorch through onnxruntime, its weights rounded to int8.

An `OnnxGraph` is a module of tensors in, named tensors out, with an example to trace and another, of other sizes, to check.
torch's exporter on `torch.export` writes it (`dynamo=True`), which keeps sizes as symbols: the older one, which traces, would
write the example's sizes into masks, positions and reshapes. Attention is written out in plain products ("eager"): sdpa's
layout in memory is not what the exporter assumes where a bias is added to its scores.
"""

import contextlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_vlm.parts.pretrained_model import HubModel
from hf_vlm.sharing.stock.weights import output_difference

OPSET = 20  # understood by onnxruntime from 1.17 on
_LARGEST_FILE = 2**31 - 2**24  # bytes: a protobuf ends at 2 GiB, and the graph itself needs some
_CODES_THAT_MAY_DIFFER = 0.01  # of the whole numbers that a graph gives: near ties, which rounding may break either way
_QUANTIZED_OPS = ["MatMul", "Gemm"]  # convolutions with weights of int8 are slower than those in float32


@dataclass
class OnnxGraph:
    """What one file is to compute.

    Attributes:
        name: of the file, without `.onnx`.
        module: takes `inputs` by name, gives a dict of tensors; on the CPU, in evaluation mode.
        inputs: the example that is traced.
        check: another, the dynamic axes of other lengths.
        axes: for inputs and outputs, which axes are dynamic, and the names of their lengths.
    """

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    check: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]


@dataclass
class WrittenGraph:
    """What `write_graph` wrote.

    Attributes:
        inputs, outputs: `{"name", "dtype", "shape"}`, a length that is open by its name.
        num_rounded: matrix products whose weights became int8.
        largest_difference: between onnxruntime and PyTorch on the check, absolute, or where values exceed 1, relative to the
            largest.
    """

    name: str
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    num_rounded: int = 0
    largest_difference: float = 0.0


class _ByPlace(nn.Module):
    """The exporter's view of a graph's module: tensors by place in, tensors by place out."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.module(**dict(zip(self.names, tensors, strict=True))).values())


def require_onnx() -> None:
    """Checks that what writes and runs these files is installed.

    Raises:
        ImportError: if not; the message names the extra.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Writing ONNX wants the packages onnx, onnxruntime and onnxscript, got no {missing[0]}. Run "
            "`pip install 'hf-vlm[export]'`."
        )


def prepare(model: HubModel) -> HubModel:
    """The model as it is exported: on the CPU, in evaluation mode and float32, attention in plain products."""
    model = model.float().cpu().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return model


def write_graph(graph: OnnxGraph, folder: Path, *, precision: str = "float32", tolerance: float = 1e-3) -> WrittenGraph:
    """Write a graph to `folder / f"{graph.name}.onnx"` and check it through onnxruntime on another example.

    Args:
        precision: "float32", or "int8": the weights of matrix products rounded per column, what is multiplied by them rounded as
            it comes. The check then only measures.
        tolerance: of the check in float32.

    Raises:
        ValueError: if the exporter can't write the module, naming what stopped it; if onnxruntime can't run the file, or gives
            something else.
    """
    path = folder / f"{graph.name}.onnx"
    with quiet(), torch.no_grad():
        program = _program(graph)
        _name_lengths(program, graph)
        weights = sum(value.numel() * value.element_size() for value in graph.module.state_dict().values())
        program.save(path, external_data=weights > _LARGEST_FILE)
        del program
    is_large = path.with_name(path.name + ".data").exists()
    written = _check(graph, path)
    if written.largest_difference > tolerance:
        raise ValueError(
            f"`{path.name}` must give what the model gives, to {tolerance:g}, got a difference of "
            f"{written.largest_difference:.3g} through onnxruntime. Export with other versions of torch and onnxruntime, and "
            "report these."
        )
    if precision == "int8":
        num_rounded = _quantize(path, is_large)
        written = _check(graph, path)
        written.num_rounded = num_rounded
    return written


def _program(graph: OnnxGraph) -> Any:
    names = list(graph.inputs)
    examples = tuple(graph.inputs.values())
    outputs = graph.module(**graph.inputs)
    lengths = tuple({axis: torch.export.Dim.DYNAMIC for axis in graph.axes.get(name, {})} for name in names)
    try:
        return torch.onnx.export(
            _ByPlace(graph.module, names).eval(),
            examples,
            dynamo=True,
            dynamic_shapes=(lengths,),
            input_names=names,
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table=_own_operators(),
            verbose=False,
        )
    except Exception as error:  # whatever a part, or an operator that ONNX lacks, makes the exporter raise
        raise ValueError(
            f"`{graph.name}` must be made of operators that torch's ONNX exporter knows, got {_stopped_by(error)}. For "
            "stock folders, `hf-vlm export-transformers` and then `optimum-cli export onnx` may know them."
        ) from error


def _own_operators() -> dict[Any, Any]:
    """What stands in ONNX for the one operator that is ours: the search for the nearest codeword, in fp32."""
    from onnxscript import opset20

    op: Any = opset20

    def nearest_codeword(vectors: Any, codewords: Any) -> Any:
        """|e|^2 / 2 - x e, the lowest: near ties may fall otherwise than in the exact search."""
        half_squares = op.Mul(
            op.ReduceSumSquare(codewords, op.Constant(value_ints=[1]), keepdims=0), op.Constant(value_float=0.5)
        )
        products = op.Einsum(vectors, codewords, equation="nd,kd->nk")  # not a `MatMul`: int8 would choose other codes
        scores = op.Sub(half_squares, products)
        return op.ArgMin(scores, axis=1, keepdims=0)

    return {torch.ops.hf_vlm.nearest_codeword.default: nearest_codeword}


def _stopped_by(error: BaseException) -> str:
    """The exporter's innermost fault in one line, and the module that it names, if it does."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    fault = f"{type(chain[-1]).__name__}: {' '.join(lines[:2])[:300]}"
    places = [place for one in chain for place in re.findall(r'File "([^"]+)", line (\d+), in', str(one))]
    places = [(file, line) for file, line in places if "/torch/" not in file]
    return f"{fault} (at {Path(places[-1][0]).name}:{places[-1][1]})" if places else fault


def _name_lengths(program: Any, graph: OnnxGraph) -> None:
    """Say what the open lengths of inputs and outputs are, in place of the exporter's formulas."""
    from onnx_ir import Shape

    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        lengths = graph.axes.get(value.name, {})
        if value.shape is not None and lengths:
            value.shape = Shape([lengths.get(axis, length) for axis, length in enumerate(value.shape)])


def _check(graph: OnnxGraph, path: Path) -> WrittenGraph:
    import onnxruntime  # type: ignore[import-untyped]

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = session.run(None, {name: value.numpy() for name, value in graph.check.items()})
    except Exception as error:  # of onnxruntime's own types, which share no base but this
        raise ValueError(
            f"`{path.name}` must run in onnxruntime, got {type(error).__name__}: {str(error).splitlines()[0][:300]}. Export with "
            "other versions of torch and onnxruntime, and report these."
        ) from error
    with torch.no_grad():
        wanted = graph.module(**graph.check)
    written = WrittenGraph(graph.name, _described(session.get_inputs()), _described(session.get_outputs()))
    for one, (name, other) in zip(got, wanted.items(), strict=True):
        other = other.numpy()
        if one.shape != other.shape:
            raise ValueError(
                f"`{path.name}` must give `{name}` of shape {other.shape}, got {one.shape} through onnxruntime. Export with "
                "other versions of torch and onnxruntime, and report these."
            )
        written.largest_difference = max(written.largest_difference, difference(one, other))
    return written


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest of two arrays, relative where values exceed 1; of whole numbers 0 if all but few are the same, else 1."""
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(got != wanted) > _CODES_THAT_MAY_DIFFER)
    is_finite = np.isfinite(wanted)
    if not np.array_equal(is_finite, np.isfinite(got)):
        return float("inf")
    if not is_finite.any():
        return 0.0
    return output_difference(torch.from_numpy(got[is_finite]), torch.from_numpy(wanted[is_finite]))


def _described(values: Any) -> list[dict[str, Any]]:
    return [{"name": value.name, "dtype": value.type[7:-1], "shape": list(value.shape)} for value in values]


def _quantize(path: Path, is_large: bool) -> int:
    """Round the weights of a file's matrix products in place; gives how many there were."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    rounded = path.with_name(f"{path.stem}-int8.onnx")
    with quiet():
        quantize_dynamic(
            path,
            rounded,
            op_types_to_quantize=_QUANTIZED_OPS,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large,
        )
    if is_large:  # the file names its data's
        path.with_name(path.name + ".data").unlink()
        path.unlink()
        rounded.rename(path)
    else:
        rounded.replace(path)
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "MatMulInteger" for node in nodes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Around the exporter and the quantiser, which tell of their own inner workings by warnings and by the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
