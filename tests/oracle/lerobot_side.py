# SPDX-License-Identifier: Apache-2.0
"""LeRobot itself, asked line by line: run by an interpreter that has it, imports nothing of this repository.

A request is one line of JSON on stdin, {"do": NAME, ...}; the answer one line on stdout, with `error` where it failed.
Arrays travel in .npz files that the request names.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

Request = dict[str, Any]


def versions(_: Request) -> dict[str, Any]:
    """Of the packages, and what older ones lack."""
    import lerobot
    import transformers
    from lerobot.processor.pipeline import ProcessorStepRegistry

    found = {"lerobot": lerobot.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    relative = "relative_actions_processor" in ProcessorStepRegistry.list()
    return {**found, "peft": find_spec("peft") is not None, "relative": relative}


def place_patches() -> None:
    """transformers 4 takes 1e-6 off a patch's place in the picture, which in float32 puts nearly every patch one place
    too early (in bfloat16 it is rounded away); put back here, as transformers 5 has it."""
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        bucketize = torch.bucketize
        places: Any = lambda x, limits, right: bucketize(x / (1 - 1e-6) + 3e-7, limits, right=right)  # noqa: E731
        torch.bucketize = places


def chunk(request: Request) -> dict[str, Any]:
    """The chunk in robot units for one raw observation (noise where the policy takes some): folder, inputs, out; base:
    the folder is a LoRA adapter."""
    from safetensors.torch import save_file

    policy = load(request)
    before, after = processors(policy, request["folder"])
    with np.load(request["inputs"]) as given:
        batch: dict[str, Any] = {
            name.removeprefix("image/"): torch.from_numpy(given[name]).float().permute(2, 0, 1) / 255
            for name in given.files
            if name.startswith("image/")
        }
        batch |= {"observation.state": torch.from_numpy(given["state"]), "task": str(given["task"])}
        drawn = {"noise": torch.from_numpy(given["noise"])} if "noise" in given.files else {}
    actions = after(policy.predict_action_chunk(before(batch), **drawn))
    np.savez(request["out"], actions=actions.numpy())
    if request.get("merged"):
        whole = policy.merge_and_unload().state_dict()
        save_file({name: value.clone().contiguous() for name, value in whole.items()}, request["merged"])
    return {}


def step(request: Request) -> dict[str, Any]:
    """One optimiser step on raw samples: folder, inputs, out, steps (of the whole run): the loss, and by tensor what
    was its gradient and what it became."""
    policy = load(request)
    before, _ = processors(policy, request["folder"])
    with np.load(request["inputs"]) as given:
        batch: dict[str, Any] = {
            name.removeprefix("image/"): torch.from_numpy(given[name]).float().permute(0, 3, 1, 2) / 255
            for name in given.files
            if name.startswith("image/")
        }
        batch |= {"observation.state": torch.from_numpy(given["state"]), "action": torch.from_numpy(given["action"])}
        batch |= {"action_is_pad": torch.from_numpy(given["is_pad"]), "task": [str(task) for task in given["task"]]}
        noise, time = torch.from_numpy(given["noise"]), torch.from_numpy(given["time"])
    policy.train()
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    scheduler = policy.config.get_scheduler_preset().build(optimizer, request["steps"])
    loss, _ = policy.forward(before(batch), noise=noise, time=time)
    loss.backward()
    gradients = {name: p.grad.numpy().copy() for name, p in policy.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
    optimizer.step()
    scheduler.step()
    after = {f"after/{name}": value.detach().numpy() for name, value in policy.named_parameters() if name in gradients}
    np.savez(request["out"], **{f"gradient/{name}": value for name, value in gradients.items()}, **after)
    trained = [name for name, value in policy.named_parameters() if value.requires_grad]
    return {"loss": loss.item(), "norm": float(norm), "rate": scheduler.get_last_lr()[0], "trained": trained}


def adapter(request: Request) -> dict[str, Any]:
    """A LoRA folder as the trainer saves it: base, out, settings of peft's LoraConfig, seed of its weights."""
    from peft import LoraConfig, get_peft_model

    base = load({"folder": request["base"]})
    base.config.pretrained_path = request["name"]
    policy = get_peft_model(base, LoraConfig(**request["settings"]))
    generator = torch.Generator().manual_seed(request["seed"])
    with torch.no_grad():
        for value in policy.parameters():
            if value.requires_grad:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    policy.peft_config["default"].base_model_name_or_path = request["name"]
    policy.save_pretrained(request["out"])
    base.config.use_peft = True
    base.config.save_pretrained(request["out"])
    return {"files": sorted(file.name for file in Path(request["out"]).iterdir())}


def load(request: Request) -> Any:
    """The policy, read strictly; under its adapter where the request names a base."""
    from lerobot.policies.factory import get_policy_class

    folder = request.get("base") or request["folder"]
    os.chdir(folder)
    kind = json.loads((Path(folder) / "config.json").read_text())["type"]
    policy = get_policy_class(kind).from_pretrained(folder, strict=True)
    if not request.get("base"):
        return policy
    from peft import PeftModel

    return PeftModel.from_pretrained(policy, request["folder"])


def processors(policy: Any, folder: str) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors

    cpu = {"device_processor": {"device": "cpu"}}
    return make_pre_post_processors(policy.config, pretrained_path=folder, preprocessor_overrides=cpu)


def dinov2(request: Request) -> dict[str, Any]:
    """A random Dinov2Model: seed, width, layers, folder it is saved to, sizes of random pictures, out (pictures and the
    last rows of each)."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(request["seed"])
    sizes = {"hidden_size": request["width"], "num_hidden_layers": request["layers"], "image_size": 518}
    made = Dinov2Model(Dinov2Config(num_attention_heads=request["width"] // 64, **sizes)).eval()
    kept: dict[str, Any] = {}
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for number, size in enumerate(request["sizes"]):
            picture = torch.randn(1, 3, *size)
            rows = made(pixel_values=picture).last_hidden_state
            kept |= {f"picture{number}": picture.numpy(), f"rows{number}": rows.numpy()}
    made.save_pretrained(request["folder"])
    np.savez(request["out"], **kept)
    return {}


def opens(request: Request) -> dict[str, Any]:
    """Whether LeRobot opens the checkpoint in `folder`, else why not."""
    import lerobot.policies.factory  # noqa: F401 - makes every kind of policy known
    from lerobot.configs.policies import PreTrainedConfig

    try:
        PreTrainedConfig.from_pretrained(request["folder"])
    except Exception as error:  # noqa: BLE001 - whatever it raises is the answer
        return {"why": str(error)}
    return {"why": ""}


WORK = (versions, chunk, step, adapter, dinov2, opens)
DO: dict[str, Callable[[Request], dict[str, Any]]] = {work.__name__: work for work in WORK}
DO |= import_module("lerobot_datasets").DO | import_module("lerobot_so101").DO


def main() -> None:
    torch.set_num_threads(1)
    place_patches()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what LeRobot prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = DO[request["do"]](request)
        except Exception as error:  # noqa: BLE001 - whatever LeRobot raises is the answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
