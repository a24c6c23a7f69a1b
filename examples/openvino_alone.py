"""Run an exported encoder with nothing but openvino and numpy: no torch, no timm, no s2robot.

s2robot export s2robot-tiny --to openvino --frame 240x320 --out s2robot-tiny.xml
python examples/openvino_alone.py s2robot-tiny.xml             # or any device of OpenVINO's: ... GPU
"""

import json
import sys
import time

import numpy as np
import openvino

model = openvino.Core().read_model(sys.argv[1])
about = json.loads(model.get_rt_info("s2robot").value)  # the image contract travels with the file
_, views, height, width, _ = about["input"]["shape"]
print(f"{about['encoder']['name']}: uint8 RGB frames (batch, {views}, {height}, {width}, 3)")

# Without the hint OpenVINO may compute in half precision, where the processor has it: faster, and other features.
device = sys.argv[2] if len(sys.argv) > 2 else "CPU"
encoder = openvino.Core().compile_model(model, device, {"INFERENCE_PRECISION_HINT": "f32"})

# Your camera goes here: RGB, top row first. OpenCV gives BGR: frame[..., ::-1].
frames = np.random.default_rng(0).integers(0, 256, (1, views, height, width, 3), dtype=np.uint8)

answer = encoder({"frames": frames})
for name in about["outputs"]:
    print(f"{name:7s} {answer[name].shape} {answer[name].dtype}")

times = []
for _ in range(20):
    start = time.perf_counter()
    encoder({"frames": frames})
    times.append(time.perf_counter() - start)
print(f"{1e3 * np.median(times):.1f} ms a frame")
