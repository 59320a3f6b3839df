# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning, CLS and delta training, CRaFT, sequential tasks, evaluation and comparison."""
