"""What ONNX Runtime makes of a graph: the model after its own optimisation, as it will run it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vla_edge.bundle import GraphFile
from vla_edge.errors import EngineError

try:
    import onnxruntime
except ImportError:
    onnxruntime = None


def optimized_model(graph: GraphFile, provider: str = "CPUExecutionProvider") -> bytes:
    """The optimised ONNX model without its large tensors. EngineError when onnxruntime is not installed or refuses
    it."""
    if onnxruntime is None:
        raise EngineError("onnxruntime is not installed; pip install 'vla-edge[ort]'")
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.bin")
        if graph.weights:
            options.add_external_initializers_from_files_in_memory(
                list(graph.weights), list(graph.weights.values()), [len(data) for data in graph.weights.values()]
            )
        try:
            onnxruntime.InferenceSession(graph.model, options, providers=[provider])
        except RuntimeError as error:
            raise EngineError(
                f"{graph.path}: ONNX Runtime refused the graph: {error}; export the bundle again"
            ) from None
        return Path(options.optimized_model_filepath).read_bytes()
