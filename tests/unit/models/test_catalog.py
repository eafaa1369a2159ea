"""Which licences are found, which are refused, and what a bundle remembers of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st

import cvpipe
from cvpipe import task as task_module
from cvpipe.bundle import Bundle
from cvpipe.cli import run
from cvpipe.config import ModelConfig, TrackingConfig
from cvpipe.config_file import load_config, parse_config
from cvpipe.errors import ModelError
from cvpipe.models import catalog
from cvpipe.models.catalog import check_bundle, check_license, licenses_of, listing
from cvpipe.task import find_task, tasks
from cvpipe.tracking import Tracker, register_model
from cvpipe.types import ModelInfo

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = ModelConfig().allow_licenses
NC = "convnextv2_pico.fcmae_ft_in1k"


def config(name: str, pretrained: bool | str = True, task: str = "classification", **model: Any) -> Any:
    return parse_config({"task": task, "model": {"name": name, "pretrained": pretrained, **model}, "data": "nowhere"})


def test_entries_are_complete() -> None:
    for task in tasks().values():
        names = [info.name for info in task.models]
        assert len(set(names)) == len(names)
        patterns = [i for i, name in enumerate(names) if "*" in name]
        assert patterns == list(range(len(names) - len(patterns), len(names))), "exact names before patterns"
        for info in task.models:
            assert info.code == info.code.lower()
            assert info.code in ALLOWED, "the code of every built-in network is free to use"
            assert bool(info.weights) == bool(info.weights_license) == bool(info.terms) == (info.source == "fixed")
            assert info.weights_license == info.weights_license.lower()
            assert catalog.entry_of(task, info.name) is info


@pytest.mark.parametrize(
    ("task", "kind"), [("detection", "boxes"), ("instance_segmentation", "masks"), ("keypoints", "points")]
)
def test_the_entries_are_what_can_be_built(task: str, kind: Any) -> None:
    from cvpipe.models.detectors import TORCHVISION, TRANSFORMERS

    listed = {info.name: info for info in find_task(task).models}
    assert set(listed) == {*TORCHVISION[kind], *TRANSFORMERS[kind], "hf/*"}
    assert all((info.library == "torchvision") == (name in TORCHVISION[kind]) for name, info in listed.items())


def test_the_fixed_weights_are_those_that_are_loaded() -> None:
    from cvpipe.models.hf_presets import PRESETS

    fixed = {i.name: (i.weights, i.weights_license) for task in tasks().values() for i in task.models}
    for name, preset in PRESETS.items():
        assert fixed[name] == (preset.published, preset.licence)


def test_the_entries_of_semantic_segmentation_are_what_can_be_built() -> None:
    from cvpipe.models.segmenters import DECODERS, SEGFORMER_WEIGHTS

    listed = {info.name: info for info in find_task("semantic_segmentation").models}
    assert set(listed) == {*DECODERS, "segformer", "hf/*"}
    assert listed["segformer"].weights == SEGFORMER_WEIGHTS


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_pass(path: Path) -> None:
    check_license(load_config(path))


@given(name=st.sampled_from(timm.list_pretrained()))
@settings(max_examples=60)
def test_timm_weights_have_the_licence_that_timm_states(name: str) -> None:
    stated = timm.get_pretrained_cfg(name).license or "unknown"
    found = licenses_of(config(name))
    assert found is not None
    assert found.to_dict() == {"code": "apache-2.0", "weights": stated, "weights_source": f"timm {name}"}
    if stated in ALLOWED:
        check_license(config(name))
    else:
        with pytest.raises(ModelError, match=r"model\.allow_licenses"):
            check_license(config(name))
        check_license(config(name, allow_licenses=[*ALLOWED, stated]))
        check_license(config(name, pretrained=False))
    backbone = config("fcos", task="detection", backbone=name)
    assert licenses_of(backbone) == replace(found, code="bsd-3-clause")


@pytest.mark.parametrize(
    ("name", "task", "licence", "terms"),
    [
        (NC, "classification", "cc-by-nc-4.0", "http"),
        ("vit_small_patch16_dinov3", "classification", "dinov3-license", "http"),
        ("resnet50.bamboo", "classification", "unknown", "http"),
        ("torchvision/vit_h_14", "classification", "cc-by-nc-4.0", "facebookresearch/SWAG"),
        ("hf/nvidia/mit-b2", "classification", "nvidia-source-code-license", "huggingface.co/nvidia/mit-b2"),
        ("segformer", "semantic_segmentation", "nvidia-source-code-license", "NVlabs/SegFormer"),
        ("mask2former", "instance_segmentation", "unknown", "MODEL_ZOO.md#license"),
    ],
)
def test_what_is_refused_says_the_ways_out(name: str, task: str, licence: str, terms: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"task: {task}\nmodel:\n  name: {name}\n  allow_licenses: [mit, apache-2.0, bsd-3-clause]\ndata: x\n"
    )
    with pytest.raises(ModelError) as caught:
        check_license(load_config(path))
    text = str(caught.value)
    assert text.startswith(f"{path}:4: model.allow_licenses: the weights ")
    assert ("without a stated licence" if licence == "unknown" else f"under {licence}") in text
    assert terms in text
    ways = text.splitlines()[1:]
    assert len(ways) == 3
    assert f"`cvpipe tasks models {task}`" in ways[0]
    assert f"'model.allow_licenses=[mit, apache-2.0, bsd-3-clause, {licence}]'" in ways[1]
    assert all(way in ways[2] for way in ("model.pretrained=FILE", "models:/NAME@ALIAS", "model.pretrained=false"))
    # what the message says to type works
    override = ways[1].rpartition("with ")[2].strip("'")
    check_license(load_config(path, [override]))
    check_license(load_config(path, ["model.pretrained=false"]))


def test_what_passes() -> None:
    for name, task in (
        ("resnet50", "classification"),
        ("torchvision/resnet50", "classification"),
        ("hf/google/vit-base-patch16-224", "classification"),
        ("rtdetr_v2", "detection"),
        ("hf/ustc-community/dfine-nano-coco", "detection"),
        ("fpn", "semantic_segmentation"),
        ("vitpose", "keypoints"),
    ):
        check_license(config(name, task=task))
    found = licenses_of(config("tf_efficientnet_lite0", "package:efficientnet-lite0"))
    assert found is not None
    assert found.to_dict() == {
        "code": "apache-2.0",
        "weights": "apache-2.0",
        "weights_source": "package:efficientnet-lite0",
    }


def test_who_builds_the_network_reports_what_does_not_exist() -> None:
    for name in ("resnet_50", "resnet50.nonsense", "torchvision/resnet51", "resnet200"):
        assert licenses_of(config(name)) is None
        check_license(config(name))
    check_license(config("resnet50", "package:nonsense"))


def test_a_network_that_a_task_does_not_list() -> None:
    with pytest.raises(ModelError, match=r"without a stated licence.*has no 'rtdetr'\. Did you mean 'rtdetr_v2'"):
        check_license(config("rtdetr", task="detection"))
    check_license(config("rtdetr", False, task="detection"))


def test_code_that_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    base = find_task("classification")
    theirs = replace(base, models=(ModelInfo("viral", "their-library", "agpl-3.0", "none"),))
    monkeypatch.setattr(catalog, "find_task", lambda name: theirs)
    with pytest.raises(ModelError, match=r"the code of viral is under agpl-3\.0; accepted: apache-2\.0, mit"):
        check_license(config("viral", False))
    check_license(config("viral", False, allow_licenses=["AGPL-3.0"]))


def test_a_task_without_a_list_is_looked_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = replace(find_task("classification"), models=())
    monkeypatch.setattr(catalog, "find_task", lambda name: theirs)
    check_license(config("resnet50"))
    with pytest.raises(ModelError, match=r"under cc-by-nc-4\.0"):
        check_license(config(NC))


def hub(monkeypatch: pytest.MonkeyPatch, card: Any) -> None:
    import huggingface_hub

    class Api:
        def model_info(self, name: str, timeout: float) -> Any:
            if isinstance(card, Exception):
                raise card
            return SimpleNamespace(card_data=card)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr("cvpipe.models.hub._answers", lambda url: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    catalog._ask_hub.cache_clear()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "MIT"}, "mit"),
        ({"license": "other", "license_name": "Some-License"}, "some-license"),
        ({"license": "other"}, "unknown"),
        ({}, "unknown"),
        (None, "unknown"),
        (OSError("no route"), "unknown"),
    ],
)
def test_cards_of_the_hub(card: Any, licence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, card)
    found = licenses_of(config("hf/somebody/some-net"))
    assert found is not None
    assert (found.weights, found.weights_source) == (licence, "somebody/some-net")
    assert bool(found.note) == (licence == "unknown" and card != {"license": "mit"})
    catalog._ask_hub.cache_clear()


def test_the_hub_is_not_asked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, AssertionError("must not be asked"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"somebody/some-net are without a stated licence.*can't be asked from here"):
        check_license(config("hf/somebody/some-net"))
    catalog._ask_hub.cache_clear()


def test_a_folder_of_transformers_is_the_users_own(tmp_path: Path) -> None:
    found = licenses_of(config(f"hf/{tmp_path}"))
    assert found is not None
    assert (found.code, found.weights) == ("apache-2.0", None)


@pytest.fixture
def nc_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle whose network started from non-commercial weights."""
    folder = tmp_path / "run" / "bundle"
    shutil.copytree(tiny_bundle.path, folder)
    info = json.loads((folder / "bundle.json").read_text())
    info["licenses"] = {"code": "apache-2.0", "weights": "cc-by-nc-4.0", "weights_source": f"timm {NC}"}
    (folder / "bundle.json").write_text(json.dumps(info))
    return folder


def test_bundles_record_their_licences(tiny_bundle: Bundle, tmp_path: Path) -> None:
    assert Bundle.load(tiny_bundle.path).info["licenses"] == {
        "code": "apache-2.0",
        "weights": None,
        "weights_source": "random",
    }
    trained = tiny_bundle.config.replace(**{"model.pretrained": True, "model.name": "test_resnet"})
    made = Bundle.create(tmp_path / "b", trained, tiny_bundle.labels, tiny_bundle.network())
    assert made.info["licenses"]["weights"] == "apache-2.0"
    assert made.info["licenses"]["weights_source"] == "timm test_resnet.r160_in1k"


def test_own_files_pass_and_bundles_hand_their_licence_on(nc_bundle: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    plain = tmp_path / "weights.safetensors"
    shutil.copy(tiny_bundle.path / "weights.safetensors", plain)
    found = licenses_of(config("test_resnet", str(plain)))
    assert found is not None
    assert (found.weights, found.weights_source) == (None, f"own file {plain}")
    check_license(config("test_resnet", str(tiny_bundle.path)))
    for path in (nc_bundle, nc_bundle.parent, nc_bundle / "weights.safetensors"):
        with pytest.raises(ModelError, match=f"made from timm {NC} are under cc-by-nc-4.0"):
            check_license(config("test_resnet", str(path)))
    # a grandchild names where it began
    child = Bundle.create(
        tmp_path / "child",
        tiny_bundle.config.replace(**{"model.pretrained": str(nc_bundle)}),
        tiny_bundle.labels,
        tiny_bundle.network(),
    )
    assert child.info["licenses"]["weights"] == "cc-by-nc-4.0"
    source = licenses_of(config("test_resnet", str(child.path)))
    assert source is not None
    assert source.weights_source == f"{child.path}, made from timm {NC}"


def test_bundles_of_older_versions(tiny_bundle: Bundle) -> None:
    old = {key: value for key, value in tiny_bundle.info.items() if key != "licenses"}
    check_bundle(tiny_bundle.config, old)
    check_bundle(tiny_bundle.config.replace(**{"model.pretrained": "/weights/that/are/gone.pth"}), old)
    check_bundle(config("resnet50"), old)
    with pytest.raises(ModelError, match="train again with another network"):
        check_bundle(config(NC), old)


def test_training_refuses_before_it_reads_data(tmp_path: Path) -> None:
    values = {"model": {"name": NC}, "data": "/no/such/folder", "training": {"output_dir": str(tmp_path / "run")}}
    with pytest.raises(ModelError, match=r"under cc-by-nc-4\.0"):
        cvpipe.train(values)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def logged(mlflow_uri: str) -> Callable[[Path], str]:
    """Logs a bundle and returns its URI."""

    def log(path: Path) -> str:
        tracker = Tracker(TrackingConfig(tracking_uri=mlflow_uri, system_metrics=False), "licences")
        uri = tracker.log_model(Bundle.load(path)).uri
        tracker.finish()
        return uri

    return log


def test_registering_checks_what_the_bundle_records(
    logged: Callable[[Path], str], nc_bundle: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from cvpipe import tracking

    refused, accepted = logged(nc_bundle), logged(tiny_bundle.path)
    asked: list[str] = []
    download = tracking.download_model
    monkeypatch.setattr(tracking, "download_model", lambda uri, *servers: asked.append(uri) or download(uri, *servers))
    with pytest.raises(
        ModelError,
        match=rf"is not registered as nets\..*the weights timm {NC} are under cc-by-nc-4\.0(.|\n)*train again with",
    ):
        register_model(refused, "nets", "champion")
    assert not MlflowClient().search_registered_models()
    assert register_model(accepted, "nets", "champion").uri == "models:/nets/1"
    assert asked, "the server is asked"
    assert all(uri.endswith((".json", ".yaml")) for uri in asked), "the weights are not fetched for this"

    # a model of the registry hands its licence on
    check_license(config("test_resnet", "models:/nets@champion"))
    with pytest.raises(ModelError, match=f"{refused}, made from timm {NC} are under cc-by-nc-4.0"):
        check_license(config("test_resnet", refused))


def test_models_of_others_can_be_registered(mlflow_uri: str) -> None:
    import mlflow

    class Nothing(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    with mlflow.start_run():
        info = mlflow.pyfunc.log_model("model", python_model=Nothing(), pip_requirements=[])
    assert register_model(info.model_uri, "theirs", None).uri == "models:/theirs/1"


def test_a_server_that_is_away_does_not_cost_the_model(tiny_bundle: Bundle, tmp_path: Path, mlflow_uri: str) -> None:
    gone = tiny_bundle.config.replace(**{"model.pretrained": "models:/gone@champion"})
    catalog._inherited.cache_clear()
    made = Bundle.create(tmp_path / "b", gone, tiny_bundle.labels, tiny_bundle.network())
    assert made.info["licenses"]["weights"] == "unknown"
    assert "models:/gone@champion" in made.info["licenses"]["weights_source"]


def test_listing() -> None:
    plain = {row["network"]: row for row in listing(find_task("semantic_segmentation"))}
    assert (plain["segformer"]["allowed"], plain["unet"]["allowed"]) == (False, None)
    found = {row["network"]: row for row in listing(find_task("classification"), "convnextv2_p*")}
    assert found
    assert all(name.startswith("convnextv2_p") for name in found)
    assert found[NC] | {"terms": ""} == {
        "task": "classification",
        "part": "network",
        "network": NC,
        "library": "timm",
        "code": "apache-2.0",
        "weights": f"timm {NC}",
        "weights_license": "cc-by-nc-4.0",
        "allowed": False,
        "terms": "",
    }
    backbones = listing(find_task("detection"), "resnet50.a1_*")
    assert [(row["part"], row["network"], row["allowed"]) for row in backbones] == [
        ("backbone", "resnet50.a1_in1k", True)
    ]
    anywhere = {row["network"] for row in listing(find_task("detection"), "resnet50.a1_")}
    assert {"resnet50.a1_in1k", "seresnet50.a1_in1k"} <= anywhere
    assert listing(find_task("keypoints"), "no-such-net") == []


def test_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "models", "detection"]) == 0
    text = capfd.readouterr().out
    assert "d_fine" in text
    assert "ustc-community/dfine-small-coco" in text
    assert "hf/NAME" in text
    assert run(["tasks", "models", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["models"]
    assert {row["task"] for row in rows} >= {"classification", "detection"}
    assert run(["tasks", "models", "keypoints", "--filter", "nothing-like-it"]) == 0
    assert "no such network" in capfd.readouterr().out
    assert run(["tasks", "models", "detecton"]) == 2
    assert "Did you mean 'detection'" in capfd.readouterr().err


def test_every_task_that_is_found_has_entries() -> None:
    assert all(task.models for task in task_module.tasks().values())


def test_the_start_up_line() -> None:
    own = {"task": "detection", "model": {"name": "fcos", "pretrained": False}, "data": {"train": "x"}}
    assert str(licenses_of(parse_config(own))) == "code bsd-3-clause; weights random or your own"
    own["model"] = {"name": "fcos", "backbone": "tf_efficientnet_lite0", "pretrained": "package:efficientnet-lite0"}
    assert str(licenses_of(parse_config(own))) == ("code bsd-3-clause; weights apache-2.0 (package:efficientnet-lite0)")
