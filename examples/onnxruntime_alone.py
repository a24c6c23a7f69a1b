"""Run an exported encoder with nothing but onnxruntime and numpy: no torch, no timm, no s2robot.

s2robot export s2robot-tiny --to onnx --frame 240x320 --out s2robot-tiny.onnx
python examples/onnxruntime_alone.py s2robot-tiny.onnx
"""

import json
import sys
import time

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["s2robot"])  # the image contract travels with the file
_, views, height, width, _ = about["input"]["shape"]
print(f"{about['encoder']['name']}: uint8 RGB frames (batch, {views}, {height}, {width}, 3)")

# Your camera goes here: RGB, top row first. OpenCV gives BGR: frame[..., ::-1].
frames = np.random.default_rng(0).integers(0, 256, (1, views, height, width, 3), dtype=np.uint8)

for name, value in zip(about["outputs"], session.run(about["outputs"], {"frames": frames}), strict=True):
    print(f"{name:7s} {value.shape} {value.dtype}")

times = []
for _ in range(20):
    start = time.perf_counter()
    session.run(["tokens"], {"frames": frames})
    times.append(time.perf_counter() - start)
print(f"{1e3 * np.median(times):.1f} ms a frame")
