# SPDX-License-Identifier: Apache-2.0
"""CRaFT: anchors that hold on to what a policy knew, and gradients that do not undo it."""
