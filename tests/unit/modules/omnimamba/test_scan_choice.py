"""Which kernels serve a training row."""

from dataclasses import replace

import pytest
import torch

from modules.omnimamba.config import ModelConfig
from modules.omnimamba.row_mixer import LONGEST, Scan, layout_of, serves

CONFIG, HALF, GPU = ModelConfig(), torch.bfloat16, torch.device("cuda")


@pytest.mark.parametrize(
    ("lengths", "scan", "ours"),
    [
        ([LONGEST] * 2, "auto", True),
        ([LONGEST + 1] * 2, "auto", False),
        ([1182] * 3 + [329] * 48, "auto", True),  # the published micro-batch
        ([1182] * 16, "auto", False),
        ([1182] * 16, "rows", True),
        ([64], "mamba_ssm", False),
    ],
)
def test_the_lengths_choose_or_the_user(lengths: list[int], scan: Scan, ours: bool) -> None:
    assert serves(lengths, CONFIG, scan, HALF, GPU) == ours


@pytest.mark.parametrize("scan", ["auto", "rows"])
def test_ours_takes_bf16_on_a_gpu_and_powers_of_two(scan: Scan) -> None:
    assert serves([64], CONFIG, scan, HALF, GPU)
    assert not serves([64], CONFIG, scan, torch.float32, GPU)
    assert not serves([64], replace(CONFIG, headdim=8), scan, HALF, GPU)
    assert not serves([64], replace(CONFIG, d_state=96), scan, HALF, GPU)
    assert not serves([64], replace(CONFIG, d_model=160, expand=1, headdim=32), scan, HALF, GPU)  # five heads
    assert not serves([64], CONFIG, scan, HALF, torch.device("cpu"))
    assert layout_of([64], CONFIG, scan, HALF, torch.device("cpu")) is None
