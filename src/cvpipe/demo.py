"""`cvpipe demo`: the whole way on a laptop, offline: train, evaluate, register, predict through the registry."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cvpipe.config_file import parse_config
from cvpipe.utils.console import duration, facts, say

MODEL = "digits"

CONFIG: dict[str, Any] = {
    "task": "classification",
    "model": {"name": "test_resnet", "pretrained": False},
    "data": {
        "train": "demo:digits",
        "image_size": 32,
        "crop_pct": 1.0,
        "augment": {"hflip": 0.0, "crop_scale": [0.8, 1.0], "color_jitter": 0.0, "rotate": 10},
    },
    "training": {"batch_size": 32, "num_workers": 1, "epochs": 8, "learning_rate": 5e-3, "ema": 0.99},
}


def run_demo(folder: Path) -> dict[str, Any]:
    """Trains on scanned digits and uses the model as others would. Everything is put below `folder`.

    Returns:
        Places and figures: run_id, model_uri, metrics, report, predictions, seconds.
    """
    from cvpipe.data.demo import demo_folder
    from cvpipe.inference.batch_inference import predict
    from cvpipe.training.train import train

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    tracking = f"sqlite:///{folder / 'mlflow.db'}"
    names = {"tracking_uri": tracking, "experiment": "demo", "registered_model_name": MODEL, "alias": "champion"}
    config = parse_config({**CONFIG, "tracking": names})
    number = 1 + sum(1 for path in folder.glob("run-*") if path.is_dir())
    trained = train(config.replace(**{"training.output_dir": str(folder / f"run-{number}")}))

    say("\npredicting the test images through the registry")
    images = demo_folder("demo:digits") / "test"
    batch = predict(
        f"models:/{MODEL}@champion", images, folder / "predictions.json", tracking_uri=tracking, overwrite=True
    )
    seconds = time.monotonic() - started
    accuracy = trained.intervals["test/accuracy"]
    say(f"\nThe demo took {duration(seconds)}. Test accuracy {accuracy}.")
    facts(
        {
            "report": trained.report,
            "model": f"{trained.model_uri} (models:/{MODEL}@champion), {trained.bundle}",
            "predictions": batch.output,
            "MLflow UI": f"mlflow ui --backend-store-uri {tracking} --host 127.0.0.1 --port 5000",
        }
    )
    say("next: put your own images into one folder a class and run")
    say("      cvpipe train --config configs/classification_digits.yaml data.train=FOLDER data.image_size=224")
    return {**trained.to_dict(), "predictions": str(batch.output), "seconds": round(seconds, 1)}
