# SPDX-License-Identifier: Apache-2.0
"""The reaching policy as an ACT: its recipe in small, the colour folded in, and the committed checkpoints at work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_edge.errors import ConfigError
from vla_edge.export.assemble import ExportRequest, export_bundle
from vla_edge.policies.act.config import config_from_json, write_config
from vla_edge.policies.act.new_policy import new_act
from vla_edge.policies.act.policy import ACTPolicy
from vla_edge.policies.features import STATE
from vla_edge.robot.sim.render import rendering_fault
from vla_edge.runtime.inference.session import SessionOptions
from vla_edge.trials.evaluate_reach import ColourPlanner
from vla_edge.trials.lockstep import LockstepOptions
from vla_edge.trials.reach_act import ACT_POLICY, ACTRecipe, one_colour, told_the_colour, train
from vla_edge.trials.reach_data import CUBE_COLOURS, ReachRecording, record_reach_dataset
from vla_edge.trials.reach_task import new_arm, other_colour, reach, wanted_colour

FAULT = rendering_fault()
renders = pytest.mark.skipif(FAULT is not None, reason=str(FAULT))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reach-cube" / "act"
RECIPE = ACTRecipe(warmup_steps=2, steps=2, batch=4, held_out_scenes=1)


@renders
def test_a_run_is_repeatable_and_leaves_a_checkpoint_per_colour(tmp_path: Path) -> None:
    record_reach_dataset(tmp_path / "data", ReachRecording(scenes=3, observations=6, processes=1))
    first = train(tmp_path / "data", tmp_path / "a", RECIPE)
    train(tmp_path / "data", tmp_path / "b", RECIPE)
    assert np.isfinite(first["chunk_error"])
    for colour in CUBE_COLOURS:
        a, b = ((tmp_path / name / colour / "model.safetensors").read_bytes() for name in "ab")
        assert a == b
        assert ACTPolicy.from_pretrained(tmp_path / "a" / colour).config.state_dim == 6


def test_the_policy_of_a_colour_is_the_one_that_is_told_it() -> None:
    config, settings = (policy := ACTPolicy.from_pretrained(EXAMPLE / "red")).config, policy.settings
    told = new_act(told_the_colour(config), settings, "", 3).eval()
    told.load_state_dict({name: value.half().float() for name, value in told.state_dict().items()})
    state, pictures = torch.randn(1, 6, generator=torch.Generator().manual_seed(1)), [torch.zeros(1, 3, 96, 128)] * 2
    for number, colour in enumerate(CUBE_COLOURS):
        one = one_colour(told, config, settings, colour)
        with torch.no_grad():
            wanted = told.model(pictures, torch.cat((state, torch.eye(3)[number : number + 1]), 1))
            # The folded bias is rounded to float16 again.
            assert (one.model(pictures, state) - wanted).abs().max() <= 2e-3 * wanted.abs().max()


def test_a_narrower_resnet_is_written_down_and_lerobots_own_is_not(tmp_path: Path) -> None:
    for name, fields in (("own", {"backbone_width": 64}), ("narrow", {})):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, config_from_json({**ACT_POLICY, **fields}, "here"))
    own, narrow = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("own", "narrow"))
    assert "backbone_width" not in own and narrow["backbone_width"] == 12
    with pytest.raises(ConfigError, match="backbone_width is -1, must be at least 1"):
        config_from_json({**ACT_POLICY, "backbone_width": -1}, "here")


@renders
def test_the_committed_policies_reach_their_cube_and_no_other(tmp_path: Path) -> None:
    for colour in CUBE_COLOURS:
        request = ExportRequest(EXAMPLE / colour, tmp_path / colour, threads=1, joint_units="degrees", fps=30.0)
        export_bundle(request, lambda step: None)
    planner = ColourPlanner(tmp_path, SessionOptions(), 1)
    options = LockstepOptions(planner.sizes, seconds=5, replan_ticks=25)
    arm = new_arm(options)
    right, wrong = [], []
    for seed in range(90_000, 90_006):
        right.append(reach(arm, planner, seed, wanted_colour(seed), options).reached(wanted_colour(seed)))
        wrong.append(reach(arm, planner, seed, other_colour(seed), options).reached(wanted_colour(seed)))
    arm.close()
    assert sum(right) >= 5 and sum(wrong) <= 1, (right, wrong)


def test_the_committed_files_are_small() -> None:
    assert sum(file.stat().st_size for file in EXAMPLE.rglob("*") if file.is_file()) <= 4_200_000
    assert {item.name for item in ACTPolicy.from_pretrained(EXAMPLE / "red").config.input_features} > {STATE}
