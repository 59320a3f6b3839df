"""Fine-tuning, CLS and delta training, CRaFT, sequential tasks, evaluation and comparison."""
