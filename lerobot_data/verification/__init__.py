# SPDX-License-Identifier: Apache-2.0
"""`vla-data verify`: a dataset opened for checking, the checks, and what they say."""
