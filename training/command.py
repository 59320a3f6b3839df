# SPDX-License-Identifier: Apache-2.0
"""`vla-train`: a table of subcommands, each a module's `add_…` and `run_…`."""

from __future__ import annotations

import sys

from vla_edge.command_line import Command, Subcommand, by_word

TRAINING = "vla_edge.training"
START, EVALUATE, PHASES = (
    f"{TRAINING}.start",
    f"{TRAINING}.evaluation.evaluate",
    f"{TRAINING}.sequential.phases_command",
)
TYPED, TYPED_OF_EVALUATION = f"{TRAINING}.arguments", f"{TRAINING}.evaluation.evaluation_arguments"

main = Command(
    "vla-train",
    "Fine-tune a policy on LeRobot data, and say how good it is.",
    by_word(
        {
            "fine-tune": Subcommand(
                START,
                "train from a LeRobot checkpoint (base policy, or delta expert and CLS head)",
                "fine-tune --checkpoint CHECKPOINT --dataset DATASET --out RUN --steps 20000",
                TYPED,
            ),
            "distill": Subcommand(
                START,
                "an expert that makes its chunk in 1, 2 or 4 flow steps, from a trained policy",
                "distill --checkpoint CHECKPOINT --dataset DATASET --out RUN --flow-steps 1",
                TYPED,
            ),
            "scratch": Subcommand(
                START,
                "train a new action expert on a pretrained backbone",
                "scratch --backbone SMOLVLM2 --dataset DATASET --out RUN",
                TYPED,
            ),
            "smoke": Subcommand(
                START,
                "10 episodes, 20 steps: does everything fit together, and does the loss fall?",
                "smoke --checkpoint CHECKPOINT --dataset DATASET --out RUN",
                TYPED,
            ),
            "resume": Subcommand(START, "continue an interrupted run exactly", "resume RUN", TYPED),
            "plan": Subcommand(
                f"{TRAINING}.step_plan",
                "memory and seconds of a step by batch, precision and cache, before anything is trained",
                "plan --checkpoint CHECKPOINT --batch 1 8 32",
                TYPED,
            ),
            "anchors": Subcommand(
                PHASES,
                "build CRaFT's anchor cache from the starting checkpoint",
                "anchors --checkpoint CHECKPOINT --dataset DATASET --out ANCHORS",
                TYPED,
            ),
            "stages": Subcommand(
                PHASES,
                "tasks one after the other with replay (Kuavo), transfer matrix, forgetting",
                "stages kuavo --checkpoint CHECKPOINT --out RUN --dataset grasp=DATASET --dry-run",
                TYPED,
            ),
            "evaluate": Subcommand(
                EVALUATE,
                "chunk errors on recorded episodes, beside holding still and the mean action",
                "evaluate CHECKPOINT --dataset DATASET --episodes 40-49",
                TYPED_OF_EVALUATION,
            ),
            "compare": Subcommand(
                EVALUATE,
                "policies side by side: latency, parameters, error; picture and table",
                "compare CHECKPOINT BUNDLE --dataset DATASET --png comparison.png",
                TYPED_OF_EVALUATION,
            ),
            "cls-report": Subcommand(
                f"{TRAINING}.evaluation.cls_report",
                "what a trained CLS head sees: similarities, hit rate, AUROC, plot",
                "cls-report CHECKPOINT --dataset DATASET --out FOLDER",
                TYPED_OF_EVALUATION,
            ),
            "status": Subcommand(
                f"{TRAINING}.run_files",
                "step, loss, learning rate, time left, checkpoints, last error of a run",
                "status RUN",
            ),
        }
    ),
    old={
        "gate": "vla-train cls-report",
        "--policy": "--checkpoint",
        "--output": "--out",
        "--rename": "--camera",
        "--data": "--dataset",
        "--save": "--out",
        "--vlm": "--backbone",
        "--resnet": "--backbone",
    },  # fmt: skip
    extras="train",
    translate="vla_edge.training.lerobot_arguments:translate",
)

if __name__ == "__main__":
    sys.exit(main())
