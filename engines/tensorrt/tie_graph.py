"""The tie of inpaint as a graph of its own, so that the captured loop draws x to its path on the device.

tied = x + weights * ((noise_share * noise + target_share * target) - x), the arithmetic of flow.c in its order. It is
built, identified and loaded like the bundle's graphs; with weights of 0 it is a copy. The model is written down here
byte by byte, because a robot has no onnx package. Source: onnx.proto (ModelProto.ir_version = 1, graph = 7,
opset_import = 8; GraphProto.node = 1, name = 2, input = 11, output = 12; NodeProto.input = 1, output = 2, name = 3,
op_type = 4; ValueInfoProto.name = 1, type = 2; TypeProto.tensor_type = 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vla_edge.bundle import GraphFile, GraphSpec, TensorSpec
from vla_edge.engines.onnx_file import message_field, number_field

TIE = "tie"
IR_VERSION, OPSET, FLOAT = 9, 17, 1
NODES = (
    ("Mul", ("noise_share", "noise"), "from_noise"),
    ("Mul", ("target_share", "target"), "from_target"),
    ("Add", ("from_noise", "from_target"), "path"),
    ("Sub", ("path", "x"), "way"),
    ("Mul", ("weights", "way"), "step"),
    ("Add", ("x", "step"), "tied"),
)


def tie_graph(expert: GraphFile) -> GraphFile:
    """The graph for the chunk [1, C, A] of the graph `expert`: float32, x, noise, target, tied like it, weights
    [1, C, 1], shares [1, 1, 1]."""
    chunk = next(spec.shape for spec in expert.spec.inputs if spec.name == "x")
    shapes = {"x": chunk, "noise": chunk, "target": chunk, "weights": (*chunk[:-1], 1)}
    shapes |= {"noise_share": (1, 1, 1), "target_share": (1, 1, 1)}
    inputs = tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items())
    outputs = (TensorSpec("tied", chunk, "float32"),)
    file = f"{TIE}.onnx"
    spec = GraphSpec(Path(expert.spec.file).with_name(file).as_posix(), (), inputs, outputs)
    return GraphFile(TIE, spec, expert.path.with_name(file), _model(inputs, outputs), {})


def _model(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bytes:
    graph = b"".join(message_field(1, _node(*node)) for node in NODES) + message_field(2, TIE.encode())
    graph += b"".join(message_field(11, _value(spec)) for spec in inputs)
    graph += b"".join(message_field(12, _value(spec)) for spec in outputs)
    return number_field(1, IR_VERSION) + message_field(7, graph) + message_field(8, number_field(2, OPSET))


def _node(kind: str, inputs: tuple[str, ...], output: str) -> bytes:
    names = b"".join(message_field(1, name.encode()) for name in inputs) + message_field(2, output.encode())
    return names + message_field(3, f"{TIE}/{output}".encode()) + message_field(4, kind.encode())


def _value(spec: TensorSpec) -> bytes:
    sizes = b"".join(message_field(1, number_field(1, size)) for size in spec.shape)
    tensor = message_field(1, number_field(1, FLOAT) + message_field(2, sizes))
    return message_field(1, spec.name.encode()) + message_field(2, tensor)
