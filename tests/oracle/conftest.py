# SPDX-License-Identifier: Apache-2.0
"""LeRobot in a process of its own, asked by the tests of this folder.

`LEROBOT_PYTHON` names an interpreter that has LeRobot (`make oracle` makes one by scripts/lerobot_environment.sh).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[..., dict[str, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is marked, and skipped with its reason where there is no LeRobot."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.oracle)
            if not os.environ.get("LEROBOT_PYTHON"):
                item.add_marker(pytest.mark.skip(reason="LEROBOT_PYTHON names no interpreter with LeRobot"))


@pytest.fixture(scope="session")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A function that asks LeRobot for one thing of tests/oracle/lerobot_side.py and returns its answer."""
    log = tmp_path_factory.mktemp("lerobot") / "log.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [os.environ["LEROBOT_PYTHON"], str(Path(__file__).with_name("lerobot_side.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "HF_HUB_OFFLINE": "1"},
        )
        questions, answers = process.stdin, process.stdout
        assert questions is not None and answers is not None

        def ask(do: str, **fields: Any) -> dict[str, Any]:
            print(json.dumps({"do": do, **fields}, default=str), file=questions, flush=True)
            line = answers.readline()
            assert line, f"LeRobot's process ended:\n{log.read_text()[-2000:]}"
            answer = dict(json.loads(line))
            assert "error" not in answer, f"{answer['error']}\n{log.read_text()[-3000:]}"
            return answer

        print("LeRobot:", ask("versions"))
        yield ask
        questions.close()
        process.wait()
