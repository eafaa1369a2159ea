"""The bundle is the model: it comes back as it was, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cvpipe.bundle import FORMAT_VERSION, Bundle, installed_version, library_versions
from cvpipe.errors import BundleError, InputError
from cvpipe.task import find_task
from cvpipe.types import Labels


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def test_round_trip(tiny_bundle: Bundle, copy: Path) -> None:
    again = Bundle.load(copy)
    assert again.config.to_dict() == tiny_bundle.config.to_dict()
    assert type(again.config) is type(tiny_bundle.config)
    assert again.labels == tiny_bundle.labels == Labels(tuple("0123456789"))
    assert again.info == tiny_bundle.info
    assert (again.uri, again.version) == (str(copy), "")
    network = again.network()
    assert not network.training
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(pixels), tiny_bundle.network()(pixels))
        assert float(network(pixels).std()) > 0


def test_a_run_folder_that_holds_a_bundle(copy: Path, tmp_path: Path) -> None:
    copy.rename(tmp_path / "bundle")
    assert Bundle.load(tmp_path).path == tmp_path / "bundle"


def test_contents(copy: Path) -> None:
    names = {"bundle.json", "config.yaml", "classes.json", "architecture.json", "weights.safetensors"}
    assert {path.name for path in copy.iterdir()} == names
    info = json.loads((copy / "bundle.json").read_text())
    assert info["format_version"] == FORMAT_VERSION
    assert info["task"] == "classification"
    assert set(info["sha256"]) == names - {"bundle.json"}
    assert info["versions"]["torch"] == library_versions()["torch"]
    assert torch.__version__.startswith(info["versions"]["torch"])


@pytest.mark.parametrize("name", ["config.yaml", "classes.json", "architecture.json", "weights.safetensors"])
def test_a_changed_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} is not the file that was saved with the model"):
        Bundle.load(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is not the file"):
        Bundle.load(copy)


def test_a_newer_format_is_refused(copy: Path) -> None:
    info = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(info | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(BundleError, match=r"bundle format 2, this cvpipe reads up to 1\. Upgrade: pip install -U"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": "x", "sha256": {}}']
)
def test_a_broken_bundle_json_is_refused(copy: Path, text: str) -> None:
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json can't be read"):
        Bundle.load(copy)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not exist\. Expected a bundle directory") as caught:
        Bundle.load(tmp_path / "none")
    assert isinstance(caught.value, InputError)
    with pytest.raises(BundleError, match=r"exists and holds no bundle\.json"):
        Bundle.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file: is a file"):
        Bundle.load(tmp_path / "file")


def test_metrics(copy: Path) -> None:
    bundle = Bundle.load(copy)
    assert bundle.metrics == {}
    bundle.write_metrics({"test/accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}})
    assert Bundle.load(copy).metrics["test/accuracy"]["value"] == 0.5
    html = bundle._repr_html_()
    assert "test_resnet" in html
    assert "0.5000" in html


def test_writing_over_a_bundle_drops_the_old_metrics(copy: Path, tiny_bundle: Bundle) -> None:
    Bundle.load(copy).write_metrics({"test/accuracy": {"value": 0.5}})
    assert Bundle.create(copy, tiny_bundle.config, tiny_bundle.labels, tiny_bundle.network()).metrics == {}


def test_a_crash_while_writing_leaves_no_bundle(
    copy: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cvpipe.bundle.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        Bundle.create(copy, tiny_bundle.config, tiny_bundle.labels, tiny_bundle.network())
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        Bundle.load(copy)
    assert not [path for path in copy.iterdir() if path.name.endswith(".tmp")]


def test_texts_that_yaml_would_change(tiny_bundle: Bundle, tmp_path: Path) -> None:
    config = tiny_bundle.config.replace(**{"data.train": "1e3", "tracking.run_name": "naïve – 日本"})
    labels = Labels(("1e3", "ÄÖ", "null"))
    network = find_task("classification").network(config, labels, {})
    again = Bundle.load(Bundle.create(tmp_path / "b", config, labels, network).path)
    assert (again.config.data.train, again.config.tracking.run_name) == ("1e3", "naïve – 日本")
    assert again.labels == labels


def test_installed_version() -> None:
    assert installed_version("torch")
    assert installed_version("no-such-distribution") == ""
