# SPDX-License-Identifier: Apache-2.0
"""`vla-runtime serve`: protocols, client sessions, access, status page."""
