"""Who multiplies the matrices: the same backbone under torch, ONNX Runtime, OpenVINO or torch's compiler.

An engine makes runners. A runner maps tiles (T, 3, h, w), normalised fp32, to prefix (T, K, D) and grid (T, D, h, w),
and gives the backbone's own numbers: to 1e-4 in fp32, checked on every runner before its first use.

    engine       on          what it is good for
    torch        CPU, CUDA   always there, no preparation
    onnxruntime  CPU         the fastest on every CPU measured (docs/speed.md); int8 too
    openvino     CPU         Intel's own
    inductor     CPU, CUDA   torch.compile; with CUDA graphs on CUDA. Takes a minute to compile
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2robot import graphs, threads
from s2robot.backbones import FrozenViT
from s2robot.errors import InvalidInput, S2RobotError, UnknownName, require
from s2robot.precision import single_precision

Runner = Callable[[Tensor], tuple[Tensor, Tensor]]

ENGINES = ("auto", "torch", "onnxruntime", "openvino", "inductor")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
TOLERANCE = 1e-4  # of fp32 engines, on features whose deviation is about 1
_NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}
_EXTRA = {"onnxruntime": "export", "openvino": "openvino"}


@dataclass(frozen=True)
class Engine:
    """What was picked, and what makes its runners."""

    name: str
    precision: str
    device: torch.device

    def __str__(self) -> str:
        on = f"{self.device}, {threads.usual()} threads" if self.device.type == "cpu" else str(self.device)
        return f"{self.name} {self.precision} on {on}"

    @single_precision()
    def runner(self, backbone: FrozenViT) -> Runner:
        """Prepare this backbone, at its tile size, for this engine."""
        if self.name == "torch":
            return _torch_runner(backbone, self.precision, self.device)
        runner = _MAKERS[self.name](backbone, self.precision, self.device)
        if self.precision == "fp32" and next(backbone.parameters()).dtype == torch.float32:  # else rounding tells more
            _check(runner, backbone, self)
        return runner


def pick(
    engine: str,
    precision: str,
    device: torch.device,
    weights: torch.dtype = torch.float32,
    *,
    is_own_code: bool = False,
) -> Engine:
    """Resolve "auto", and refuse what cannot work.

    "auto" is torch on CUDA; on a CPU it is ONNX Runtime where the extra `export` is installed, else torch. For
    somebody's own code it is torch: nobody knows whether another engine can trace that, so it has to be asked for.

    Raises:
        UnknownName: no such engine or precision.
        InvalidInput: not on this device, not at this precision, or not with weights of this type.
        MissingExtra: its packages are not installed.
    """
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if engine == "auto":
        there = not is_own_code and all(find_spec(package) for package in _NEEDS["onnxruntime"])
        fits = precision == "int8" or (there and precision == "fp32" and weights == torch.float32)
        engine = "onnxruntime" if device.type == "cpu" and fits else "torch"
    if engine in _NEEDS and device.type != "cpu":
        raise InvalidInput(f"Engine {engine!r} runs on the CPU, not on {device}. There: engine='torch' or 'inductor'")
    if precision == "int8" and engine != "onnxruntime":
        raise InvalidInput(f"Engine {engine!r} has no int8. Try engine='onnxruntime' on the CPU, or precision='fp16'")
    if precision in ("bf16", "fp16") and engine in _NEEDS:
        raise InvalidInput(f"Engine {engine!r} computes in fp32 or int8, not {precision}")
    if engine in _NEEDS and weights != torch.float32:
        raise InvalidInput(f"Engine {engine!r} takes fp32 weights, not {weights}. Try engine='torch'")
    for package in _NEEDS.get(engine, ()):
        require(package, extra=_EXTRA[engine], purpose=f"Engine {engine!r}")
    return Engine(engine, precision, device)


def find_device(device: str | torch.device | None) -> torch.device:
    """CUDA when there is one, else the CPU; or the one asked for, if it is here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise InvalidInput("Device 'meta' holds no numbers, so nothing computes there. Try 'cpu' or 'cuda'")
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"Unknown device {device!r}. Try 'cpu', 'cuda' or 'cuda:1'") from error
    if chosen.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=chosen)
        except Exception as error:  # of every kind: what torch was built without, or a driver that is not there
            why = str(error).splitlines()[0]
            raise InvalidInput(f"Device {str(device)!r} is not here ({why}). Try device='cpu'") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"Device {str(device)!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices. Try "
            f"device='cpu', or leave it out"
        )
    return chosen


def _torch_runner(backbone: FrozenViT, precision: str, device: torch.device) -> Runner:
    dtype = PRECISIONS[precision] if precision in ("bf16", "fp16") else None
    network = _cast(backbone, dtype) if dtype else backbone

    def run(tiles: Tensor) -> tuple[Tensor, Tensor]:
        # Off inside unless asked for: features made in a mixed-precision training loop must equal the stored ones.
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            prefix, grid = network(tiles)
        return prefix, grid

    return run


def _cast(backbone: FrozenViT, dtype: torch.dtype) -> FrozenViT:
    """The backbone with what autocast would cast at every call cast already: the same features to the bit.

    Weights of matrix products are copied, all others shared. Of a model of somebody's own nothing is known, so it
    stays as it is.
    """
    if backbone.is_own_code:
        return backbone
    memo = {id(parameter): parameter for parameter in backbone.model.parameters()}
    with torch.inference_mode(False), torch.no_grad():
        for module in backbone.model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                for parameter in module.parameters(recurse=False):
                    memo[id(parameter)] = nn.Parameter(parameter.to(dtype), requires_grad=False)
        model = copy.deepcopy(backbone.model, memo)  # what the memo holds is taken from it
    return FrozenViT(model, backbone.name, backbone.contract, tile=backbone.tile, distribution=backbone.distribution)


def _inductor_runner(backbone: FrozenViT, precision: str, device: torch.device) -> Runner:
    """torch.compile; CUDA graphs on CUDA. torch keeps 8 compilations of one function, then falls back to eager."""
    eager = _torch_runner(backbone, precision, device)
    if device.type == "cuda":
        compiled: Any = torch.compile(eager, mode="reduce-overhead")

        def run(tiles: Tensor) -> tuple[Tensor, Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            prefix, grid = compiled(tiles)
            return prefix.clone(), grid.clone()  # a graph's outputs are overwritten by its next run

        return run
    return torch.compile(eager)


def _onnxruntime_runner(backbone: FrozenViT, precision: str, device: torch.device) -> Runner:
    session = graphs.session(backbone, precision, threads.usual())

    def run(tiles: Tensor) -> tuple[Tensor, Tensor]:
        prefix, grid = session.run(None, {graphs.INPUT: tiles.contiguous().numpy()})
        return torch.from_numpy(prefix), torch.from_numpy(grid)

    return run


def _openvino_runner(backbone: FrozenViT, precision: str, device: torch.device) -> Runner:
    import openvino

    with torch.no_grad(), graphs.quiet():
        model = openvino.convert_model(
            backbone, example_input=torch.zeros(2, 3, *backbone.tile), input=[(-1, 3, *backbone.tile)]
        )
    hints = {"INFERENCE_NUM_THREADS": threads.usual(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    request, alone = compiled.create_infer_request(), threading.Lock()

    def run(tiles: Tensor) -> tuple[Tensor, Tensor]:
        with alone:  # a request has one set of outputs: two threads would get each other's
            answer = request.infer([tiles.contiguous().numpy()])
            return torch.from_numpy(np.array(answer[0])), torch.from_numpy(np.array(answer[1]))

    return run


_MAKERS = {"onnxruntime": _onnxruntime_runner, "openvino": _openvino_runner, "inductor": _inductor_runner}


@torch.no_grad()
def _check(runner: Runner, backbone: FrozenViT, engine: Engine) -> None:
    """Three tiles, not the two it was traced with, through the engine and through torch: no error goes unnoticed."""
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(3, 3, *backbone.tile, generator=generator).to(engine.device)
    differences = [
        float((got - expected).abs().max() / expected.abs().max().clamp_min(1.0))
        if got.shape == expected.shape
        else float("inf")
        for got, expected in zip(runner(tiles), backbone(tiles), strict=True)
        if expected.numel()
    ]
    worst = float(np.max(differences))  # not max(), to which a NaN is less than anything before it
    if not worst <= TOLERANCE:
        raise S2RobotError(
            f"Engine {engine} gives other numbers than torch for {backbone.name}: off by {worst:.2g}, allowed are"
            f" {TOLERANCE}. Use engine='torch', and please report this with the output of: s2robot doctor"
        )
