"""Encode a video file or a live camera, frame by frame: how fast that is, and the features as .npz.

python examples/encode_video.py clip.mp4 --out clip.npz
python examples/encode_video.py 0 --tolerance 2 --out desk.npz       # the camera /dev/video0, on Linux

PyAV reads both (pip install 's2robot[video]'); cameras through V4L2. Elsewhere take OpenCV, which gives BGR:
frame = cv2.VideoCapture(0).read()[1][..., ::-1]
"""

import argparse
import time

import av
import numpy as np

import s2robot

parser = argparse.ArgumentParser()
parser.add_argument("source", help="a video file, or a camera's number")
parser.add_argument("--encoder", default="s2robot-tiny")
parser.add_argument("--tolerance", type=float, default=0.0, help="mean pixel difference that counts as no change")
parser.add_argument("--frames", type=int, default=300, help="at most")
parser.add_argument("--out", default="features.npz")
options = parser.parse_args()

stream = s2robot.load_encoder(options.encoder).stream("camera", tolerance=options.tolerance)
is_camera = options.source.isdigit()
source = f"/dev/video{options.source}" if is_camera else options.source
maps, summaries, seconds = [], [], []
with av.open(source, format="v4l2" if is_camera else None) as video:
    for frame in video.decode(video=0):
        pixels = frame.to_ndarray(format="rgb24")  # (H, W, 3) uint8
        start = time.perf_counter()
        features = stream(pixels)
        seconds.append(time.perf_counter() - start)
        maps.append(features.map[0, 0].half().cpu().numpy())  # (C, h, w)
        summaries.append(features.cls[0, 0].cpu().numpy())  # (C,)
        if len(maps) == options.frames:
            break

np.savez_compressed(options.out, map=np.stack(maps), cls=np.stack(summaries))
done = stream.statistics()
print(f"{options.out}: {done.frames} frames, map {maps[0].shape}, {100 * done.reused:.0f} % of the tiles reused")
print(f"{1 / np.median(seconds):.1f} Hz; the first frame, which prepares the engine, took {seconds[0]:.1f} s")
print(stream.encoder.engine)
