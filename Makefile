# make demo        checkpoint -> export -> an arm moving in simulation
# make demo-robot  only the robot's part, from a committed bundle, without torch
# make test        the tests
# make check       ruff, mypy, tests, sanitizers and mutation check of the C core, the README's commands
# make load        tests of processes, clocks and terminals 20 times beside two busy loops a core (hours)
# make soak | full | gpu | bench     long tests | full-size network | NVIDIA GPU | latency benchmark
# make oracle      random policies, LoRA folders and datasets against a live LeRobot 0.6.1 (LEROBOT_PYTHON, or made here)

PYTHON ?= python3
# Where the default torch download is large (Linux, without a CUDA GPU), point this at PyTorch's CPU wheel index:
#   make demo TORCH_INDEX="--index-url <CPU index from pytorch.org's install page>"
TORCH_INDEX ?=
VENV := .venv
ROBOT_VENV := .venv-robot
OUT ?= out
PIP_FLAGS := --disable-pip-version-check -q
# tests/conftest.py says what stays together.
TWO_WORKERS := -n 2

.PHONY: demo demo-robot test check load soak full gpu bench oracle core clean

demo: $(VENV)/.ready
	@$(VENV)/bin/python -m vla_edge.runtime.command demo --out $(OUT)/demo

demo-robot: $(ROBOT_VENV)/.ready
	@$(ROBOT_VENV)/bin/python -m vla_edge.runtime.command demo --robot-only --out $(OUT)/demo-robot

test: $(VENV)/.ready
	@echo "== running the tests"
	@$(VENV)/bin/python -m pytest $(TWO_WORKERS)

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest $(TWO_WORKERS)
	$(VENV)/bin/python -m pytest -m check --timeout 3600 -o faulthandler_timeout=0 tests

load: $(VENV)/.ready
	$(VENV)/bin/python scripts/under_load.py tests/runtime/control tests/runtime/service tests/runtime/records tests/robot \
	  tests/test_doctor.py tests/trials/test_place_check.py tests/training/test_training_bad_input.py tests/export/test_export_command.py

soak: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -m soak -rP --timeout 7200 -o faulthandler_timeout=0 tests

full: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -m full --timeout 3600 -o faulthandler_timeout=0 tests

# With the machine's own Python: a bare device has torch, onnx, onnxruntime and cuda-bindings, but no network.
gpu:
	$(PYTHON) scripts/device_run.py --out $(OUT)/gpu

bench: $(VENV)/.ready
	$(VENV)/bin/python -m vla_edge.benchmarks.full

oracle: $(VENV)/.ready
	@python=$${LEROBOT_PYTHON:-$$(scripts/lerobot_environment.sh $(OUT)/lerobot)} || { echo "the oracle was not asked"; exit 0; }; \
	LEROBOT_PYTHON=$$(realpath -s "$$python") $(VENV)/bin/python -m pytest -m oracle --timeout 3600 -o faulthandler_timeout=0 tests/oracle

core: $(VENV)/.ready
	@$(VENV)/bin/python setup.py -q build_ext --inplace

clean:
	rm -rf $(VENV) $(ROBOT_VENV) build $(OUT) src/*.egg-info src/vla_edge/_core*.so

$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard runtime/core/*/*.[ch] robot/bus/*.[ch])
	@echo "== making the environment $(VENV) (Python with torch on the CPU, ONNX, ONNX Runtime, MuJoCo)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install $(PIP_FLAGS) -U pip "setuptools>=77" wheel
	@echo "== installing torch first, so that nothing else pulls another build of it"
	@$(VENV)/bin/pip install $(PIP_FLAGS) $(TORCH_INDEX) -c constraints.txt torch
	@echo "== installing vla-edge with its C core"
	@$(VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e ".[dev]"
	@$(VENV)/bin/python -c "import vla_edge._core" || { echo "the C core was not built: install a C compiler and the Python headers, then run make again"; exit 1; }
	@touch $@

$(ROBOT_VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard runtime/core/*/*.[ch] robot/bus/*.[ch])
	@echo "== making the environment $(ROBOT_VENV) (ONNX Runtime and MuJoCo, no torch)"
	@test -x $(ROBOT_VENV)/bin/python || $(PYTHON) -m venv $(ROBOT_VENV)
	@$(ROBOT_VENV)/bin/pip install $(PIP_FLAGS) -U pip "setuptools>=77" wheel
	@$(ROBOT_VENV)/bin/pip install $(PIP_FLAGS) -c constraints.txt --no-build-isolation -e ".[ort,sim]"
	@$(ROBOT_VENV)/bin/python -c "import vla_edge._core" || { echo "the C core was not built: install a C compiler and the Python headers, then run make again"; exit 1; }
	@touch $@
