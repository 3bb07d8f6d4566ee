import torch

from modules.omnimamba.kmeans import fit_centres, nearest


def blobs() -> torch.Tensor:
    """Sixty points about three far-apart places."""
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[20, 20, 20], [200, 30, 90], [120, 240, 10]])
    return (places.repeat(20, 1) + torch.randint(-5, 6, (60, 3), generator=generator)).to(torch.uint8)


def fit(points: torch.Tensor, **values) -> torch.Tensor:
    return fit_centres(points, **{"count": 3, "seed": 0, "iterations": 20, "max_patches": 1000, **values})


def test_centres_are_the_means_of_their_points() -> None:
    points = blobs()
    expected = {tuple(points[start::3].double().mean(0).round().int().tolist()) for start in range(3)}
    assert {tuple(centre) for centre in fit(points).tolist()} == expected


def test_the_same_seed_gives_the_same_centres_on_any_number_of_threads() -> None:
    points = torch.randint(256, (3000, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fit(points, count=40)
        torch.set_num_threads(2)
        assert torch.equal(fit(points, count=40), one)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(fit(points, count=40, seed=1), one)


def test_frequent_patches_weigh_more() -> None:
    points = torch.tensor([[0]] * 99 + [[100]], dtype=torch.uint8)
    assert fit(points, count=1).tolist() == [[1]]


def test_iterations_lower_the_cost() -> None:
    points = torch.randint(256, (2000, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    costs = [float(nearest(points, fit(points, count=20, iterations=n))[1].sum()) for n in (0, 3, 20)]
    assert costs[0] > costs[1] > costs[2]


def test_no_centre_is_wasted() -> None:
    points = torch.cat([blobs(), torch.tensor([[0, 0, 255]], dtype=torch.uint8)])
    centres = fit(points, count=30)
    codes, _ = nearest(points, centres)
    assert len(codes.unique()) == 30


def test_a_subset_is_taken_of_too_many_patches() -> None:
    points = torch.arange(256, dtype=torch.uint8)[:, None]
    limited = fit(points, count=4, max_patches=4, iterations=0)
    # with as many points as centres every point is one, and only four of them are left
    assert len(limited.unique()) == 4


def test_costs_are_squared_distances() -> None:
    codes, costs = nearest(torch.tensor([[0, 3], [255, 255]], dtype=torch.uint8), torch.tensor([[0, 0], [255, 254]]))
    assert codes.tolist() == [0, 1]
    assert costs.tolist() == [9.0, 1.0]
