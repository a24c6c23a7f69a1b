# Two commands from a fresh clone: `make demo` and `make test`. Both make .venv first; `make help` lists the rest.

VENV := .venv
BIN := $(VENV)/bin
# Written last: an interrupted set-up never counts as done.
READY := $(VENV)/ready
# Each test worker takes about 1 GB.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))

# A test process imports torch: one thread each, or the workers fight over the cores (llvmpipe's threads join in).
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE LP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup side-ros2 side-lerobot side-robomimic demo demo-quick test test-all test-faults check format build clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it; again only when pyproject.toml changes

$(READY): pyproject.toml
	@rm -f $(READY)
	@bash .ci/make_venv.sh $(VENV)
	@echo "Installing torch, robosuite and what they need: about 7 GB on disk, a few minutes"
	$(BIN)/python -m pip install --editable '.[sim,export,openvino,dev]'
	$(BIN)/s2robot doctor --fix
	@touch $(READY)

# Packages that do not fit into .venv have environments of their own in .venvs, which tests/other_python.py finds.
side-ros2: $(READY) ## .venvs/ros2: rclpy (it restarts every Python of its environment)
	bash .ci/make_side.sh ros2 'ros-rclpy[fastrtps]>=7.1,<10' 'ros-sensor-msgs>=5.3,<6' 'ros-std-msgs>=5.3,<6' \
		'ros-std-srvs>=5.3,<6' 'ros-diagnostic-msgs>=5.3,<6'

# LeRobot asks for torch below 2.11, six gigabytes of it: here it runs beside ours, with what its training and
# evaluation truly import.
side-lerobot: $(READY) ## .venvs/lerobot: LeRobot 0.4.4 (it wants numpy 2 and an older draccus and hub)
	bash .ci/make_side.sh lerobot 'numpy>=2,<2.3' 'datasets>=4,<5' 'huggingface-hub>=0.34.2,<0.36' 'accelerate>=1.10,<2' \
		'diffusers>=0.27.2,<0.36' 'draccus==0.10.0' 'einops>=0.8,<0.9' 'av>=15,<16' 'jsonlines>=4,<5' 'deepdiff>=7.0.1,<9' \
		'imageio[ffmpeg]>=2.34,<3' 'pyserial>=3.5,<4' -- 'lerobot>=0.4.4,<0.5'

# robomimic asks for egl_probe too, which is built from C and only looks for a GPU to render on.
side-robomimic: $(READY) ## .venvs/robomimic: robomimic 0.3
	bash .ci/make_side.sh robomimic 'psutil>=5' 'imageio>=2,<3' 'tensorboardX>=2.6,<3' 'matplotlib>=3.8,<4' -- 'robomimic>=0.3,<0.4'

demo: $(READY) ## collect, encode, train, evaluate Lift; then open runs/demo/report.html (about 5 minutes)
	$(BIN)/s2robot demo

demo-quick: $(READY) ## the same with one scale and fewer demonstrations (about 2 minutes)
	$(BIN)/s2robot demo --quick

test: $(READY) ## all tests but those marked slow, gpu or faults
	$(ONE_THREAD) $(BIN)/python -m pytest -m 'not slow and not gpu and not faults' --numprocesses $(WORKERS) --dist loadfile

test-all: $(READY) ## every test this machine can run but the faults
	$(ONE_THREAD) $(BIN)/python -m pytest -m 'not faults' --numprocesses $(WORKERS) --dist loadfile

test-faults: $(READY) ## injected faults: kills, full disks, damaged files, dead cameras; a table in runs/faults
	$(ONE_THREAD) $(BIN)/python -m pytest -m faults --numprocesses 0 tests/faults

check: $(READY) ## lint, format, types, sizes, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/sizes.py
	$(BIN)/python .ci/audit.py

format: $(READY) ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(READY) ## wheel and sdist in dist/, each installed and tried in a venv of its own
	rm -rf build dist
	$(BIN)/python -m build
	bash .ci/try_dist.sh $(BIN)/python dist/*.whl
	bash .ci/try_dist.sh $(BIN)/python dist/*.tar.gz

clean: ## remove what can be made again; runs/ stays
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
