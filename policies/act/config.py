"""What shapes an ACT network: the numbers of its config.json as a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from vla_edge.errors import ConfigError

ACTIVATIONS = ("relu", "gelu")


@dataclass(frozen=True, slots=True)
class ACTConfig:
    """Sizes and switches of an ACT policy; names and defaults are LeRobot's.

    state_dim and action_dim: joints in and out. vision_backbone: a ResNet's name. replace_final_stride_with_dilation:
    the last stage keeps its resolution and widens its view (only ResNets with bottlenecks can). pre_norm: layer norm
    before each block instead of behind it. temporal_ensemble_coeff: see `ensembling.py`; None does without.
    """

    state_dim: int
    action_dim: int
    chunk_size: int = 100
    n_action_steps: int = 100
    vision_backbone: str = "resnet18"
    replace_final_stride_with_dilation: bool = False
    pre_norm: bool = False
    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    feedforward_activation: str = "relu"
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    use_vae: bool = True
    latent_dim: int = 32
    n_vae_encoder_layers: int = 4
    temporal_ensemble_coeff: float | None = None
    dropout: float = 0.1
    kl_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.feedforward_activation not in ACTIVATIONS:
            raise ConfigError(
                f"feedforward_activation is {self.feedforward_activation!r}; ACT runs here with "
                f"{' or '.join(ACTIVATIONS)}"
            )
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(
                f"n_action_steps is {self.n_action_steps}; it must be 1 to chunk_size, which is {self.chunk_size}"
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise ConfigError(
                f"n_action_steps is {self.n_action_steps} beside temporal_ensemble_coeff; ensembling plans at every "
                "step, so it must be 1"
            )
        if self.dim_model % 4 or self.dim_model % self.n_heads:
            raise ConfigError(
                f"dim_model is {self.dim_model}; it must be a multiple of 4 and of n_heads ({self.n_heads})"
            )
