# SPDX-License-Identifier: Apache-2.0
"""Write the signatures of TensorRT's Python bindings into a JSON table, for the API-surface test.

    python scripts/tensorrt_signatures.py WHEEL OUT.json

WHEEL is a `tensorrt-cuNN-bindings` wheel for this Python. Its extension module links to TensorRT's own libraries, which
are not needed to read docstrings: empty stand-ins are compiled for them (gcc), with the few symbols it imports. Nothing
of TensorRT is ever called. The table: class -> member -> list of signatures (pybind11's own text, without `self`), ""
for an attribute.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = [
    "Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser", "ParserError", "Runtime", "ICudaEngine",
    "IExecutionContext", "EngineInspector", "ITimingCache", "IProgressMonitor", "IHostMemory", "Logger", "ILogger",
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "LayerInformationFormat",
    "TensorIOMode", "ExecutionContextAllocationStrategy", "DataType",
]  # fmt: skip
READ = """
import ctypes, importlib.util, json, re, sys, types
folder, classes = sys.argv[1], json.loads(sys.argv[2])
for library in sys.argv[3:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("tensorrt", folder)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
table = {}
for name in classes:
    kind = getattr(module, name, None)
    if kind is None:
        continue
    table[name] = {}
    for member in dir(kind):
        if member.startswith("_") and member != "__init__":
            continue
        text = getattr(kind, member).__doc__ or ""
        if member in getattr(kind, "__members__", {}) or not callable(getattr(kind, member)):
            text = ""
        pattern = r"^(?:\\d+\\. )?" + member + r"\\((.*)\\)(?: -> .*)?$"
        found = [line for line in re.findall(pattern, text, re.M) if not line.startswith("*args, **kwargs")]
        signatures = [re.sub(r"^self: [^,]*(, )?", "", line) for line in found]
        table[name][member] = signatures if callable(getattr(kind, member)) else ""
table["top"] = {name: "" for name in dir(module) if not name.startswith("_")}
print(json.dumps(table))
"""


def signatures(wheel: Path) -> dict[str, dict[str, object]]:
    """The table of one wheel."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/tensorrt\.so", name))
            extension = Path(archive.extract(name, folder))
        stand_ins = [_stand_in(folder, library, _imported(extension)) for library in _needed(extension)]
        words = [sys.executable, "-c", READ, str(extension), json.dumps(CLASSES), *map(str, stand_ins)]
        read = subprocess.run(words, capture_output=True, text=True, check=False)
    if read.returncode != 0:
        raise SystemExit(f"{wheel.name}: not readable with this Python: {read.stderr.strip().splitlines()[-1]}")
    table: dict[str, dict[str, object]] = json.loads(read.stdout)
    return table


def _needed(extension: Path) -> list[str]:
    output = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\[(libnv[^\]]+)\]", output)


def _imported(extension: Path) -> list[str]:
    output = subprocess.run(
        ["nm", "-D", "--undefined-only", str(extension)], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r" U ((?:create|get|init)(?:Infer|NvOnnx|Builder|Plugin|Lib)\w+)", output)


def _stand_in(folder: Path, library: str, symbols: list[str]) -> Path:
    made = folder / library
    source = "\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols)
    words = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{library}", "-o", str(made)]
    subprocess.run(words, input=source, text=True, check=True)
    return made


if __name__ == "__main__":
    wheel, out = map(Path, sys.argv[1:3])
    out.write_text(json.dumps({"wheel": wheel.name, **signatures(wheel)}, indent=1, sort_keys=True) + "\n")
    print(f"{out}: signatures of {wheel.name}")
