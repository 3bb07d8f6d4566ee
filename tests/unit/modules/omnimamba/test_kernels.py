"""Without the GPU packages there is an error with the way out."""

import sys

import pytest

from modules.omnimamba import kernels


def test_missing_kernels_are_an_error_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    kernels.load.cache_clear()
    with pytest.raises(kernels.KernelsMissingError, match=r"needs mamba-ssm and causal-conv1d .*--no-build-isolation"):
        kernels.load()
