# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime serve`: the policy for clients over the network, and the robot's status in a browser.

Serves what lies in the run folder of `vla-runtime run`, `control` and `inference`, and infers for its own clients. It
never arms by itself: a client that holds the control lease can ask for it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path

from vla_edge.bundle import open_bundle
from vla_edge.command_line import between, whole
from vla_edge.engines.engine import add_engine_arguments
from vla_edge.runtime.control.inference_process import add_service_arguments
from vla_edge.runtime.control.run_folder import last_run_folder, open_run_folder
from vla_edge.runtime.inference.cache import CacheMode, add_cache_argument
from vla_edge.runtime.inference.session import Noise, SessionOptions, add_flow_steps_argument, cache_mode
from vla_edge.runtime.service.serve_access import access


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=Path, help="folder written by export-engines (default: none, the robot's status alone)"
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; another than loopback needs a token and TLS"
    )
    network.add_argument(
        "--port", type=between(0, 65535, int), default=8000, help="port to listen on; 0: any free one, printed"
    )
    network.add_argument("--token-file", type=Path, help="file (mode 600) with the token clients must send")
    network.add_argument("--certificate", type=Path, help="TLS certificate chain, PEM")
    network.add_argument("--key", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--run-dir", type=Path, help="run folder of the robot whose status is shown (default: the last run's)"
    )
    policy = parser.add_argument_group("the policy and how it is computed")
    add_engine_arguments(policy)
    add_cache_argument(policy)
    add_flow_steps_argument(policy)
    policy.add_argument("--seed", type=whole, default=0, help="seed of the noise of the first session")
    network.add_argument(
        "--sessions", type=between(1, 64, int), default=2, help="clients with a session of their own at a time"
    )
    network.add_argument("--connections", type=between(1, 1024, int), default=32, help="connections at a time")
    policy.add_argument(
        "--trust-cameras", action="store_true", help="take pictures of another aspect than the policy's data has"
    )
    add_service_arguments(parser, policy)


def run(arguments: argparse.Namespace) -> int:
    started_ns = time.monotonic_ns()
    from vla_edge.runtime.service.service import ServeOptions, serve

    os.nice(arguments.nice)
    allowed = access(arguments.host, arguments.token_file, arguments.certificate, arguments.key)
    bundle = None if arguments.bundle is None else open_bundle(arguments.bundle)
    options = ServeOptions(
        engine=arguments.backend,
        threads=arguments.threads,
        session=SessionOptions(
            CacheMode.OFF if bundle is None else cache_mode(arguments.cache, bundle),
            arguments.seed,
            arguments.flow_steps,
            noise=Noise(arguments.noise),
        ),
        sessions=arguments.sessions,
        connections=arguments.connections,
        port=arguments.port,
        record=arguments.record_inputs,
        record_limit_bytes=arguments.record_mb << 20,
        trust_cameras=arguments.trust_cameras,
    )
    asyncio.run(serve(bundle, open_run_folder(arguments.run_dir or last_run_folder()), allowed, options, started_ns))
    return 0
