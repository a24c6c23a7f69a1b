"""A backbone as an ONNX graph for ONNX Runtime: exported once a shape, kept without its weights.

torch takes seconds to trace a ViT, so the traced graph is kept in a cache folder. The weights are not: a session
gets them straight from the model's memory. Hence the cache is small, the same for all weights of one architecture,
and never stale: its key holds the architecture, the tile size and the version of all that made it.

    $S2ROBOT_CACHE, or $XDG_CACHE_HOME/s2robot, or ~/.cache/s2robot      safe to delete at any time
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import tempfile
import threading
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from s2robot import files
from s2robot.backbones import FrozenViT

INPUT, OUTPUTS = "tiles", ("prefix", "grid")
OPSET = 20
_LAYOUT = 1  # raise it when what is kept changes
_quiet = threading.RLock()  # what `quiet` changes belongs to the whole process


def session(backbone: FrozenViT, precision: str, threads: int) -> Any:
    """An ONNX Runtime session: {"tiles": (T, 3, h, w)} -> [prefix (T, K, D), grid (T, D, h, w)], any T.

    Args:
        precision: "fp32" or "int8" (weights and activations of matrix products, quantised as they come).
        threads: processor threads of the session.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to torch in between
    options.log_severity_level = 3
    if precision == "int8":
        return onnxruntime.InferenceSession(_quantised(backbone), options, providers=["CPUExecutionProvider"])
    names, values = [], []
    for name, value in backbone.state_dict().items():
        names.append(name)
        plain = value.detach().float() if value.is_floating_point() else value.detach()  # a table of indices stays one
        values.append(onnxruntime.OrtValue.ortvalue_from_numpy(plain.contiguous().numpy()))
    graph = _cached(backbone)
    used = set(_weight_names(graph))
    kept = [(name, value) for name, value in zip(names, values, strict=True) if name in used]
    options.add_external_initializers([name for name, _ in kept], [value for _, value in kept])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def export(module: torch.nn.Module, example: torch.Tensor, names: tuple[str, tuple[str, ...]], *, fold: bool) -> Any:
    """Trace a module to an ONNX model whose first input axis is free; `fold` computes constants at once."""
    given, returned = names
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            opset_version=OPSET,
            optimize=fold,
            verbose=False,
            input_names=[given],
            output_names=list(returned),
        )
    assert program is not None
    return program


def _cached(backbone: FrozenViT) -> bytes:
    """The graph without weights: from the cache, or traced now and put there."""
    path = files.cache_folder() / "graphs" / f"{_key(backbone)}.onnx"
    if not _is_timms(backbone):  # somebody's own code: nothing tells when it changes
        return _trace(backbone)
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    graph = _trace(backbone)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            temporary.write_bytes(hashlib.sha256(graph).digest() + graph)
    except OSError as error:  # a read-only home, a full disk: slower next time, nothing worse
        logging.getLogger(__name__).warning("The traced graph is not kept in %s: %s", path.parent, error)
    return graph


def _trace(backbone: FrozenViT) -> bytes:
    from onnx import TensorProto

    # Unfolded, every weight keeps its name; ONNX Runtime folds when the session is made.
    model = export(backbone, torch.zeros(2, 3, *backbone.tile), (INPUT, OUTPUTS), fold=False).model_proto
    weights = backbone.state_dict()
    for initializer in model.graph.initializer:
        if initializer.name in weights:
            initializer.ClearField("raw_data")
            initializer.data_location = TensorProto.EXTERNAL
            initializer.external_data.add(key="location", value="given when the session is made")
    for node in model.graph.node:  # names of source lines: most of the file
        del node.metadata_props[:]
        node.ClearField("doc_string")
    graph: bytes = model.SerializeToString()
    return graph


def _weight_names(graph: bytes) -> Iterator[str]:
    import onnx

    for initializer in onnx.load_model_from_string(graph).graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            yield initializer.name


def _quantised(backbone: FrozenViT) -> bytes:
    """int8 matrix products (dynamic quantisation), weights and all."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        whole, small = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        export(backbone, torch.zeros(2, 3, *backbone.tile), (INPUT, OUTPUTS), fold=True).save(whole)
        # 7-bit weights: without VNNI, the CPU's int16 accumulators overflow on 8 bits.
        quantize_dynamic(
            whole,
            small,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=["MatMul"],
        )
        stream = io.BytesIO()
        onnx.save(onnx.load(small), stream)
        return stream.getvalue()


def _is_timms(backbone: FrozenViT) -> bool:
    return all(type(module).__module__.split(".")[0] in ("timm", "torch") for module in backbone.model.modules())


def _key(backbone: FrozenViT) -> str:
    weights = backbone.state_dict()
    shapes = {name: [list(value.shape), str(value.dtype)] for name, value in weights.items()}
    constants = {
        name: hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, value in backbone.named_buffers()
        if name not in weights
    }
    makers = {name: version(name) for name in ("torch", "timm", "onnx", "onnxscript")}
    made_of = [repr(backbone.model), _settings(backbone.model), constants]
    identity = [_LAYOUT, OPSET, backbone.name, made_of, list(backbone.tile), shapes, makers]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _settings(model: torch.nn.Module) -> list[tuple[str, str, str]]:
    """What modules neither print nor keep as weights, yet compute with: an attention's number of heads, say."""
    return [
        (name, key, repr(value))
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str)
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.onnx and its parts warn about themselves and print their progress. One thread at a time is within."""
    with _quiet:
        _keep_tqdm_from_semaphores()
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)


def _keep_tqdm_from_semaphores() -> None:
    """torch's tracer makes a tqdm bar, whose lock a worker process that is told to end would leave to the system."""
    if multiprocessing.parent_process() is not None:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            tqdm.set_lock(threading.RLock())
