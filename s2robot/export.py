"""The whole encoder as one file for other runtimes: uint8 frames in, features out.

    onnx          FILE.onnx             onnxruntime, TensorRT, ...; examples/onnxruntime_alone.py runs it
    openvino      FILE.xml + FILE.bin
    torch-export  FILE.pt2              torch.export.load

The batch axis is free; views, frame size and scales are fixed. Every resize and pooling is written as matrix products,
which all runtimes compute alike. Each file is run before it gets its name, and refused if its features are not the
encoder's; it carries its image contract as JSON under the key "s2robot".
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from s2robot import __version__, files, graphs
from s2robot.encoder import Encoder, run_tiles
from s2robot.errors import InvalidInput, S2RobotError, UnknownName, require
from s2robot.multiscale import pool_to_grid, split_tiles
from s2robot.preprocess import resize_matrices
from s2robot.scales import Size

INPUT, OUTPUTS = "frames", ("map", "tokens", "cls")
TOLERANCE = 1e-4  # on features whose largest is a few units
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}

Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]
"""An exported file at work: frames (B, V, H, W, 3) to map, tokens, cls."""


class WholeEncoder(nn.Module):
    """An encoder for frames of one shape, in operations that every runtime has."""

    def __init__(self, encoder: Encoder, frame: Size) -> None:
        super().__init__()
        self.encoder, self.plan = encoder, encoder.plan(frame)
        for k, scale in enumerate(self.plan.scales):
            rows, columns = resize_matrices(self.plan.crop, scale.image, encoder.contract)
            self.register_buffer(f"rows_{k}", rows)  # (h, H)
            self.register_buffer(f"columns_{k}", columns.T.contiguous())  # (W, w)
            encoder.backbone.at(scale.tile)  # now: within the trace its positions would be resampled at every call

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, V, H, W, 3) uint8 -> map (B, V, C, h, w), tokens (B, V, h*w, C), cls (B, V, C)."""
        encoder, plan = self.encoder, self.plan
        # To floats first: of uint8 TensorRT takes an input, and nothing but that cast of it.
        images = self._cropped(frames.float().flatten(0, 1).permute(0, 3, 1, 2))  # (B*V, 3, H, W)
        tiles = []
        for k, scale in enumerate(plan.scales):
            resized = (getattr(self, f"rows_{k}") @ images @ getattr(self, f"columns_{k}")).clamp(0, 255)
            # Normalised after the cut: OpenVINO's CPU plugin fails on channel factors right behind a matrix product.
            tiles.append((split_tiles(resized, scale.tile) / 255 - encoder.mean) / encoder.std)
        answers = run_tiles(tiles, lambda size, batch: encoder.backbone.at(size)(batch))
        features = encoder.assemble(answers, plan, frames.shape[0], frames.shape[1], pool_by_matrices)
        return features.map, features.tokens, features.cls

    def _cropped(self, images: Tensor) -> Tensor:
        (top, left), (height, width) = self.plan.corner, self.plan.crop
        pad_rows, pad_columns = self.plan.pad
        if pad_rows or pad_columns:
            colour = (255 * self.encoder.mean).round()  # (3, 1, 1)
            sides = (pad_columns // 2, pad_columns - pad_columns // 2, pad_rows // 2, pad_rows - pad_rows // 2)
            images = nn.functional.pad(images - colour, sides) + colour
        return images[:, :, top : top + height, left : left + width]


def pool_by_matrices(maps: Tensor, size: Size) -> Tensor:
    """`multiscale.pool_to_grid` as two matrix products: averaging over cells is separable."""
    if maps.shape[-2:] == size:
        return maps
    rows, columns = (
        pool_to_grid(torch.eye(now)[None, None], (new, now))[0, 0].to(maps)
        for now, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.T


def export(encoder: Encoder, kind: str, path: Path, frame: Size, views: int = 1) -> dict[str, Any]:
    """Write an encoder to `path`; returns {"path", "difference", "bytes"}.

    Args:
        kind: "onnx", "openvino" or "torch-export".
        frame: (H, W) of the frames it will take [pixels].
        views: cameras it will take (V).

    Raises:
        MissingExtra: the kind's packages are not installed.
        S2RobotError: the exported file's features differ from the encoder's; nothing is left at `path`.
    """
    if kind not in SUFFIX:
        raise UnknownName("export", kind, SUFFIX)
    if path.suffix != SUFFIX[kind]:
        raise InvalidInput(f"{path} should end in {SUFFIX[kind]} for --to {kind}")
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32:
        raise InvalidInput("Export from the CPU in fp32: load_encoder(..., device='cpu')")
    if encoder.config.precision != "fp32":
        raise InvalidInput(
            f"Exported files are fp32, not {encoder.config.precision}: leave precision out, and quantise the file with "
            f"the tools of its runtime"
        )
    if views < 1:
        raise InvalidInput(f"views is {views}; expected the number of cameras, 1 or more")
    whole = WholeEncoder(encoder, frame).eval()
    example = torch.zeros(2, views, *frame, 3, dtype=torch.uint8)  # of one frame, torch takes the 1 for a constant
    note = json.dumps(describe(encoder, frame, views))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        difference = _written(whole, kind, example, draft, note)
        if not difference <= TOLERANCE:
            raise S2RobotError(
                f"The exported {kind} file gives other features than the encoder (off by {difference:.2g}, allowed are "
                f"{TOLERANCE}); nothing was written. Try another --to, and please report this"
            )
        parts = sorted(draft.parent.iterdir())  # the .bin before its .xml
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            part.replace(path.with_name(part.name))
    return {"path": str(path), "difference": difference, "bytes": size}


def _written(whole: WholeEncoder, kind: str, example: Tensor, draft: Path, note: str) -> float:
    """Write a file and run it: how far its features are from the encoder's."""
    try:
        return _difference(whole.encoder, _WRITERS[kind](whole, example, draft, note), tuple(example.shape))
    except Exception as error:
        if isinstance(error, S2RobotError) or not whole.encoder.backbone.is_own_code:
            raise
        raise S2RobotError(
            f"{whole.encoder.backbone.name}'s own code cannot be exported to {kind}: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]}. It has to be made of tensor operations alone, and take the size of"
            " a batch from x.shape[0], which len(x) hides"
        ) from error


def describe(encoder: Encoder, frame: Size, views: int) -> dict[str, Any]:
    """All that a reader of the file must know, as JSON."""
    plan = encoder.plan(frame)
    return {
        "s2robot": __version__,
        "encoder": files.plain(dataclasses.asdict(encoder.config)),
        "contract": files.plain(dataclasses.asdict(encoder.contract)),
        "fingerprint": encoder.fingerprint,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", views, *frame, 3],
            "colour": "RGB, top row first",
        },
        "outputs": list(OUTPUTS),
        "channels": encoder.channels,
        "grid": list(encoder.grid_of(frame)),
        "crop": {"corner": list(plan.corner), "size": list(plan.crop), "pad": list(plan.pad)},
        "scales": [{"image": list(scale.image), "tile": list(scale.tile)} for scale in plan.scales],
    }


def _onnx(whole: WholeEncoder, example: Tensor, path: Path, note: str) -> Run:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, extra="export", purpose="Exporting to ONNX")
    import onnxruntime

    program = graphs.export(whole, example, (INPUT, OUTPUTS), fold=True)
    _read_input_once(program.model.graph)
    program.model.metadata_props["s2robot"] = note
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(list(OUTPUTS), {INPUT: frames})


def _read_input_once(graph: Any) -> None:
    """Have the batch size taken from the input as floats, not from the uint8 input itself."""
    (frames,) = graph.inputs
    (cast,) = (node for node in graph if node.op_type == "Cast" and node.inputs[0] is frames)
    for reader, k in frames.uses():
        if reader is not cast:
            reader.replace_input_with(k, cast.outputs[0])
    graph.sort()


def _openvino(whole: WholeEncoder, example: Tensor, path: Path, note: str) -> Run:
    openvino = require("openvino", extra="openvino", purpose="Exporting to OpenVINO")
    with tempfile.TemporaryDirectory() as folder:
        middle = Path(folder) / "encoder.onnx"
        _onnx(whole, example, middle, note)
        model = openvino.convert_model(middle)
    model.set_rt_info(note, "s2robot")
    openvino.save_model(model, path, compress_to_fp16=False)
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", precise)
    return lambda frames: [np.array(compiled({INPUT: frames})[name]) for name in OUTPUTS]


def _torch_export(whole: WholeEncoder, example: Tensor, path: Path, note: str) -> Run:
    with torch.no_grad(), graphs.quiet():
        program = torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=65536)},))
        torch.export.save(program, path, extra_files={"s2robot.json": note})
        loaded: Any = torch.export.load(path).module()

    def run(frames: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return [each.numpy() for each in loaded(torch.from_numpy(frames))]

    return run


_WRITERS = {"onnx": _onnx, "openvino": _openvino, "torch-export": _torch_export}


def _difference(encoder: Encoder, run: Run, shape: tuple[int, ...]) -> float:
    """The largest difference over one frame and over three, relative to the largest feature where that is over 1."""
    rng, worst = np.random.default_rng(0), 0.0
    for batch in (1, 3):
        frames = rng.integers(0, 256, (batch, *shape[1:]), dtype=np.uint8)
        expected = encoder(frames)
        for name, got in zip(OUTPUTS, run(frames), strict=True):
            right = getattr(expected, name).numpy()
            if got.shape != right.shape:
                return float("inf")
            difference = float(np.abs(got - right).max()) / max(1.0, float(np.abs(right).max()))
            worst = float(np.maximum(worst, difference))  # not max(), which drops a NaN
    return worst
