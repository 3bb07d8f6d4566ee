import torch

from modules.tensors import named_tensors


def test_tensors_are_found_in_order_by_their_places() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    nested = {"state": [{"exp_avg": one, "step": 3}, (two, "x", None)], 5: three}
    assert [(name, len(tensor)) for name, tensor in named_tensors(nested)] == [
        ("state.0.exp_avg", 1),
        ("state.1.0", 2),
        ("5", 3),
    ]
    assert [name for name, _ in named_tensors(one)] == [""]
