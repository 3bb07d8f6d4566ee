"""What the OmniMamba paper (arXiv 2503.08686) reports, to be shown next to official measures.

A reduced or substitute measure does not have the official name, so it has no row here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OURS = "OmniMamba"
Key = tuple[str, str]
"""(measure, metric) as in results.json."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table in the paper, and our metric that is measured in the same way."""

    title: str
    key: Key | None
    """None if the paper's number cannot be measured with local files."""
    scale: float = 1.0
    """Factor from our unit to the paper's."""
    decimals: int = 1


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table in the paper; values it does not give are None."""

    title: str
    remark: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[float | None]]

    def cells(self, model: str) -> list[str]:
        """A model's row as the paper prints it."""
        pairs = zip(self.columns, self.rows[model], strict=True)
        return ["–" if value is None else f"{value:.{column.decimals}f}" for column, value in pairs]


TABLES = (
    PaperTable(
        title="Table 1: understanding, higher is better",
        remark="POPE is assumed to be the mean F1 of its three splits, as in LLaVA; the paper does not say.",
        columns=(
            Column(title="POPE", key=("pope", "f1_macro"), scale=100),
            Column(title="MME-P", key=("mme", "perception")),
            Column(title="VQAv2 test", key=None),
            Column(title="GQA", key=("gqa", "accuracy"), scale=100),
            Column(title="MMMU", key=("mmmu", "val_overall"), scale=100),
        ),
        rows={
            "Janus": (87.0, 1338.0, 77.3, 59.1, 30.5),
            "JanusFlow": (88.0, 1333.1, 79.8, 60.3, 29.3),
            "Show-o": (80.0, 1097.2, 69.4, 58.0, 26.7),
            "MobileVLM-V2": (84.3, 1302.8, None, 59.3, None),
            "LLaVA-v1.5": (86.3, 1500.1, 81.8, 64.7, None),
            "Emu3": (85.2, 1243.8, 75.1, 60.3, 31.6),
            OURS: (86.3, 1290.6, 77.7, 60.8, 30.6),
        },
    ),
    PaperTable(
        title="Table 2: MS-COCO FID-30K, lower is better",
        remark="Which FID protocol the paper used is not known; ours is U-ViT's. The model is trained on train2014, so "
        "this is held out but in domain.",
        columns=(Column(title="FID-30K", key=("coco", "fid30k"), decimals=2),),
        rows={
            "Show-o": (9.24,),
            "DreamLLM": (8.76,),
            "SDv1.5": (9.62,),
            "PixArt": (7.32,),
            "Imagen": (7.27,),
            "Parti": (7.23,),
            "U-ViT": (5.95,),
            OURS: (5.50,),
        },
    ),
    PaperTable(
        title="Table 3: image generation speed, batch of 16",
        remark="Speed can be compared only on the same device and with the full-size model.",
        columns=(
            Column(title="images/s", key=("speed", "img_per_s"), decimals=2),
            Column(title="total s", key=("speed", "total_s"), decimals=2),
        ),
        rows={"Show-o": (0.81, 19.66), "JanusFlow": (1.02, 15.64), OURS: (5.68, 2.81)},
    ),
)


def paper_value(key: Key) -> float | None:
    """The paper's number for its own model, in our unit; None if the paper has none for this metric."""
    for table in TABLES:
        for column, value in zip(table.columns, table.rows[OURS], strict=True):
            if column.key == key and value is not None:
                return value / column.scale
    return None
