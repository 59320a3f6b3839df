# SPDX-License-Identifier: Apache-2.0
"""The seven commands as a person at a terminal meets them: help, errors in one line, `--json`, old names, packages that
are not here."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from vla_edge import command_line, installation
from vla_edge.command_line import Command, answer, run_command
from vla_edge.command_parser import GONE, CommandParser
from vla_edge.errors import CheckFailed, ConfigError

ROOT = Path(__file__).resolve().parent.parent
V30 = ROOT / "tests" / "data" / "koch_v30_official"
CHECKPOINT = ROOT / "tests" / "golden" / "koch-bfloat16"
MODULES = {
    "export-engines": "vla_edge.export.command",
    "vla-runtime": "vla_edge.runtime.command",
    "vla-bench": "vla_edge.benchmarks.command",
    "vla-calibrate": "vla_edge.calibration.command",
    "vla-data": "vla_edge.lerobot_data.command",
    "vla-train": "vla_edge.training.command",
    "vla-doctor": "vla_edge.doctor",
}
COMMANDS: dict[str, Command] = {name: import_module(module).main for name, module in MODULES.items()}
EVERY = [(command, word) for command, main in COMMANDS.items() for word in main.subcommands]
OLD: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests" / "data" / "old_flags.json").read_text())
"""Every option and argument of commit 35ebfe7, taken from its parsers by a script."""


def refusal(main: Command, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command line is refused."""
    capsys.readouterr()
    assert main(words) == 2, words
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
    return captured.err.strip()


@pytest.mark.parametrize(("command", "word"), EVERY)
def test_help_says_what_each_option_is_and_gives_an_example_that_parses(command: str, word: str) -> None:
    parser = COMMANDS[command].parser(word)
    without = [action.dest for action in parser._actions if not action.help and action.help is not argparse.SUPPRESS]
    assert not without, f"no help for {without}"
    text = parser.format_help()
    assert text.count("\nexample:\n") == 1 and {"--help", "--version", "--json"} <= set(text.split())
    example = text.rpartition("example:\n")[2].replace("\\\n", " ").strip()
    words = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', example)]
    assert words[0] == command
    own = words[2:] if words[1:2] == [word] else words[1:]
    parser.parse_args(own)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main = COMMANDS[command]
    texts = [main.parser(word).format_help() for word in main.subcommands] + [main.overview()]
    assert not [line for text in texts for line in text.splitlines() if len(line) > 80]


@pytest.mark.parametrize(("command", "word"), EVERY)
def test_a_mistyped_option_is_one_line_with_a_suggestion(
    command: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = COMMANDS[command].parser(word)
    positionals = ["1"] * sum(not action.option_strings for action in parser._actions)
    required = [
        text
        for action in parser._actions
        if action.required and action.option_strings
        for text in (action.option_strings[-1], str(next(iter(action.choices))) if action.choices else "a=b")
    ]
    group = [
        group._group_actions[-1].option_strings[-1] for group in parser._mutually_exclusive_groups if group.required
    ]
    words = [*([word] if word else []), *positionals, *required, *group, "--jsom"]
    line = refusal(COMMANDS[command], words, capsys)
    assert "there is no option --jsom; did you mean --json?" in line and f"`{parser.prog} --help`" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_typing_error_do_not_wait_for_torch(command: str) -> None:
    program = (
        f"import sys\nfrom {MODULES[command]} import main\n"
        "for name in main.subcommands:\n"
        "    main.parser(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_defaults_are_shown_where_there_is_one() -> None:
    text = " ".join(COMMANDS["vla-data"].parser("compare").format_help().split())
    assert "pictures compared per episode and camera (default: 3)" in text
    text = " ".join(COMMANDS["vla-train"].parser("plan").format_help().split())
    assert "batch sizes of the table (default: 1 8 32)" in text
    text = " ".join(COMMANDS["vla-data"].parser("tasks").format_help().split())
    assert text.count("default") == 1, "the option says it itself"


def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(COMMANDS["vla-doctor"], ["--nee", "export"], capsys)
    assert "did you mean --need?" in line


def test_an_option_typed_wrong_is_told_before_what_is_missing_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(COMMANDS["vla-train"], ["fine-tune", "--chekpoint=a", "--dataset", "b"], capsys)
    assert "there is no option --chekpoint; did you mean --checkpoint?" in line
    line = refusal(COMMANDS["vla-train"], ["resume", "run", "--steps", "9"], capsys)
    assert "did you mean" not in line, "--help is no guess"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_version_and_the_overview_are_printed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = COMMANDS[command]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{command} {command_line.__version__}\n"
    if "" not in main.subcommands:
        assert main(["--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert all(name in text and entry.purpose in text for name, entry in main.subcommands.items())


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("vla-runtime", ["statsu"], "has no subcommand 'statsu'; did you mean status?"),
        ("vla-train", ["fine-tuen"], "did you mean fine-tune?"),
        ("vla-train", [], "vla-train needs a subcommand: fine-tune"),
        ("vla-bench", ["compar", "a", "b"], "did you mean compare?"),
        ("vla-doctor", ["--need", "expotr"], "'expotr' is none of "),
        ("vla-doctor", ["--need", "expotr"], "did you mean export?"),
        ("vla-data", ["tasks", "x", "--limit", "0"], "--limit: '0' is not a whole number from 1 up"),
        ("vla-data", ["convert", "a", "/proc/version/b"], "/proc/version is a file"),
        ("vla-data", ["verify"], "missing: dataset"),
        ("vla-bench", ["--bundle", "b", "--threads", "9999"], "what this machine has"),
    ],
)
def test_a_typing_error_is_one_line_and_never_the_usage(
    command: str, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(COMMANDS[command], words, capsys)
    assert line.startswith("error: ") and told in line and "usage" not in line


def test_json_is_one_object_on_errors_too(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(words: Any) -> int:
        print("for people")
        answer({"found": 3, "worst": float("inf")})
        raise CheckFailed("three are too many")

    def wrong(words: Any) -> int:
        raise ConfigError("no such thing;\nlook elsewhere")

    assert run_command(failing, ["--json"]) == 1
    captured = capsys.readouterr()
    strict = json.loads(captured.out, parse_constant=pytest.fail)
    assert strict == {"found": 3, "worst": None, "error": "three are too many", "exit_code": 1}
    assert captured.err.splitlines() == ["for people", "failed: three are too many"]
    assert run_command(wrong, ["--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"error": "no such thing; look elsewhere", "exit_code": 2}
    with pytest.raises(ZeroDivisionError):
        run_command(lambda words: 1 // 0, ["--json"])
    assert json.loads(capsys.readouterr().out)["error"].startswith("ZeroDivisionError: ")
    for command, main in COMMANDS.items():
        assert main(["--jsom", "--json"]) == 2, command
        assert json.loads(capsys.readouterr().out)["exit_code"] == 2


WITHOUT_PICTURES = {("vla-runtime", "identity"), ("vla-train", "resume"), ("vla-train", "stages")}
"""Read names and numbers, or take the tolerance from the run or the stage file."""


@pytest.mark.parametrize(("command", "word"), EVERY)
def test_a_dataset_is_read_with_a_tolerance_everywhere(command: str, word: str) -> None:
    flags = {flag for action in COMMANDS[command].parser(word)._actions for flag in action.option_strings}
    if "--dataset" in flags and (command, word) not in WITHOUT_PICTURES:
        assert "--tolerance" in flags


@pytest.mark.parametrize("place", OLD)
def test_every_old_option_means_the_same_or_names_the_new_one(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, _, word = place.partition(" ")
    main = COMMANDS[command]
    if word not in main.subcommands:
        line = refusal(main, [word], capsys)
        word = line.split(" is now `")[1].split("`")[0].removeprefix(f"{command} ")
    parser = main.parser(word)
    prefix = [word] if word else []
    positionals = [action for action in parser._actions if not action.option_strings]
    for row in OLD[place]:
        if not row["names"][0].startswith("-"):
            taken = positionals.pop(0)
            assert taken.nargs == "?" or (1 if taken.nargs is None else taken.nargs) == row["values"], row
            continue
        for name in row["names"]:
            action = parser._option_string_actions.get(name)
            if action is None:
                told = refusal(main, [*prefix, name, "1"], capsys).partition(" is now ")[2]
                assert told.startswith(GONE) or told.split(";")[0] in parser._option_string_actions, (name, told)
                continue
            assert (1 if action.nargs is None else action.nargs) == row["values"], name
            for choice in row.get("choices", []) if action.choices else []:
                if choice in map(str, action.choices or ()):
                    continue
                told = refusal(main, [*prefix, name, choice], capsys).partition(" is now ")[2]
                new = told.split(";")[0].split()
                assert new[0] == name and new[1] in map(str, action.choices or ()), (name, choice, told)


WITHOUT = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from importlib import import_module
main = import_module(sys.argv[2]).main
told = []
for words in json.loads(sys.argv[3]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as exit_:
            code = exit_.code
    told.append([code, err.getvalue()])
print(json.dumps(told))
"""


def calls(bundle: Path, folder: Path) -> dict[str, list[list[str]]]:
    """A command line for every subcommand that gets as far as its packages allow."""
    b, data, record = str(bundle), str(V30), str(folder / "none.record")
    arm = ["--port", "/dev/null", "--joints", str(folder / "none.json")]
    run_dir = ["--run-dir", str(folder / "none")]
    trained = ["--dataset", data, "--out", str(folder / "new")]
    return {
        "export-engines": [
            ["--checkpoint", str(CHECKPOINT), "--out", str(folder / "a")],
            ["--bundle", b, "--precision", "int8", "--synthetic", "--out", str(folder / "b")],
            ["--inspect", b],
        ],
        "vla-runtime": [
            ["run", "--bundle", b],
            ["control", "--bundle", b, *arm],
            ["inference", "--bundle", b, "--task", "x", "--camera", "laptop=0", *run_dir],
            *([word, *run_dir] for word in ("status", "arm", "hold", "park", "stop", "torque-off")),
            ["recover", *run_dir],
            ["replay", record, "--inputs", record, "--export", str(folder / "c")],
            ["report", record],
            ["serve", "--bundle", b],
            ["infer", "--bundle", b, "--observation", "none.npz", "--out", str(folder / "d.npz")],
            ["calibrate-joints", *arm],
            ["move", *arm, "--park"],
            ["lockstep", "--bundle", b, "--task", "x"],
            ["identity", "--bundle", b, "--dataset", data],
            ["cameras", "--camera", "a=file:none.mp4", "--out", str(folder / "e.png")],
            [
                "setup",
                "--bundle",
                str(folder / "none"),
                "--out",
                str(folder / "robot.yaml"),
                "--sheet",
                str(folder / "f.png"),
            ],
            ["demo", "--out", str(folder / "demo"), "--random"],
            ["install-service", "--robot-file", str(folder / "none.yaml")],
            ["uninstall-service", "--unit-dir", str(folder / "none")],
        ],
        "vla-bench": [["--bundle", b, "--rounds", "1"], ["compare", record, record]],
        "vla-calibrate": [["gate", "--bundle", b, "--dataset", data, "--out", str(folder / "f")]],
        "vla-data": [
            ["convert", data, str(folder / "g")],
            ["verify", data],
            ["compare", data, data],
            ["stats", data],
            ["tasks", data],
            ["info", data],
            ["merge", data, data, "--out", str(folder / "h")],
            ["split", data, "--part", "a=0.5", "--out", str(folder / "i")],
            ["delete", data, "--episodes", "0", "--out", str(folder / "j")],
            ["renumber", data, "--out", str(folder / "k")],
        ],
        "vla-train": [
            *([word, "--checkpoint", str(CHECKPOINT), *trained] for word in ("fine-tune", "smoke", "anchors")),
            ["scratch", "--backbone", str(CHECKPOINT / "vlm"), *trained],
            ["distill", "--checkpoint", str(CHECKPOINT), "--flow-steps", "1", *trained],
            ["plan", "--checkpoint", str(CHECKPOINT)],
            ["resume", str(folder)],
            ["stages", "kuavo", "--dry-run"],
            ["evaluate", b, "--dataset", data],
            ["compare", b, "--dataset", data],
            ["cls-report", str(CHECKPOINT), "--dataset", data],
            ["status", str(folder / "none")],
        ],
        "vla-doctor": [[], ["deploy", b]],
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_without_any_optional_package_every_subcommand_says_in_one_line_what_to_type(
    command: str, golden_bundle: Path, tmp_path: Path
) -> None:
    lines = calls(golden_bundle, tmp_path)[command]
    named = {words[0] if words and words[0] in COMMANDS[command].subcommands else "" for words in lines}
    assert set(COMMANDS[command].subcommands) <= named | {""}, "a subcommand is not tried"
    blocked = json.dumps(sorted(installation.EXTRAS))
    made = subprocess.run(
        [sys.executable, "-c", WITHOUT, blocked, MODULES[command], json.dumps(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    for words, (code, err) in zip(lines, json.loads(made.stdout)):
        errors = [line for line in err.splitlines() if line.startswith(("error: ", "failed: "))]
        assert code in (1, 2) and len(errors) == 1, (words, code, err)
        assert "vla-edge[" not in err, "the index has another project under our name"
        if "not installed" in err:
            assert re.search(r"install it with: \S*pip install ", errors[0]), (words, err)
    if command != "vla-doctor":
        assert "not installed" in made.stdout


def test_no_text_of_ours_installs_a_name_of_the_package_index() -> None:
    listed = subprocess.run(
        ["git", "grep", "-nE", r"pip install[^\n]*vla-edge|vla-edge\[", "--", ".", ":!tests", ":!pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not listed.stdout, listed.stdout


def test_the_install_command_starts_from_the_clone_the_wheel_or_the_packages_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert installation.install_command("train").endswith('pip install -e ".[train]"')
    monkeypatch.chdir(tmp_path)
    assert installation.install_command("train").endswith(f'pip install -e "{ROOT}[train]"')

    class Installed:
        requires = [
            "numpy>=1",
            "torch>=2.5; extra == 'export'",
            "vla-edge[export]; extra == 'train'",
            "peft; extra == 'train'",
        ]

        def read_text(self, name: str) -> str:
            return json.dumps({"url": (tmp_path / "vla_edge-0.1.0.whl").as_uri()})

    monkeypatch.setattr(installation, "ROOT", tmp_path / "lib")
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert installation.install_command("train").endswith('pip install "torch>=2.5" "peft"')
    (tmp_path / "vla_edge-0.1.0.whl").touch()
    assert installation.install_command("train").endswith('pip install "vla_edge-0.1.0.whl[train]"')


def test_the_table_of_optional_packages_is_that_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def brings(extra: str) -> set[str]:
        names = {re.split(r"[\[>=<]", line)[0] for line in extras[extra]}
        inner = [re.search(r"vla-edge\[(.*)\]", line) for line in extras[extra]]
        return names.union(*(brings(one) for found in inner if found for one in found[1].split(",")))

    for package, places in installation.EXTRAS.items():
        name = {"cuda": "cuda-bindings", "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings"}.get(package, package)
        assert all(name in brings(extra) for extra in places), package


def test_python_m_runs_every_command() -> None:
    for command, module in MODULES.items():
        made = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=600)
        assert made.returncode == 0 and made.stdout.startswith(f"{command} "), made.stderr


def test_a_terminal_without_our_signs_shows_a_question_mark(tmp_path: Path) -> None:
    words = [sys.executable, "-m", MODULES["export-engines"], "--inspect", str(ROOT / "examples/reach-cube/bundle")]
    ran = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ran.returncode == 0 and "?" in ran.stdout and ran.stderr == "", ran.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_path_that_cannot_be_written_is_refused_when_it_is_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(argparse.ArgumentTypeError, match="no permission"):
        command_line.file_to_write(str(tmp_path / "a" / "b.npz"))


def test_a_path_below_a_file_or_onto_the_wrong_kind_is_refused_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for text, told in ((f"{tmp_path}/file/b", "is a file"), (str(tmp_path), "is a folder")):
        with pytest.raises(argparse.ArgumentTypeError, match=told):
            command_line.file_to_write(text)
    with pytest.raises(argparse.ArgumentTypeError, match="is a file; name a folder"):
        command_line.folder_to_write(str(tmp_path / "file"))
    assert command_line.folder_to_write(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("export-engines", ["--bundle", "b", "--ranges-file", "/proc/a/b.npz"]),
        ("vla-runtime", ["replay", "flight.record", "--export", "/proc/a/b"]),
        ("vla-runtime", ["calibrate-joints", "--port", "p", "--joints", "/proc/a/b.json"]),
    ],
)
def test_what_a_command_writes_is_refused_when_it_is_read(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be made: /proc takes no new folder" in refusal(COMMANDS[command], words, capsys)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (command_line.count, ("1", "12"), ("0", "-1", "1.5", "x")),
        (command_line.whole, ("0", "7"), ("-1", "nan", "")),
        (command_line.fraction, ("0", "1", "0.5"), ("5", "-0.1", "nan", "x")),
        (command_line.positive, ("0.1", "3"), ("0", "-1", "nan", "inf")),
        (command_line.not_negative, ("0", "3"), ("-1", "nan", "inf")),
        (command_line.between(6, 100), ("6", "100"), ("5.9", "nan", "inf")),
        (command_line.threads, ("0", "1"), ("-1", "9999", "two")),
    ],
)
def test_numbers_out_of_range_are_refused_when_they_are_read(
    kind: command_line.Number, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    for text in good:
        assert kind(text) == float(text)
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            kind(text)


def test_an_old_name_that_is_still_an_option_elsewhere_is_left_alone() -> None:
    parser = CommandParser("x", "x", old={"--policy": "--checkpoint", "--cache cls": "--cache gated"})
    parser.add_argument("--policy")
    assert parser.parse_args(["--policy", "cls"]).policy == "cls"


def test_an_old_name_is_told_only_where_the_option_it_is_now_stands(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(COMMANDS["vla-runtime"], ["control", "--arm"], capsys)
    assert line == "error: --arm is now --arm-at-start; see `vla-runtime control --help`"
    line = refusal(COMMANDS["vla-runtime"], ["move", "--arm", "--port", "a", "--joints", "b", "--park"], capsys)
    assert line.startswith("error: there is no option --arm;") and "at-start" not in line


def test_the_scripts_of_the_project_are_these_commands() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert {f'{name} = "{module}:main"' for name, module in MODULES.items()} <= set(text.splitlines())
    assert shutil.which("vla-runtime", path=str(Path(sys.executable).parent))
