"""The only module that uses mamba_ssm and causal_conv1d, the GPU kernels of a mixer.

They are imported lazily, because neither package can be imported without a GPU's libraries. A GPU without them is an
error, never a silent slow path. A CPU runs the reference in `ssd`.

Shapes: B batch, L length, D d_model, E d_inner, H heads, P head size, N state size, W convolution width,
C = E + 2N channels of the convolution, Z = 2E + 2N + H columns of the input projection.
"""

import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from modules.omnimamba.config import ModelConfig

OLDEST_MAMBA = (2, 3)
"""mamba-ssm before 2.2.5 has wrong gradients for some autotuned configurations; 2.3 also has a deterministic mode."""
INSTALL = 'pip install --no-build-isolation -e ".[gpu]"'


class KernelsMissingError(ValueError):
    """The packages with the GPU kernels are missing or too old."""


@dataclass(frozen=True)
class Kernels:
    """The packages' functions."""

    split_conv_scan: Any
    conv_step: Any
    ssm_step: Any
    norm: Any
    gated_norm: Any
    gated_norm_forward: Any
    gated_norm_backward: Any
    conv_forward: Any
    conv_backward: Any


def choose_deterministic() -> None:
    """Make both packages sum in a fixed order. Must be called before `load`: mamba_ssm reads this when imported.

    If Triton caches its timings, mamba_ssm still uses the fastest configurations. They differ between machines, or if
    two processes take timings at once, and so does the order of sums. Without timings, mamba_ssm uses the smallest
    blocks, or the sizes set here: 64 x 64 is faster (docs/experiments.md). If a GPU has too little shared memory for
    that, the user may set other sizes.
    """
    os.environ.update(MAMBA_DETERMINISTIC="1", CAUSAL_CONV1D_DETERMINISTIC="1", TRITON_CACHE_AUTOTUNING="0")
    for side in ("M", "N"):
        os.environ.setdefault(f"TRITON_AUTOTUNE_BLOCK_SIZE_{side}", "64")


@cache
def load() -> Kernels:
    """The functions, imported once.

    Raises:
        KernelsMissingError: a package is missing or too old; the message has the install line.
    """
    try:
        with warnings.catch_warnings():
            # `choose_deterministic` decides against what this warning advises
            warnings.filterwarnings("ignore", message="Deterministic mode: set TRITON_CACHE_AUTOTUNING=1")
            from causal_conv1d import causal_conv1d_update
            from causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function
            from mamba_ssm.ops.triton.layer_norm import layer_norm_fn
            from mamba_ssm.ops.triton.layernorm_gated import _layer_norm_bwd, _layer_norm_fwd, rmsnorm_fn
            from mamba_ssm.ops.triton.selective_state_update import selective_state_update
            from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined
    except ImportError as error:
        raise KernelsMissingError(
            f"a GPU needs mamba-ssm and causal-conv1d ({error}); install them with {INSTALL}, "
            "or use hardware.accelerator=cpu"
        ) from error
    found = version("mamba-ssm")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_MAMBA:
        raise KernelsMissingError(f"mamba-ssm {found} is too old, 2.3 or newer is needed; install it with {INSTALL}")
    return Kernels(
        split_conv_scan=mamba_split_conv1d_scan_combined,
        conv_step=causal_conv1d_update,
        ssm_step=selective_state_update,
        norm=layer_norm_fn,
        gated_norm=rmsnorm_fn,
        gated_norm_forward=_layer_norm_fwd,
        gated_norm_backward=_layer_norm_bwd,
        conv_forward=causal_conv1d_fwd_function,
        conv_backward=causal_conv1d_bwd_function,
    )


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``residual + x`` in float32, and its root-mean-square norm in the type of ``x``: (norm, sum)."""
    normed, total = load().norm(
        x, weight, None, residual=residual, eps=eps, prenorm=True, residual_in_fp32=True, is_rms_norm=True
    )
    return normed, total


def mix(
    zxbcdt_BLZ: Tensor,
    *,
    conv_weight_CW: Tensor,
    conv_bias_C: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    norm_weight_E: Tensor,
    norm_eps: float,
    out_weight_DE: Tensor,
    chunk_size: int,
    headdim: int,
    seq_idx_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The whole mixer after its input projection: (B, L, D) and the last SSM state (B, H, P, N).

    One function does convolution, scan, gated norm and output projection, so that its backward pass can recompute
    intermediate results and not store them.
    """
    out, state = load().split_conv_scan(
        zxbcdt_BLZ,
        conv_weight_CW,
        conv_bias_C,
        dt_bias_H,
        A_H,
        D=D_H,
        chunk_size=chunk_size,
        seq_idx=seq_idx_BL,
        activation="silu",
        rmsnorm_weight=norm_weight_E,
        rmsnorm_eps=norm_eps,
        outproj_weight=out_weight_DE,
        headdim=headdim,
        ngroups=1,
        norm_before_gate=False,
        return_final_states=True,
    )
    return out, state


def conv_step(xBC_BC: Tensor, state_BCW: Tensor, weight_CW: Tensor, bias_C: Tensor) -> Tensor:
    """One position of convolution and SiLU, (B, C). Updates ``state_BCW`` (the W - 1 inputs before it) in place."""
    result: Tensor = load().conv_step(xBC_BC, state_BCW, weight_CW, bias_C, "silu")
    return result


def ssm_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    D_H: Tensor,
    state_BHPN: Tensor,
) -> Tensor:
    """One position of the scan, (B, H, P), with softplus(dt + dt_bias). Updates ``state_BHPN`` in place."""
    *_, size, width = state_BHPN.shape
    result: Tensor = load().ssm_step(
        state_BHPN,
        x_BHP,
        dt_BH[:, :, None].expand(-1, -1, size),
        A_H[:, None, None].expand(-1, size, width),
        B_BN[:, None],
        C_BN[:, None],
        D=D_H[:, None].expand(-1, size),
        dt_bias=dt_bias_H[:, None].expand(-1, size),
        dt_softplus=True,
    )
    return result


def gated_norm(y_BE: Tensor, z_BE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of ``y * SiLU(z)``."""
    result: Tensor = load().gated_norm(y_BE, weight_E, None, z=z_BE, eps=eps, norm_before_gate=False)
    return result


def language_model(config: ModelConfig) -> nn.Module:
    """mamba_ssm's own language model of the same shape, on the GPU, for benchmarks to compare with."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    mixer = {"layer": "Mamba2", "d_state": config.d_state, "headdim": config.headdim, "chunk_size": config.chunk_size}
    shape = MambaConfig(
        d_model=config.d_model, n_layer=config.n_layer, vocab_size=config.vocab_size, ssm_cfg=mixer, tie_embeddings=True
    )
    model: nn.Module = MambaLMHeadModel(shape, device="cuda")
    return model
