"""Everything TensorRT and CUDA: engine files built, checked, loaded, and the captured flow loop."""
