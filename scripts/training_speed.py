# SPDX-License-Identifier: Apache-2.0
"""Seconds of a fine-tuning step at full size: pictures each step, kept picture tokens, and LeRobot's own loop beside.

    python scripts/training_speed.py --work DIR [--lerobot PYTHON] [--size tiny]

All train the same random policy on the same recorded noise, two cameras of 640×480, one after the other on one machine;
the first step is left out. The ceiling of keeping tokens is a step without the vision tower. Then the loaders alone:
samples a second by number of processes. Exit code 1 where kept tokens are not four times as fast as pictures.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.random_data import write_random_data
from tests.random_policy import RandomPolicy, write_random_policy

from vla_edge.command_line import count, run_command, threads
from vla_edge.command_parser import CommandParser
from vla_edge.errors import CheckFailed
from vla_edge.files import write_json
from vla_edge.policies.checkpoint_folder import VLM_FOLDER
from vla_edge.policies.smolvla.policy import SmolVLAPolicy
from vla_edge.training.batches import batches
from vla_edge.training.run_config import TaskData
from vla_edge.training.run_files import read_metrics
from vla_edge.training.sampler import QuotaSampler, Source
from vla_edge.training.training_frames import Frames, FrameSettings, Mix

CAMERAS = ("laptop", "phone")
EPISODES, LENGTH = 2, 60
LEAST = 4.0
"""Times as fast as steps on pictures."""
THEIR_LOADER = """
import sys, time, torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, batch, workers, count = sys.argv[1], *map(int, sys.argv[2:])
if __name__ == "__main__":
    times = {"action": [i / 30 for i in range(50)]}
    data = LeRobotDataset("local/speed", root=root, delta_timestamps=times, video_backend="pyav")
    loader = torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True)
    it = iter(loader)
    next(it)
    start = time.perf_counter()
    for _ in range(count):
        try:
            next(it)
        except StopIteration:
            it = iter(loader)
            next(it)
    print(batch * count / (time.perf_counter() - start))
"""


def our_step(work: Path, name: str, words: Sequence[object]) -> float:
    """Median seconds of a step of `vla-train fine-tune`, in a process of its own."""
    out = work / f"{name}-{time.time_ns()}"
    fixed = ["--checkpoint", work / "policy", "--dataset", work / "data", "--out", out, "--device", "cpu", "--no-save"]
    command = [sys.executable, "-m", "vla_edge.training.command", "fine-tune", *fixed, "--log-every", 1, *words]
    subprocess.run([str(word) for word in command], check=True)
    return statistics.median(row["s_per_step"] for row in read_metrics(out)[1:])


def their_step(work: Path, python: str, batch: int, steps: int, workers: int) -> float:
    """Median seconds of a step of LeRobot's training loop, loading included, as it logs them."""
    options = {
        "policy.path": work / "policy", "policy.device": "cpu", "policy.push_to_hub": "false",
        "dataset.repo_id": "local/speed", "dataset.root": work / "data", "dataset.video_backend": "pyav",
        "batch_size": batch, "steps": steps, "num_workers": workers, "log_freq": 1, "save_checkpoint": "false",
        "wandb.enable": "false", "output_dir": work / f"lerobot-{time.time_ns()}",
    }  # fmt: skip
    names = {f"observation.images.{name}": f"observation.images.{name}" for name in CAMERAS}
    words = [f"--{name}={value}" for name, value in {**options, "rename_map": json.dumps(names)}.items()]
    done = subprocess.run([python, "-m", "lerobot.scripts.lerobot_train", *words], capture_output=True, text=True)
    logged = re.findall(r"updt_s:([0-9.]+) data_s:([0-9.]+)", done.stdout + done.stderr)
    found = [float(update) + float(loading) for update, loading in logged]
    if len(found) < 2:
        raise CheckFailed(f"LeRobot's loop ended with {done.returncode}: {(done.stderr or 'nothing').splitlines()[-1]}")
    return statistics.median(found[1:])


def our_loader(work: Path, batch: int, workers: int, rounds: int) -> float:
    """Samples a second, decoded and collated, nothing kept."""
    policy = SmolVLAPolicy.from_pretrained(work / "policy")
    keys = tuple(camera.source for camera in policy.settings.cameras)
    frames = Frames(TaskData("data", str(work / "data")), FrameSettings(keys, policy.config.chunk_size, 0))
    sampler = QuotaSampler([Source("data", len(frames), 1.0)], batch, 0)
    stream = batches(Mix([frames]), policy, sampler, sampler.start(), (0, 1), workers)
    next(stream)
    start = time.perf_counter()
    for _ in range(rounds):
        next(stream)
    return batch * rounds / (time.perf_counter() - start)


def their_loader(work: Path, python: str, batch: int, workers: int, rounds: int) -> float:
    script = work / "their_loader.py"
    script.write_text(THEIR_LOADER)
    words = [python, script, work / "data", batch, workers, rounds]
    done = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="python scripts/training_speed.py", description="seconds of a training step")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="policy and data are kept here")
    parser.add_argument("--lerobot", metavar="PYTHON", help="of an environment with LeRobot, to run its loop beside")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try the command")
    parser.add_argument("--batch", type=count, default=4, help="samples a step")
    parser.add_argument("--steps", type=count, default=6, help="of each run")
    parser.add_argument("--workers", type=threads, nargs="*", default=[0, 1, 2], help="loader processes to compare")
    parser.add_argument("--rounds", type=count, default=20, help="batches of each loader")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "policy").exists():
        write_random_policy(work / "policy", RandomPolicy(size=arguments.size, dtype="bfloat16"))
        for file in (work / "policy").glob("*.json"):  # LeRobot takes a relative backbone from where it is started
            file.write_text(file.read_text().replace(f'"{VLM_FOLDER}"', json.dumps(str(work / "policy" / VLM_FOLDER))))
    if not (work / "data").exists():
        write_random_data(work / "data", CAMERAS, (480, 640), EPISODES, LENGTH, "video", block=16)
    same = ["--batch-size", arguments.batch, "--steps", arguments.steps, "--workers", 0]
    kept = [*same, "--cache-vision", work / "tokens"]
    found = {"pictures": our_step(work, "pictures", same), "kept tokens": our_step(work, "kept", kept)}
    if arguments.lerobot:
        found["LeRobot's loop"] = their_step(work, arguments.lerobot, arguments.batch, arguments.steps, 0)
    loaders: dict[str, dict[int, float]] = {"ours": {}, "LeRobot's": {}}
    for workers in arguments.workers:
        loaders["ours"][workers] = our_loader(work, arguments.batch, workers, arguments.rounds)
        if arguments.lerobot:
            rounds = arguments.rounds
            loaders["LeRobot's"][workers] = their_loader(work, arguments.lerobot, arguments.batch, workers, rounds)
    for name, seconds in found.items():
        print(f"{name:<16} {seconds:8.3f} s a step of {arguments.batch}, {found['pictures'] / seconds:.2f} × pictures")
    for name, rates in loaders.items():
        print(f"loader, {name:<12}" + ", ".join(f"{workers} processes {rate:.1f}/s" for workers, rate in rates.items()))
    write_json(work / "training_speed.json", {"step_s": found, "samples_s": loaders, "batch": arguments.batch})
    gained = found["pictures"] / found["kept tokens"]
    if gained < LEAST:
        raise CheckFailed(f"kept tokens are {gained:.2f} times as fast as pictures, wanted {LEAST:g}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
