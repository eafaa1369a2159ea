"""Two real processes (Lightning's DDP over gloo) read one data set: each image once, none twice, none lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

SCRIPT = '''
import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from cvpipe.config_file import parse_config
from cvpipe.task import find_task


class Record(LightningModule):
    """Writes down which images this process gets."""

    def __init__(self, folder):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = Path(folder)

    def _note(self, stage, batch):
        line = json.dumps({"epoch": self.current_epoch, "indices": batch.indices.tolist()})
        with (self.folder / f"{stage}-{self.global_rank}.jsonl").open("a") as file:
            file.write(line + "\\n")

    def training_step(self, batch, _):
        self._note("train", batch)
        return self.weight.sum()

    def validation_step(self, batch, _):
        self._note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    task = find_task("classification")
    config = parse_config(json.loads(sys.argv[2]))
    data = task.data_module(config, task.load_data(config))
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(Record(sys.argv[1]), datamodule=data)
'''


def config(folder: Path) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, count in (("train", 37), ("val", 23)):
        for i in range(count):
            path = folder / split / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return {
        "task": "classification",
        "model": {"pretrained": False},
        "data": {"train": str(folder), "image_size": 16},
        "training": {"batch_size": 4, "num_workers": 1},
    }


@pytest.mark.timeout(300)
def test_two_processes_share_uneven_splits(tmp_path: Path) -> None:
    script = tmp_path / "record.py"
    script.write_text(SCRIPT)
    notes = tmp_path / "notes"
    notes.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(notes), json.dumps(config(tmp_path / "data"))],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]

    def read(stage: str, rank: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (notes / f"{stage}-{rank}.jsonl").read_text().splitlines()]

    for epoch in (0, 1):
        parts = [[note["indices"] for note in read("train", rank) if note["epoch"] == epoch] for rank in (0, 1)]
        assert len(parts[0]) == len(parts[1]) == 5
        seen = Counter(index for part in parts for batch in part for index in batch)
        assert seen == Counter(range(37)), "each training image once in an epoch"
        parts = [[note["indices"] for note in read("val", rank) if note["epoch"] == epoch] for rank in (0, 1)]
        assert [len(part) for part in parts] == [3, 3]
        assert Counter(index for part in parts for batch in part for index in batch) == Counter(range(23))
    orders = [[note["indices"] for note in read("train", 0) if note["epoch"] == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1], "shuffled anew in each epoch"
