#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An environment with LeRobot 0.6.1 for `make oracle`: scripts/lerobot_environment.sh DIR prints its interpreter, or says
# why there is none and ends with 1. About 6 GB and five minutes; asks the package index once. PYTHON312 names the Python
# 3.12 that LeRobot needs. LeRobot goes in without its dependencies: SmolVLA, its processors, its datasets and peft need
# the packages below and none of its robots, simulators and trackers.
set -euo pipefail
dir=${1:?give a folder for the environment}
python=${PYTHON312:-python3.12}
have='import lerobot, peft, transformers; from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy'
say() { echo "$*" >&2; }

if HF_HUB_OFFLINE=1 "$dir/bin/python" -c "$have" 2>/dev/null; then
  echo "$dir/bin/python"
  exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null || {
  say "no LeRobot here: $python is not Python 3.12; install it, or name one with PYTHON312=PATH"
  exit 1
}
say "== making the environment $dir with LeRobot 0.6.1"
"$python" -m venv "$dir"
pip() { "$dir/bin/pip" --disable-pip-version-check -q "$@" >&2; }
pip install ${TORCH_INDEX:-} "torch>=2.7" torchvision &&
  pip install "transformers>=5.4,<5.6" "huggingface-hub>=1.6,<2" "accelerate>=1.14,<2" "peft>=0.18,<1" num2words \
    "datasets>=4.8,<5" "pandas>=2,<3" "pyarrow>=21" "av>=15,<16" jsonlines "draccus>=0.11.6,<0.12" einops \
    "gymnasium>=1.1.1,<2" "opencv-python-headless>=4.9,<4.14" deepdiff termcolor requests tqdm onnxruntime rich "setuptools<82" \
    "numpy>=2,<2.3" "pillow>=10,<13" "feetech-servo-sdk>=1,<2" pyserial &&
  pip install --no-deps "lerobot==0.6.1" || {
  say "no LeRobot here: the package index did not give it (see above); run it again with a network, or set LEROBOT_PYTHON"
  exit 1
}
HF_HUB_OFFLINE=1 "$dir/bin/python" -c "$have" >&2 || {
  say "no LeRobot here: it is installed in $dir and does not import (see above)"
  exit 1
}
echo "$dir/bin/python"
