# SPDX-License-Identifier: Apache-2.0
"""One observation to one chunk: preparation, graphs on buffers, prefix cache and scene gate, flow loop, session."""
