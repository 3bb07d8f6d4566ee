"""The one place that reaches mamba_ssm and causal_conv1d: the scan and the convolution on a GPU.

Imported lazily, because neither package can be imported without a GPU's libraries. A GPU without them is an error,
never a silent slow path; a CPU runs the reference in `ssd`.
"""

from functools import cache
from importlib.metadata import version
from typing import Any

from torch import Tensor

OLDEST_MAMBA = (2, 3)
"""mamba-ssm before 2.2.5 has wrong gradients for some autotuned configurations; 2.3 has a deterministic mode too."""
INSTALL = 'pip install --no-build-isolation -e ".[gpu]"'


class KernelsMissingError(ValueError):
    """A GPU is to be used without the packages that hold its kernels."""


@cache
def load() -> tuple[Any, Any]:
    """``(mamba_chunk_scan_combined, causal_conv1d_fn)``.

    Raises:
        KernelsMissingError: a package is missing or too old; the message has the install line.
    """
    try:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        raise KernelsMissingError(
            f"a GPU needs mamba-ssm and causal-conv1d ({error}); install them with {INSTALL}, "
            "or use hardware.accelerator=cpu"
        ) from error
    found = version("mamba-ssm")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_MAMBA:
        raise KernelsMissingError(f"mamba-ssm {found} is too old, 2.3 or newer is needed; install it with {INSTALL}")
    return mamba_chunk_scan_combined, causal_conv1d_fn


def conv_silu(x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor, seq_idx_BL: Tensor | None) -> Tensor:
    """SiLU of `ssd.causal_conv`, by the kernel."""
    _, causal_conv1d_fn = load()
    y = causal_conv1d_fn(x_BLD.transpose(1, 2), weight_DW, bias_D, seq_idx=seq_idx_BL, activation="silu")
    result: Tensor = y.transpose(1, 2)
    return result


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    chunk_size: int,
    seq_idx_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`ssd.ssd_chunked`, by the kernel."""
    scan, _ = load()
    y, state = scan(
        x_BLHP,
        dt_BLH,
        A_H,
        B_BLN[:, :, None],
        C_BLN[:, :, None],
        chunk_size=chunk_size,
        seq_idx=seq_idx_BL,
        return_final_states=True,
    )
    return y, state
